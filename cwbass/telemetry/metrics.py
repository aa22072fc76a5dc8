"""Every metric of cwbass: its name, type, labels and meaning, defined here and nowhere else.

Dashboard, alert rules and docs/monitoring.md are checked against this list by tests. Names follow
Prometheus: base units, ``_total`` for counters, ``_ratio`` for fractions in [0, 1], and no label
whose values grow with the number of runs. A run's id stands on ``cwbass_run_info`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from threading import Lock
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

OPEN: tuple[str, ...] = ()  # values that come from the data: class names, versions
STAGES = ("split", "warmup", "train", "evaluate", "register")
PHASES = ("warmup", "baseline", "train", "retrain_reliable", "retrain_all")
SIGNS = ("miou", "precision", "classes", "starved")
OUTCOMES = ("success", "refused", "interrupted", "failed")
STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONFIDENCES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric as Prometheus knows it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, tuple[str, ...]]  # label -> its values, OPEN where they come from the data
    outcome: bool  # pushed at the end of a step; the others are true only while training runs


class Metrics:
    """The metrics, on a registry.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.definitions: list[Definition] = []

        self.build_info = self._gauge(
            "cwbass_build_info",
            "Always 1; the labels say which code runs on what.",
            {"version": OPEN, "revision": OPEN, "python": OPEN, "torch": OPEN, "cuda": OPEN},
            outcome=True,
        )
        self.run_info = self._gauge(
            "cwbass_run_info",
            "Always 1; the labels say which run this is: of which split, with which parameters and network.",
            {"run_id": OPEN, "stage": STAGES, "data_version": OPEN, "params_digest": OPEN, "model": OPEN},
            outcome=True,
        )

        self.stage_duration = self._gauge(
            "cwbass_stage_duration_seconds", "How long the step took.", {"stage": STAGES}, outcome=True
        )
        self.stage_success = self._gauge(
            "cwbass_stage_last_success_timestamp_seconds", "When the step last succeeded.", {"stage": STAGES}, outcome=True
        )
        self.stage_completion = self._gauge(
            "cwbass_stage_last_completion_timestamp_seconds",
            "When the step last ended, and how.",
            {"stage": STAGES, "outcome": OUTCOMES},
            outcome=True,
        )

        self.steps = self._counter("cwbass_train_steps_total", "Optimiser steps, skipped ones included.", {"phase": PHASES})
        self.images = self._counter(
            "cwbass_train_images_total", "Images given to the network.", {"kind": ("labeled", "unlabeled")}
        )
        found = self._define(
            "cwbass_train_step_duration_seconds",
            "histogram",
            "Time of a step, waiting for data included, measurements between epochs not.",
        )
        self.step_duration = Histogram(found.name, found.help, registry=registry, buckets=STEP_SECONDS)
        self.data_wait = self._counter(
            "cwbass_train_data_wait_seconds_total", "Time in which the training loop waited for a batch."
        )
        self.epoch = self._gauge("cwbass_train_epoch", "Epochs of the current phase that are done.")
        self.epochs_planned = self._gauge("cwbass_train_epochs_planned", "Epochs that the current phase will have.")
        self.learning_rate = self._gauge(
            "cwbass_train_learning_rate", "Learning rate of the last step.", {"group": ("encoder", "decoder")}
        )
        self.loss = self._gauge(
            "cwbass_train_loss",
            "Mean loss of the last epoch; total is what is minimised, unsup includes boundary.",
            {"term": ("total", "sup", "unsup", "boundary")},
        )
        self.grad_norm = self._gauge("cwbass_train_grad_norm", "Mean norm of the gradient in the last epoch, before clipping.")
        self.nonfinite = self._counter(
            "cwbass_train_nonfinite_steps_total", "Steps skipped because loss or gradient was not finite."
        )
        self.incidents = self._counter(
            "cwbass_train_collapse_incidents_total", "Times that the collapse guard acted, by what it saw.", {"sign": SIGNS}
        )
        self.last_step = self._gauge(
            "cwbass_train_last_step_timestamp_seconds", "When the last step ended; until there is one, when training began."
        )

        self.checkpoints = self._counter(
            "cwbass_checkpoints_total",
            "Checkpoints written; checkpoints and states not written for an error, or found damaged when read.",
            {"outcome": ("written", "failed", "damaged")},
        )
        self.checkpoint_time = self._gauge(
            "cwbass_checkpoint_last_timestamp_seconds",
            "When the last checkpoint or state was written; until there is one, when training began.",
        )
        self.checkpoint_bytes = self._gauge("cwbass_checkpoint_bytes", "Size of the last checkpoint.")
        self.resumes = self._counter("cwbass_train_resumes_total", "Continuations of an earlier process's training.")
        self.interruptions = self._counter(
            "cwbass_train_interruptions_total",
            "Stops on request, after a checkpoint.",
            {"reason": ("SIGTERM", "SIGINT", "other")},
            outcome=True,  # the process ends before it is scraped again
        )

        self.pixels = self._counter(
            "cwbass_pseudo_label_pixels_total",
            "Unlabelled pixels by the class the teacher named, kept as pseudo-label or dropped.",
            {"class": OPEN, "decision": ("kept", "dropped")},
        )
        self.threshold = self._gauge(
            "cwbass_pseudo_label_threshold",
            "Confidence above which a pseudo-label is kept, mean of the last epoch, in [0, 1].",
            {"class": OPEN},
        )
        self.confidence = CountedHistogram(
            self._define("cwbass_pseudo_label_confidence", "histogram", "The teacher's confidence in unlabelled pixels."),
            CONFIDENCES,
            registry,
        )
        self.precision = self._gauge(
            "cwbass_pseudo_label_precision_ratio",
            "Share of kept labels that are right, measured on the selection slice.",
            {"class": OPEN},
        )
        self.boundary_precision = self._gauge(
            "cwbass_pseudo_label_boundary_precision_ratio",
            "The same for all classes within 5 pixels of a boundary between classes.",
        )

        scored = {"split": ("selection", "test"), "weights": ("student", "teacher", "baseline")}
        self.miou = self._gauge("cwbass_eval_miou_ratio", "Mean IoU of the split.", scored, outcome=True)
        self.iou = self._gauge("cwbass_eval_iou_ratio", "IoU of a class.", {**scored, "class": OPEN}, outcome=True)
        self.boundary_iou = self._gauge("cwbass_eval_boundary_iou_ratio", "Mean boundary IoU.", scored, outcome=True)
        self.boundary_f1 = self._gauge(
            "cwbass_eval_boundary_f1_ratio", "Mean boundary F1.", {**scored, "tolerance_px": ("1", "3", "5")}, outcome=True
        )
        self.calibration = self._gauge(
            "cwbass_eval_calibration_error_ratio", "Expected calibration error, 15 bins.", scored, outcome=True
        )

        self.gpu_memory = self._gauge(
            "cwbass_gpu_memory_peak_bytes", "Most GPU memory that tensors have taken so far.", {"device": OPEN}
        )

        self.registry_operations = self._counter(
            "cwbass_registry_operations_total",
            "What the step register asked of the model registry, and what it answered.",
            {"operation": ("register", "promote"), "outcome": ("success", "refused", "failed")},
            outcome=True,
        )
        self.registry_bytes = self._counter(
            "cwbass_registry_upload_bytes_total", "Bytes written to the model registry.", outcome=True
        )

    def _define(
        self,
        name: str,
        kind: Literal["counter", "gauge", "histogram"],
        text: str,
        labels: Mapping[str, tuple[str, ...]] | None = None,
        outcome: bool = False,
    ) -> Definition:
        self.definitions.append(Definition(name, kind, text, labels or {}, outcome))
        return self.definitions[-1]

    def _counter(
        self, name: str, text: str, labels: Mapping[str, tuple[str, ...]] | None = None, *, outcome: bool = False
    ) -> Counter:
        found = self._define(name, "counter", text, labels, outcome)
        counter = Counter(found.name, found.help, tuple(found.labels), registry=self.registry)
        # A series must be seen at 0 before increase() can see its first increment.
        if found.labels and OPEN not in found.labels.values():
            for values in product(*found.labels.values()):
                counter.labels(*values)
        return counter

    def _gauge(
        self, name: str, text: str, labels: Mapping[str, tuple[str, ...]] | None = None, *, outcome: bool = False
    ) -> Gauge:
        found = self._define(name, "gauge", text, labels, outcome)
        gauge = Gauge(found.name, found.help, tuple(found.labels), registry=self.registry)
        if not found.labels:
            gauge.set(math.nan)  # not measured yet; Exposed leaves it out, where 0 would be a lie
        return gauge


