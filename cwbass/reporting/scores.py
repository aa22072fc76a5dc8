"""The content of metrics.json in the words and tables of the report.

Every key may be missing: a report of a lone ``cwbass eval`` has no baseline. Scores are
fractions in [0, 1]; what is printed is per cent, and points for differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from cwbass import headline
from cwbass.headline import has_supervised_baseline
from cwbass.reporting.charts import bar_chart, reliability_diagram
from cwbass.reporting.curves import number
from cwbass.reporting.svg import NONE, format_value

Metrics = Mapping[str, Any]

OURS = {"cw_bass": "CW-BASS"}  # the method as people call it; others by their key
SCORES = {
    "miou": "mIoU",
    "boundary_iou": "Boundary IoU",
    "boundary_f1_1px": "Boundary F1, 1 px",
    "boundary_f1_3px": "Boundary F1, 3 px",
    "boundary_f1_5px": "Boundary F1, 5 px",
    "pixel_accuracy": "Pixel accuracy",
    "ece": "ECE (lower is better)",
}
LOWER_IS_BETTER = {"ece"}
FACTS = {"images": "Test images", "protocol": "Protocol", "weights": "Weights", "seed": "Seed", "split_hash": "Split"}
WIDEST_MATRIX = 40  # classes; a wider table would be a wall of numbers
CONFUSIONS = 8  # listed below the matrix


@dataclass(frozen=True, slots=True)
class Tile:
    """A number of the headline."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two scores, as printed, and their difference."""

    ours: str
    theirs: str
    change: str
    tone: str  # "up" for better, "down" for worse, "" where equal or unknown


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A row of the table of classes."""

    name: str
    iou: Comparison
    boundary_iou: Comparison
    accuracy: str
    share: str  # of the labelled test pixels


@dataclass(frozen=True, slots=True)
class Confusion:
    """Shares of each true class, by predicted class."""

    names: list[str]
    rows: list[tuple[str, list[float]]]  # empty where the matrix would be too wide
    pairs: list[tuple[str, str, float]]  # truth, prediction, share: the largest off the diagonal


def ours(metrics: Metrics) -> str:
    """What the model is called: by its method, which metrics.json of earlier versions do not say."""
    method = str(metrics.get("method") or "cw_bass")
    return OURS.get(method, method)


def theirs(metrics: Metrics) -> str:
    """What the baseline is called."""
    return "supervised only" if has_supervised_baseline(metrics) else "baseline"


def percent(value: object) -> str:
    """A fraction in per cent, without the sign; a dash where there is none."""
    found = number(value)
    return NONE if found is None else f"{found * 100:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in points, with its sign."""
    return headline.points(difference).replace("-", "\N{MINUS SIGN}")


def gain(scores: Metrics, key: str) -> float | None:
    """``key`` minus its baseline, where both were measured."""
    ours, theirs = number(scores.get(key)), number(scores.get(f"baseline_{key}"))
    return None if ours is None or theirs is None else ours - theirs


def compare(scores: Metrics, key: str) -> Comparison:
    """``key`` beside its baseline."""
    difference = gain(scores, key)
    shown = NONE if difference is None else points(difference)
    better = 0.0 if difference is None or shown == "0.0" else -difference if key in LOWER_IS_BETTER else difference
    tone = "up" if better > 0 else "down" if better < 0 else ""
    return Comparison(percent(scores.get(key)), percent(scores.get(f"baseline_{key}")), shown, tone)


def verdict(metrics: Metrics) -> str:
    """The result in two sentences, for a reader who stops there."""
    miou, difference = number(metrics.get("miou")), gain(metrics, "miou")
    if miou is None:
        return "No score was measured."
    reached = f"reaches {miou * 100:.1f}% mIoU" + (f" on {metrics['images']:,} test images" if metrics.get("images") else "")
    if difference is None:
        return f"The model {reached}. No supervised baseline was scored, so there is no gain to report."
    side = "above" if difference >= 0 else "below"
    base = "training on the labelled images alone" if has_supervised_baseline(metrics) else "the baseline"
    first = f"{ours(metrics)} {reached}, {abs(difference) * 100:.1f} points {side} {base}."
    classes: Mapping[str, Metrics] = metrics.get("per_class") or {}
    gains = {name: found for name, scores in classes.items() if (found := gain(scores, "iou")) is not None}
    if not gains:
        return first
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    extremes = f"best {best} ({points(gains[best])}), worst {worst} ({points(gains[worst])})"
    return f"{first} {sum(found > 0 for found in gains.values())} of {len(gains)} classes improve: {extremes}."


