from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from cwbass.errors import GateError
from cwbass.telemetry.metrics import Exposed, Metrics
from cwbass.telemetry.recorder import Recorder
from cwbass.training.loop import EpochRecord

CLASSES = ("road", "sky", "pole")


class Heard:
    """A recorder, and what it has made of what it was told."""

    def __init__(self, stage: str = "train") -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.recorder = Recorder(self.metrics, stage=stage, run_id="run-7")

    def value(self, name: str, **labels: str) -> float | None:
        """None where the series is not shown."""
        for family in Exposed(self.metrics.registry).collect():
            for sample in family.samples:
                if (sample.name, sample.labels) == (name, labels):
                    return sample.value
        return None

    def start(self, **changes: Any) -> None:
        settings = {"epochs": 5, "class_names": CLASSES, "labeled_classes": ["road", "sky"], "device": torch.device("cpu")}
        self.recorder.start_phase("train", **{**settings, **changes})


def record(**changes: Any) -> EpochRecord:
    values = {
        "epoch": 1,
        "step": 20,
        "means": {"loss": 1.5, "loss_sup": 1.0, "loss_unsup": 0.5, "grad_norm": 3.0, "threshold": [0.3, 0.5, 0.9]},
        "sums": {
            "seen": [100.0, 50.0, 0.0],
            "kept": [70.0, 0.0, 0.0],
            "confidence": [80.0, 30.0, 0.0],
            "confidence_counts": [[0.0] * 60 + [50.0] + [0.0] * 38 + [50.0], [0.0] * 99 + [50.0], [0.0] * 100],
        },
        "learning_rate": 0.1,
        "step_seconds": 0.5,
        "seconds": 10.0,
        "data_wait": 0.1,
        "nonfinite": 0,
        "images": 80,
    }
    return EpochRecord(**{**values, **changes})


ROW: dict[str, Any] = {
    "threshold": [0.3, 0.5, 0.9],
    "precision_per_class": [0.75, None, 1.0],
    "boundary_precision": 0.5,
    "selection_miou": 0.4,
    "selection_miou_student": 0.3,
    "selection_miou_teacher": 0.4,
}


@pytest.mark.parametrize("name", ["cwbass_train_last_step_timestamp_seconds", "cwbass_checkpoint_last_timestamp_seconds"])
def test_a_training_that_never_takes_a_step_or_saves_stands_still_from_its_beginning_on(name: str) -> None:
    heard, before = Heard(), time.time()
    assert heard.value(name) is None
    heard.start()
    begun = heard.value(name)
    assert begun is not None and before <= begun <= time.time()


def test_an_epoch_is_told_with_its_numbers() -> None:
    heard = Heard()
    heard.start()
    assert heard.value("cwbass_train_epoch") == 0
    heard.recorder.epoch_done(record(), ROW, {"encoder": 0.01, "decoder": 0.1})
    assert heard.value("cwbass_train_epoch") == 2  # done
    assert heard.value("cwbass_train_epochs_planned") == 5
    assert heard.value("cwbass_train_learning_rate", group="encoder") == 0.01
    losses = [heard.value("cwbass_train_loss", term=term) for term in ("total", "sup", "unsup", "boundary")]
    assert losses == [1.5, 1.0, 0.5, None]
    assert heard.value("cwbass_train_grad_norm") == 3.0
    assert heard.value("cwbass_eval_miou_ratio", split="selection", weights="student") == 0.3
    assert heard.value("cwbass_eval_miou_ratio", split="selection", weights="teacher") == 0.4
    assert [heard.value("cwbass_pseudo_label_threshold", **{"class": name}) for name in CLASSES] == [0.3, 0.5, 0.9]
    assert heard.value("cwbass_pseudo_label_boundary_precision_ratio") == 0.5
    assert heard.value("cwbass_pseudo_label_confidence_bucket", le="0.6") == 0
    assert heard.value("cwbass_pseudo_label_confidence_bucket", le="0.7") == 50
    assert heard.value("cwbass_pseudo_label_confidence_count") == 150
    assert heard.value("cwbass_pseudo_label_confidence_sum") == 110


