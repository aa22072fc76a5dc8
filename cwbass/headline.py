"""The scores of a run in a table of text, for places that show no more: a terminal, a pipeline's UI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cwbass.errors import counted

DASH = "-"
SCORES = {
    "miou": "mIoU",
    "boundary_iou": "boundary IoU",
    "boundary_f1_3px": "boundary F1, 3 px",
    "pixel_accuracy": "pixel accuracy",
    "ece": "calibration error",
}


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Columns of the model, and of the supervised baseline and the gain where there is a baseline; in per cent and points."""

    header: list[str]
    scores: list[list[str]]
    classes: list[list[str]]  # IoU of each class


def score_table(metrics: Mapping[str, Any]) -> ScoreTable:
    """The table of a metrics.json."""
    compared = metrics.get("baseline_miou") is not None
    model = str(metrics.get("method") or "model")

    def row(name: str, before: float | None, after: float | None) -> list[str]:
        if not compared:
            return [name, percent(after)]
        gain = DASH if before is None or after is None else points(after - before)
        return [name, percent(before), percent(after), gain]

    return ScoreTable(
        header=["", "supervised" if has_supervised_baseline(metrics) else "baseline", model, "gain"] if compared else ["", model],
        scores=[row(name, metrics.get(f"baseline_{key}"), metrics.get(key)) for key, name in SCORES.items()],
        classes=[row(name, each.get("baseline_iou"), each["iou"]) for name, each in metrics["per_class"].items()],
    )


def false_classes(metrics: Mapping[str, Any]) -> list[str]:
    """Classes that no test image shows and that were predicted all the same: their IoU is 0, and counts in the mean."""
    return [
        name for name, each in metrics.get("per_class", {}).items() if each.get("pixels") == 0 and each.get("iou") is not None
    ]


def certainty(metrics: Mapping[str, Any]) -> str | None:
    """How sure the gain in mIoU is, in words; None where it was not measured, as before there were intervals."""
    if metrics.get("miou_gain_interval") is None:
        return None
    low, high = map(points, metrics["miou_gain_interval"])
    return f"95 % of resampled test images put the gain in mIoU between {low} and {high}; another seed may do otherwise."


def scored_on(metrics: Mapping[str, Any]) -> str:
    """What a metrics.json was measured on: the test images of a split, by its hash, or other images."""
    images = f"{counted(metrics['images'], 'image')}, {metrics['protocol']}"
    return f"Test split {metrics['split_hash'][:12]}, {images}" if metrics.get("split_hash") else f"Images of no split, {images}"


def has_supervised_baseline(metrics: Mapping[str, Any]) -> bool:
    """Whether what a metrics.json compares with learned from labels alone. It may be a champion; earlier versions do not say."""
    return metrics.get("baseline_miou") is not None and (
        metrics.get("baseline_method") in (None, "supervised") or metrics.get("baseline_supervised") is True
    )


def points(difference: float) -> str:
    """A difference of fractions in points, with its sign where there is one to see."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def percent(value: float | None) -> str:
    """A fraction in per cent, with one decimal."""
    return DASH if value is None else f"{100 * value:.1f}"