class CountedHistogram(Collector):
    """A histogram of values that were counted elsewhere.

    Args:
        definition: Its name and meaning.
        edges: Upper bounds of all buckets but the last.
        registry: Where it is registered.
    """

    def __init__(self, definition: Definition, edges: Sequence[float], registry: CollectorRegistry) -> None:
        self.definition, self.edges = definition, tuple(edges)
        self._counts, self._sum, self._lock = [0.0] * (len(self.edges) + 1), 0.0, Lock()
        registry.register(self)

    def add(self, counts: Sequence[float], total: float) -> None:
        """Add values to the buckets.

        Args:
            counts: Histogram over [0, 1] in N equal bins, such that every edge lies between two of them.
            total: Sum of the values.
        """
        bounds = [0, *(round(edge * len(counts)) for edge in self.edges), len(counts)]
        with self._lock:
            self._sum += total
            for bucket, (low, high) in enumerate(pairwise(bounds)):
                self._counts[bucket] += sum(counts[low:high])

    def describe(self) -> Iterable[Metric]:
        """Its names, without a look at the counts."""
        return [Metric(self.definition.name, self.definition.help, "histogram")]

    def collect(self) -> Iterable[Metric]:
        """As Prometheus wants it: each bucket holds those below it too."""
        with self._lock:
            cumulative, total = list(accumulate(self._counts)), self._sum
        names = [*map(floatToGoString, self.edges), "+Inf"]
        family = HistogramMetricFamily(self.definition.name, self.definition.help)
        family.add_metric([], list(zip(names, cumulative, strict=True)), total)
        return [family]


class Exposed(Collector):
    """What is shown of a registry: samples that were measured, without the ``_created`` series.

    Args:
        registry: Of :class:`Metrics`.
        names: Only these metrics; None shows all.
    """

    def __init__(self, registry: CollectorRegistry, names: Iterable[str] | None = None) -> None:
        self.registry = registry
        self.names = None if names is None else {name.removesuffix("_total") for name in names}

    def collect(self) -> Iterable[Metric]:
        """Families that have a sample to show."""
        for family in self.registry.collect():
            if self.names is not None and family.name not in self.names:
                continue
            family.samples = [
                sample for sample in family.samples if not math.isnan(sample.value) and sample.name != f"{family.name}_created"
            ]
            if family.samples:
                yield family