def test_pixels_add_up_over_epochs_and_a_labelled_class_is_counted_from_zero() -> None:
    heard = Heard()
    heard.start()

    def pixels(name: str) -> list[float | None]:
        return [heard.value("cwbass_pseudo_label_pixels_total", **{"class": name, "decision": d}) for d in ("kept", "dropped")]

    assert [pixels(name) for name in CLASSES] == [[0, 0], [0, 0], [None, None]]
    for _ in range(2):
        heard.recorder.epoch_done(record(), ROW, {})
    # No pole in labelled images, none named: no series that an alert could take for a starved class.
    assert [pixels(name) for name in CLASSES] == [[140, 60], [0, 100], [None, None]]


def test_a_precision_that_is_undefined_now_is_not_the_old_one() -> None:
    heard = Heard()
    heard.start()
    heard.recorder.epoch_done(record(), ROW, {})
    precision = [heard.value("cwbass_pseudo_label_precision_ratio", **{"class": name}) for name in CLASSES]
    assert precision == [0.75, None, 1.0]
    heard.recorder.epoch_done(record(), {**ROW, "precision_per_class": [None, 0.5, 1.0]}, {})
    precision = [heard.value("cwbass_pseudo_label_precision_ratio", **{"class": name}) for name in CLASSES]
    assert precision == [None, 0.5, 1.0]


def test_one_threshold_is_that_of_every_class() -> None:
    heard = Heard()
    heard.start()
    heard.recorder.epoch_done(record(), {**ROW, "threshold": 0.95}, {})
    assert [heard.value("cwbass_pseudo_label_threshold", **{"class": name}) for name in CLASSES] == [0.95] * 3


def test_steps_images_and_waiting_are_counted_while_batches_pass_unchanged() -> None:
    heard = Heard()
    heard.start()
    labeled = heard.recorder.watch(iter("abcd"), "labeled", 4)
    unlabeled = heard.recorder.watch(iter("wxyz"), "unlabeled", 6)
    seen = []
    for _ in range(2):  # steps of two batches each
        for _ in range(2):
            seen.append(next(iter(labeled)) + next(iter(unlabeled)))
        heard.recorder.step_done()
    assert seen == ["aw", "bx", "cy", "dz"]
    assert next(iter(labeled), None) is None
    assert heard.value("cwbass_train_steps_total", phase="train") == 2
    assert heard.value("cwbass_train_images_total", kind="labeled") == 16
    assert heard.value("cwbass_train_images_total", kind="unlabeled") == 24
    assert heard.value("cwbass_train_step_duration_seconds_count") == 2
    waited = heard.value("cwbass_train_data_wait_seconds_total")
    assert waited is not None and 0 < waited <= (heard.value("cwbass_train_step_duration_seconds_sum") or 0)


def test_time_between_epochs_is_not_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cwbass.telemetry.recorder.time.perf_counter", lambda: clock[0])
    heard = Heard()
    heard.start()
    batches = iter(heard.recorder.watch([1, 2], "labeled", 1))
    for _ in range(2):
        next(batches)
        clock[0] += 2.0  # the step
        heard.recorder.step_done()
        clock[0] += 500.0  # the measurement after it
    assert heard.value("cwbass_train_step_duration_seconds_sum") == 4.0


def test_checkpoints_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    heard = Heard()
    path = tmp_path / "last.pt"
    with heard.recorder.saving(path):
        path.write_bytes(b"12345")
    with pytest.raises(OSError, match="disk is full"), heard.recorder.saving(path):
        raise OSError("disk is full")
    heard.recorder.checkpoint_damaged()
    assert [heard.value("cwbass_checkpoints_total", outcome=each) for each in ("written", "failed", "damaged")] == [1, 1, 1]
    assert heard.value("cwbass_checkpoint_bytes") == 5


def test_stops_continuations_and_skips_are_counted() -> None:
    heard = Heard()
    heard.recorder.resumed()
    heard.recorder.step_skipped(3)
    heard.recorder.collapsed(["miou", "classes"])
    heard.recorder.collapsed(["miou"])
    for reason in ("SIGTERM", "SIGUSR1"):
        heard.recorder.interrupted(reason)
    assert heard.value("cwbass_train_resumes_total") == 1
    assert heard.value("cwbass_train_nonfinite_steps_total") == 1
    incidents = [heard.value("cwbass_train_collapse_incidents_total", sign=sign) for sign in ("miou", "classes", "starved")]
    assert incidents == [2, 1, 0]
    reasons = [heard.value("cwbass_train_interruptions_total", reason=each) for each in ("SIGTERM", "SIGINT", "other")]
    assert reasons == [1, 0, 1]