def tiles(metrics: Metrics) -> list[Tile]:
    """The headline; a tile without a number is left out."""
    difference, edge = gain(metrics, "miou"), gain(metrics, "boundary_iou")
    base, note = ("Supervised", "same labels, no unlabelled images") if has_supervised_baseline(metrics) else ("Baseline", "")
    wanted = [
        ("mIoU" if difference is None else f"{ours(metrics)} mIoU", metrics.get("miou"), "mean over the classes"),
        (f"{base} mIoU", metrics.get("baseline_miou"), note),
        ("Boundary IoU", metrics.get("boundary_iou"), "" if edge is None else f"{points(edge)} points against {base.lower()}"),
        ("Boundary F1", metrics.get("boundary_f1_3px"), "within 3 pixels"),
        ("Calibration error", metrics.get("ece"), "ECE; 0 is best"),
    ]
    made = [
        Tile(label, format_value(number(value), percent=True), note) for label, value, note in wanted if number(value) is not None
    ]
    if difference is not None:
        made.insert(2, Tile("Gain", points(difference), "points of mIoU"))
    return made


def facts(metrics: Metrics) -> dict[str, str]:
    """How the scores were measured: on how many images, by which protocol, weights, seed and split."""
    return {label: str(metrics[key]) for key, label in FACTS.items() if metrics.get(key) is not None}


def score_table(metrics: Metrics) -> dict[str, Comparison]:
    """Every score there is, by its printed name."""
    return {label: compare(metrics, key) for key, label in SCORES.items() if number(metrics.get(key)) is not None}


def class_table(metrics: Metrics) -> list[ClassRow]:
    """A row for every class, absent ones included."""
    classes: Mapping[str, Metrics] = metrics.get("per_class") or {}
    pixels = {name: number(scores.get("pixels")) or 0.0 for name, scores in classes.items()}
    total = sum(pixels.values()) or 1.0
    return [
        ClassRow(
            name,
            compare(scores, "iou"),
            compare(scores, "boundary_iou"),
            percent(scores.get("accuracy")),
            percent(pixels[name] / total),
        )
        for name, scores in classes.items()
    ]


def class_chart(metrics: Metrics) -> Markup | None:
    """Bars of IoU, ours above the baseline's."""
    classes: Mapping[str, Metrics] = metrics.get("per_class") or {}
    groups = [
        (name, [number(scores.get(key)) for scores in classes.values()])
        for name, key in ((ours(metrics), "iou"), (theirs(metrics), "baseline_iou"))
    ]
    groups = [(name, values) for name, values in groups if any(v is not None for v in values)]
    if len(groups) == 1:
        groups = [("IoU", groups[0][1])]
    return bar_chart(list(classes), groups, title="IoU of each class") if groups else None


def checkpoint_table(metrics: Metrics) -> tuple[list[str], dict[str, list[str]]]:
    """Columns that any checkpoint fills, and a row for each checkpoint."""
    checkpoints: Mapping[str, Metrics] = metrics.get("checkpoints") or {}
    keys = [key for key in SCORES if any(number(scores.get(key)) is not None for scores in checkpoints.values())]
    return [SCORES[key] for key in keys], {
        name: [percent(scores.get(key)) for key in keys] for name, scores in checkpoints.items()
    }


def confusion(metrics: Metrics) -> Confusion | None:
    """The matrix in shares of the true class. Its rows are the truth, its columns the prediction."""
    found: Mapping[str, Any] | None = metrics.get("confusion")
    if not found:
        return None
    names, matrix = list(found["class_names"]), np.array(found["matrix"], dtype=np.float64)
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)  # [C, C]
    mistakes = [
        (names[t], names[p], float(shares[t, p]))
        for t in range(len(names))
        for p in range(len(names))
        if t != p and shares[t, p] > 0
    ]
    pairs = sorted(mistakes, key=lambda pair: -pair[2])[:CONFUSIONS]
    rows = list(zip(names, shares.tolist(), strict=True)) if len(names) <= WIDEST_MATRIX else []
    return Confusion(names, rows, pairs)


def reliability(metrics: Metrics) -> Markup | None:
    """The diagram, where confidences were counted."""
    found: Mapping[str, Any] | None = metrics.get("calibration")
    if not found or not any(found["count"]):
        return None
    confidence, accuracy = ([number(v) for v in found[key]] for key in ("confidence", "accuracy"))
    return reliability_diagram(confidence, accuracy, found["count"], title="Reliability diagram")
