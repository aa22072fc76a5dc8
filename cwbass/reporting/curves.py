"""The history of a run as charts, each with a sentence on how to read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cwbass.reporting.charts import Series, heat_strip, line_chart
from cwbass.reporting.svg import COLORS

Row = Mapping[str, Any]  # a row of history.jsonl

STAGES = {"warmup": "warm-up", "baseline": "supervised only", "train": "semi-supervised"}
RETRAININGS = {"retrain_reliable": "on reliable images", "retrain_all": "on all images"}  # each counts its own steps from 0
LOSSES = {"loss": "total", "loss_sup": "supervised", "loss_unsup": "unsupervised", "loss_boundary": "boundary"}
FILTER = {"retention": "retention", "mean_confidence": "mean confidence", "precision": "precision"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading and what it shows."""

    title: str
    caption: str
    body: Markup


@dataclass(frozen=True, slots=True)
class Curves:
    """The figures there are, and a sentence for each that there is not."""

    figures: tuple[Figure, ...]
    missing: tuple[str, ...]


def number(value: object) -> float | None:
    """A finite number, or None: rows may lack a value or hold NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def draw_curves(history: Sequence[Row], class_names: Sequence[str]) -> Curves:
    """Draw what ``history`` holds. Rows without a step are left out; x is the optimiser step.

    Args:
        history: Rows of history.jsonl, in order.
        class_names: Names of the C classes.
    """
    rows = [row for row in history if number(row.get("step")) is not None]
    stages = {stage: [row for row in rows if row.get("stage") == stage] for stage in (*STAGES, *RETRAININGS)}
    start = (float(stages["warmup"][-1]["step"]), "warm-up ends") if stages["warmup"] and stages["train"] else None
    main = stages["warmup"] + stages["train"]  # one run; the baseline is a branch of it
    drawn = [
        draw_lines(
            "Loss terms", "Mean of each epoch, warm-up included; the unsupervised term contains the boundary term.",
            [Series(name, points_of(main, key)) for key, name in LOSSES.items()], percent=False, marker=start,
            otherwise="The history holds no losses.",
        ),
        draw_lines(
            "mIoU on the selection slice",
            "Measured on labelled images held out from training, never on the test set. Both branches continue one warm-up.",
            _selection(stages), percent=True, marker=start,
            otherwise="No selection slice: mIoU was not measured during training, and the last checkpoint counts.",
        ),
        draw_lines(
            "Pseudo-labels: how many, how sure, how right",
            "Retention is the share of unlabelled pixels that teach; precision is the share of kept pixels that are right, "
            "measured on the selection slice. Retention that rises while precision falls is the mark of a collapse.",
            [Series(name, points_of(stages["train"], key)) for key, name in FILTER.items()], percent=True,
            otherwise="No retention or confidence: the history holds no semi-supervised epoch.",
        ),
        draw_classes(
            "Threshold of each class", "Pseudo-labels of a class below this confidence are rejected.",
            stages["train"], "threshold", class_names, otherwise="The method records no threshold.",
        ),
        draw_classes(
            "Retention of each class", "A class near 0% learns nothing from unlabelled images.",
            stages["train"], "retention_per_class", class_names, y_range=(0,), otherwise="Retention was not recorded by class.",
        ),
        draw_classes(
            "Precision of each class", "Of the pixels kept as this class on the selection slice, the share that is this class.",
            stages["train"], "precision_per_class", class_names, otherwise="Precision was not recorded by class.",
        ),
        draw_lines(
            "Waiting for data", "Share of the time in which the network waits for the loader; above 30%, add workers or a cache.",
            [Series(name, points_of(stages[stage], "data_wait")) for stage, name in STAGES.items()], percent=True, y_range=(0, 0.3),
            otherwise="Waiting for data was not recorded.",
        ),
    ]  # fmt: skip
    if any(stages[stage] for stage in RETRAININGS):
        drawn += _second_stage(stages)
    missing = [figure for figure in drawn if isinstance(figure, str)]
    if stages["train"] and not points_of(stages["train"], "precision"):
        if not any(line.points for line in _selection(stages)):
            missing.append("No selection slice: precision of the pseudo-labels was not measured.")
        elif points_of(stages["train"], "retention"):
            missing.append("No label of the selection slice was kept: of precision there is none.")
    return Curves(tuple(figure for figure in drawn if isinstance(figure, Figure)), tuple(dict.fromkeys(missing)))


def points_of(rows: Iterable[Row], key: str) -> list[tuple[float, float | None]]:
    """Step and value of the rows that have the key; empty where no value is a number."""
    points = [(float(row["step"]), number(row[key])) for row in rows if key in row]
    return points if any(y is not None for _, y in points) else []


def _selection(stages: Mapping[str, Sequence[Row]]) -> list[Series]:
    """mIoU of every stage; the branches begin where the warm-up ends."""
    warmup = points_of(stages["warmup"], "selection_miou")
    series = [Series(STAGES["warmup"], warmup)]
    for stage, key, name in (
        ("baseline", "selection_miou", STAGES["baseline"]),
        ("train", "selection_miou", STAGES["train"]),
        ("train", "selection_miou_student", "its student"),
    ):
        points = points_of(stages[stage], key)
        series.append(Series(name, warmup[-1:] + points if points else []))
    return series


def _second_stage(stages: Mapping[str, Sequence[Row]]) -> list[Figure | str]:
    """The two trainings on labels made offline."""
    both = [(stages[stage], name) for stage, name in RETRAININGS.items()]
    return [
        draw_lines(
            "Second stage: loss terms", "Mean of each epoch; both trainings begin anew, and count their own steps.",
            [Series(f"{term}, {name}", points_of(rows, key)) for key, term in LOSSES.items() for rows, name in both], percent=False,
            otherwise="The second stage's rows hold no losses.",
        ),
        draw_lines(
            "Second stage: mIoU on the selection slice", "The training on all images is the run's result.",
            [Series(name, points_of(rows, "selection_miou")) for rows, name in both], percent=True,
            otherwise="No selection slice: mIoU was not measured during the second stage.",
        ),
        draw_lines(
            "Second stage: retention", "Share of the offline labels' pixels that teach.",
            [Series(name, points_of(rows, "retention")) for rows, name in both], percent=True,
            otherwise="The second stage's rows hold no retention.",
        ),
    ]  # fmt: skip


def draw_lines(
    title: str,
    caption: str,
    series: Sequence[Series],
    *,
    percent: bool,
    otherwise: str,
    y_range: Sequence[float] = (),
    marker: tuple[float, str] | None = None,
    cursor: Sequence[float] = (),
    x_label: str = "optimiser step",
) -> Figure | str:
    """A chart of the series that have points; the sentence ``otherwise`` where none has. The rest is of ``line_chart``."""
    filled = [line for line in series if line.points]
    if not filled:
        return otherwise
    body = line_chart(filled, title=title, x_label=x_label, percent=percent, y_range=y_range, marker=marker, cursor=cursor)
    return Figure(title, caption, body)


def draw_classes(
    title: str,
    caption: str,
    rows: Sequence[Row],
    key: str,
    class_names: Sequence[str],
    *,
    otherwise: str,
    y_range: Sequence[float] = (),
    cursor: Sequence[float] = (),
) -> Figure | str:
    """What rows hold of each class; one line where it is one number for all."""
    rows = [row for row in rows if row.get(key) is not None]
    by_class = [row for row in rows if isinstance(row[key], Sequence)]
    if not by_class:
        everyone = [Series("all classes", points_of(rows, key))]
        return draw_lines(title, caption, everyone, percent=True, y_range=y_range, otherwise=otherwise, cursor=cursor)
    xs = [float(row["step"]) for row in by_class]
    values = [[number(row[key][c]) if c < len(row[key]) else None for row in by_class] for c in range(len(class_names))]
    return draw_shares(title, caption, class_names, xs, values, otherwise=otherwise, y_range=y_range, cursor=cursor)


def draw_shares(
    title: str,
    caption: str,
    class_names: Sequence[str],
    xs: Sequence[float],
    values: Sequence[Sequence[float | None]],
    *,
    otherwise: str,
    y_range: Sequence[float] = (),
    cursor: Sequence[float] = (),
    x_label: str = "optimiser step",
) -> Figure | str:
    """Fractions by class and x: lines for few classes, a heat strip for many."""
    if len(class_names) > COLORS:
        return Figure(title, caption, heat_strip(class_names, xs, values, title=title, x_label=x_label, cursor=cursor))
    series = [
        Series(name, list(zip(xs, line, strict=True)))
        for name, line in zip(class_names, values, strict=True)
        if any(v is not None for v in line)
    ]
    return draw_lines(title, caption, series, percent=True, otherwise=otherwise, y_range=y_range, cursor=cursor, x_label=x_label)