def test_scores_are_told_beside_the_baseline() -> None:
    heard = Heard("evaluate")
    scores: dict[str, Any] = {
        "weights": "teacher",
        "miou": 0.5,
        "baseline_miou": 0.4,
        "boundary_iou": 0.3,
        "boundary_f1_3px": 0.6,
        "ece": None,
        "per_class": {"road": {"iou": 0.8, "baseline_iou": 0.7}, "pole": {"iou": None}},
    }
    heard.recorder.scored(scores)
    miou = [heard.value("cwbass_eval_miou_ratio", split="test", weights=each) for each in ("teacher", "baseline", "student")]
    assert miou == [0.5, 0.4, None]
    assert heard.value("cwbass_eval_boundary_f1_ratio", split="test", weights="teacher", tolerance_px="3") == 0.6
    assert heard.value("cwbass_eval_boundary_f1_ratio", split="test", weights="teacher", tolerance_px="1") is None
    assert heard.value("cwbass_eval_calibration_error_ratio", split="test", weights="teacher") is None
    assert heard.value("cwbass_eval_iou_ratio", split="test", weights="baseline", **{"class": "road"}) == 0.7
    assert heard.value("cwbass_eval_iou_ratio", split="test", weights="teacher", **{"class": "pole"}) is None


@pytest.mark.parametrize(("error", "outcome"), [(None, "success"), (GateError("no"), "refused"), (OSError("no"), "failed")])
def test_what_the_registry_answered_is_counted(error: Exception | None, outcome: str) -> None:
    heard = Heard("register")
    try:
        with heard.recorder.registry_operation("promote"):
            if error is not None:
                raise error
    except Exception as caught:
        assert caught is error
    for each in ("success", "refused", "failed"):
        expected = float(each == outcome)
        assert heard.value("cwbass_registry_operations_total", operation="promote", outcome=each) == expected


def test_the_run_is_named_once_with_digests_and_not_with_its_parameters() -> None:
    heard = Heard()
    heard.recorder.describe_run(data_version="a" * 64, params="secret: s3cr3t", model="unet/resnet18")
    (family,) = [each for each in heard.metrics.registry.collect() if each.name == "cwbass_run_info"]
    (sample,) = family.samples
    assert sample.labels == {
        "run_id": "run-7",
        "stage": "train",
        "data_version": "a" * 12,
        "params_digest": "c6436f6aa599",  # printf 'secret: s3cr3t' | sha256sum
        "model": "unet/resnet18",
    }


def test_a_metric_that_fails_is_a_warning_once_and_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    heard.start(class_names=CLASSES[:2])  # one class fewer than the record counts
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            heard.recorder.epoch_done(record(), ROW, {})
        heard.recorder.start_phase("no such phase", epochs=None, class_names=None, labeled_classes=None, device=None)  # type: ignore[arg-type]
    warned = [line for line in caplog.messages if "epoch_done" in line]
    assert len(warned) == 1
    assert "training goes on without" in warned[0]
    assert heard.value("cwbass_train_loss", term="total") == 1.5  # what came before the failure is there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: peak memory is that of its allocator")
def test_the_peak_of_gpu_memory_is_that_of_the_allocator() -> None:
    heard = Heard()
    heard.start(device=torch.device("cuda", 0))
    held = torch.zeros(1 << 20, device="cuda")
    heard.recorder.epoch_done(record(), ROW, {})
    peak = heard.value("cwbass_gpu_memory_peak_bytes", device="0")
    assert peak == torch.cuda.max_memory_allocated(0) and peak >= held.nbytes


def test_without_a_gpu_there_is_no_gpu_metric() -> None:
    heard = Heard()
    heard.start()
    heard.recorder.epoch_done(record(), ROW, {})
    assert not any(family.name == "cwbass_gpu_memory_peak_bytes" for family in Exposed(heard.metrics.registry).collect())
