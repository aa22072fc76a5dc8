"""Turns what happens in a run into metrics.

Per step it touches counters on the host, nothing else: losses, thresholds and pixel counts come
from the epoch's record, which the loop has read from the device anyway.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from cwbass.errors import GateError
from cwbass.telemetry.base import T, Telemetry
from cwbass.telemetry.metrics import Metrics

if TYPE_CHECKING:
    import torch

    from cwbass.training.loop import EpochRecord

logger = logging.getLogger(__name__)
P = ParamSpec("P")

_SELECTION_MIOU = "selection_miou_"


def softly(method: Callable[Concatenate[Recorder, P], None]) -> Callable[Concatenate[Recorder, P], None]:
    """A metric that fails costs a warning, never a training."""

    def call(recorder: Recorder, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(recorder, *args, **kwargs)
        except Exception as error:
            recorder.complain(method.__name__, error)

    return functools.update_wrapper(call, method)


class Recorder(Telemetry):
    """Keeps the metrics of one step of the pipeline.

    Args:
        metrics: What is kept up to date.
        stage: The step, one of STAGES.
        run_id: Of the run, for ``cwbass_run_info``; may be empty.
    """

    def __init__(self, metrics: Metrics, *, stage: str, run_id: str = "") -> None:
        self.metrics, self.stage, self.run_id = metrics, stage, run_id
        self._class_names: Sequence[str] = ()
        self._device: torch.device | None = None
        self._steps = metrics.steps.labels(stage)
        self._step_started: float | None = None
        self._complained: set[str] = set()

    def complain(self, what: str, error: Exception) -> None:
        """Say once what does not work."""
        if what not in self._complained:
            self._complained.add(what)
            logger.warning("metrics: %s failed, training goes on without (%s: %s)", what, type(error).__name__, error)

    @softly
    def describe_build(self, labels: Mapping[str, str]) -> None:
        """Versions of the code and what it runs on: the labels of ``cwbass_build_info``."""
        self.metrics.build_info.labels(**labels).set(1)

    @softly
    def finished(self, outcome: str, seconds: float) -> None:
        """The step has ended.

        Args:
            outcome: One of OUTCOMES.
            seconds: How long it took.
        """
        now = time.time()
        self.metrics.stage_duration.labels(self.stage).set(seconds)
        self.metrics.stage_completion.labels(self.stage, outcome).set(now)
        if outcome == "success":
            self.metrics.stage_success.labels(self.stage).set(now)

    @softly
    def describe_run(self, *, data_version: str, params: str, model: str) -> None:
        digest = hashlib.sha256(params.encode()).hexdigest()
        self.metrics.run_info.labels(
            run_id=self.run_id, stage=self.stage, data_version=data_version[:12], params_digest=digest[:12], model=model
        ).set(1)

    @softly
    def start_phase(
        self, phase: str, *, epochs: int, class_names: Sequence[str], labeled_classes: Sequence[str], device: torch.device
    ) -> None:
        metrics = self.metrics
        self._class_names, self._device, self._step_started = class_names, device, None
        self._steps = metrics.steps.labels(phase)
        metrics.epoch.set(0)
        metrics.epochs_planned.set(epochs)
        metrics.checkpoint_time.set_to_current_time()
        metrics.last_step.set_to_current_time()  # a first step that never comes is a stall, too
        # From 0 on, so that a class that never gets a pseudo-label is seen, and not just missing.
        for name in labeled_classes:
            metrics.pixels.labels(name, "kept")
            metrics.pixels.labels(name, "dropped")

    def watch(self, batches: Iterable[T], kind: str, images: int) -> Iterator[T]:
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._fetched(kind, images, started)
            yield batch

    @softly
    def _fetched(self, kind: str, images: int, started: float) -> None:
        self.metrics.data_wait.inc(time.perf_counter() - started)
        self.metrics.images.labels(kind).inc(images)
        if self._step_started is None:
            self._step_started = started

    @softly
    def step_done(self) -> None:
        if self._step_started is not None:
            self.metrics.step_duration.observe(time.perf_counter() - self._step_started)
            self._step_started = None
        self._steps.inc()
        self.metrics.last_step.set_to_current_time()

    @softly
    def step_skipped(self, step: int) -> None:
        self.metrics.nonfinite.inc()

    @softly
    def collapsed(self, signs: Sequence[str]) -> None:
        for sign in signs:
            self.metrics.incidents.labels(sign).inc()

    @softly
    def epoch_done(self, record: EpochRecord, row: Mapping[str, Any], learning_rates: Mapping[str, float]) -> None:
        metrics = self.metrics
        metrics.epoch.set(record.epoch + 1)
        for group, rate in learning_rates.items():
            metrics.learning_rate.labels(group).set(rate)
        for name, value in record.means.items():
            if name.partition("_")[0] == "loss" and isinstance(value, float):
                metrics.loss.labels(name.removeprefix("loss").removeprefix("_") or "total").set(value)
        if isinstance(norm := record.means.get("grad_norm"), float):
            metrics.grad_norm.set(norm)
        for key, value in row.items():
            if key.startswith(_SELECTION_MIOU):
                metrics.miou.labels("selection", key.removeprefix(_SELECTION_MIOU)).set(value)
        self._measure_gpu()
        if "seen" in record.sums:
            self._pseudo_labels(record.sums, row)

    def _pseudo_labels(self, sums: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        metrics, names = self.metrics, self._class_names
        for name, seen, kept in zip(names, sums["seen"], sums["kept"], strict=True):
            if seen:
                metrics.pixels.labels(name, "kept").inc(kept)
                metrics.pixels.labels(name, "dropped").inc(seen - kept)
        if "confidence_counts" in sums:
            counts = [math.fsum(column) for column in zip(*sums["confidence_counts"], strict=True)]
            metrics.confidence.add(counts, math.fsum(sums["confidence"]))
        threshold = row.get("threshold")
        thresholds = threshold if isinstance(threshold, list) else [threshold] * len(names)
        for gauge, values in ((metrics.threshold, thresholds), (metrics.precision, row.get("precision_per_class"))):
            for name, value in zip(names, values or (), strict=bool(values)):
                gauge.labels(name).set(_or_nan(value))
        metrics.boundary_precision.set(_or_nan(row.get("boundary_precision")))

    def _measure_gpu(self) -> None:
        if self._device is None or self._device.type != "cuda":
            return
        import torch

        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        self.metrics.gpu_memory.labels(str(index)).set(torch.cuda.max_memory_allocated(index))

    @contextmanager
    def saving(self, path: Path) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._checkpoint("failed")
            raise
        self._checkpoint("written", path)

    @contextmanager
    def saving_state(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._checkpoint("failed")
            raise
        self._state_saved()

    @softly
    def _state_saved(self) -> None:
        self.metrics.checkpoint_time.set_to_current_time()

    @softly
    def _checkpoint(self, outcome: str, path: Path | None = None) -> None:
        self.metrics.checkpoints.labels(outcome).inc()
        if path is not None:
            self.metrics.checkpoint_time.set_to_current_time()
            self.metrics.checkpoint_bytes.set(path.stat().st_size)

    @softly
    def checkpoint_damaged(self) -> None:
        self._checkpoint("damaged")

    @softly
    def resumed(self) -> None:
        self.metrics.resumes.inc()

    @softly
    def interrupted(self, reason: str) -> None:
        known = reason if reason in ("SIGTERM", "SIGINT") else "other"
        self.metrics.interruptions.labels(known).inc()

    @softly
    def scored(self, metrics: Mapping[str, Any]) -> None:
        weights = str(metrics["weights"])
        for prefix, name in (("", weights), ("baseline_", "baseline")):
            if metrics.get(f"{prefix}miou") is None:
                continue
            gauges = {"miou": self.metrics.miou, "boundary_iou": self.metrics.boundary_iou, "ece": self.metrics.calibration}
            for key, gauge in gauges.items():
                gauge.labels("test", name).set(_or_nan(metrics.get(f"{prefix}{key}")))
            for tolerance in ("1", "3", "5"):
                score = metrics.get(f"{prefix}boundary_f1_{tolerance}px")
                self.metrics.boundary_f1.labels("test", name, tolerance).set(_or_nan(score))
            for class_name, scores in metrics["per_class"].items():
                self.metrics.iou.labels("test", name, class_name).set(_or_nan(scores.get(f"{prefix}iou")))

    @contextmanager
    def registry_operation(self, operation: str) -> Iterator[None]:
        outcome = "failed"
        try:
            yield
            outcome = "success"
        except GateError:
            outcome = "refused"
            raise
        finally:
            self._registry_operation(operation, outcome)

    @softly
    def _registry_operation(self, operation: str, outcome: str) -> None:
        self.metrics.registry_operations.labels(operation, outcome).inc()

    @softly
    def uploaded(self, size: int) -> None:
        self.metrics.registry_bytes.inc(size)


def _or_nan(value: float | None) -> float:
    """What is undefined is not shown."""
    return math.nan if value is None else value
