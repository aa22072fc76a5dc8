"""Charts as inline SVG: lines, bars, intervals, a reliability diagram, a heat strip.

Each returns a drawing and its legend. Series differ by colour and by dash pattern.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from cwbass.reporting.images import data_uri, heat
from cwbass.reporting.svg import (
    BOTTOM,
    COLORS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Plot,
    clip,
    dash,
    format_value,
    join,
    legend,
    nice_ticks,
    svg,
    tag,
    text,
)

MARKED_POINTS = 60  # a series with more has no dots to hover over
LABELS = 120  # user units left of bars and strips, for class names


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; a y of None breaks it."""

    name: str
    points: Sequence[tuple[float, float | None]]

    @property
    def last(self) -> float | None:
        """The last number there is."""
        return next((y for _, y in reversed(self.points) if y is not None), None)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds, and how sure it is."""

    name: str
    mean: float
    each: Sequence[float]  # of each seed
    over_seeds: tuple[float, float] | None  # bounds; None where they cannot be told
    over_images: tuple[float, float] | None = None

    def ends(self) -> list[float]:
        """What an axis must hold. Bounds from two seeds would leave no room for anything else."""
        return [self.mean, *self.each, *(self.over_images or ()), *((self.over_seeds or ()) if len(self.each) > 2 else ())]

    def __str__(self) -> str:
        kinds = (("over seeds", self.over_seeds), ("over test images", self.over_images))
        bounds = [f", {kind} {100 * ends[0]:.1f} to {100 * ends[1]:.1f}" for kind, ends in kinds if ends is not None]
        return f"{self.name}: {100 * self.mean:.1f}{''.join(bounds)}"


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    percent: bool,
    y_range: Sequence[float] = (),
    marker: tuple[float, str] | None = None,
    cursor: Sequence[float] = (),
) -> Markup:
    """Lines over a common x axis.

    Args:
        series: Holds at least one number in all.
        title: For screen readers; the page prints its own.
        x_label: Under the axis.
        percent: y is a fraction, printed in per cent.
        y_range: The y axis spans at least this.
        marker: x and text of a vertical line.
        cursor: Places of a vertical line that a script moves; it stands at the last.
    """
    xs = [x for line in series for x, _ in line.points] + list(cursor)
    ys = [y for line in series for _, y in line.points if y is not None] + list(y_range)
    if percent and min(ys) == max(ys):
        ys.append(0.0)  # an axis needs two ends, and a share has none above 100 %
    x_ticks = [tick for tick in nice_ticks(min(xs), max(xs)) if min(xs) <= tick <= max(xs)]
    y_ticks = nice_ticks(min(ys), max(ys))
    plot = Plot(min(xs), max(xs), y_ticks[0], y_ticks[-1])
    parts = [plot.axes(x_ticks, y_ticks, x_percent=False, y_percent=percent, x_label=x_label)]
    if marker is not None:
        x = plot.x(marker[0])
        parts.append(tag("line", class_="marker", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
        parts.append(text(marker[1], x + 4, TOP - 4))
    parts += [_line(plot, line, index, percent=percent) for index, line in enumerate(series)]
    if cursor:
        parts.append(_cursor([plot.x(x) for x in cursor], HEIGHT - BOTTOM))
    summary = "; ".join(f"{line.name}: {format_value(line.last, percent=percent)} at the end" for line in series)
    keys = [
        (tag("line", class_=f"line s{i % COLORS}", stroke_dasharray=dash(i), x2=26, y1=4, y2=4), s.name)
        for i, s in enumerate(series)
    ]
    return svg(title, summary, parts) + legend(keys)


def bar_chart(labels: Sequence[str], groups: Sequence[tuple[str, Sequence[float | None]]], *, title: str) -> Markup:
    """Horizontal bars: one cluster a label, one bar a group.

    Args:
        labels: One a cluster, from the top.
        groups: Name, and a fraction in [0, 1] for each label; None is written as "absent".
        title: For screen readers.
    """
    thick, gap, bottom = 9, 9, 22  # user units
    cluster = thick * len(groups) + gap
    height = TOP + cluster * len(labels) + bottom
    scale = WIDTH - LABELS - 48  # user units of 100 %
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LABELS + tick * scale
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=height - bottom))
        parts.append(text(f"{tick * 100:g}%", x, height - bottom + 15, anchor="middle"))
    for row, label in enumerate(labels):
        top = TOP + row * cluster + gap / 2
        parts.append(_row_label(label, top + thick * len(groups) / 2 + 4))
        for index, (name, values) in enumerate(groups):
            y, value = top + index * thick, values[row]
            if value is None:
                parts.append(text("absent", LABELS + 4, y + thick - 1))
                continue
            hint = tag("title", f"{label}, {name}: {format_value(value, percent=True)}")
            parts.append(
                tag(
                    "rect", hint, class_=f"bar b{index}", x=LABELS, y=y, width=round(max(0.5, value * scale), 2), height=thick - 1
                )
            )
            parts.append(text(f"{value * 100:.1f}", LABELS + value * scale + 4, y + thick - 1.5, kind="value"))
    keys = [(tag("rect", class_=f"bar b{index}", width=26, height=8), name) for index, (name, _) in enumerate(groups)]
    return svg(title, f"{len(labels)} classes; the table of classes holds the numbers", parts, height=height) + legend(keys)


def interval_chart(rows: Sequence[Estimate], *, title: str, x_label: str, scale: tuple[float, float]) -> Markup:
    """A row for each name, from the top: rings for seeds, a dot for their mean, a bar for each kind of interval.

    A bar that runs out of the axis ends there in an arrow. Where there are differences, a line stands at 0.

    Args:
        rows: Their numbers are fractions.
        title: For screen readers.
        x_label: Under the axis.
        scale: Of what is drawn: the axis does not go beyond.
    """
    row, bottom = 18, 38  # user units
    height = TOP + row * len(rows) + bottom
    zero = scale[0] < 0
    ends = [min(max(end, scale[0]), scale[1]) for each in rows for end in each.ends()] + ([0.0] if zero else [])
    ticks = nice_ticks(min(ends), max(ends))
    unit = (WIDTH - LABELS - RIGHT) / (ticks[-1] - ticks[0])

    def x(value: float) -> float:
        return round(LABELS + (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) * unit, 2)

    def bar(low: float, high: float, y: float, kind: str) -> Iterator[Markup]:
        yield tag("line", class_=kind, x1=x(low), x2=x(high), y1=y, y2=y)
        if low < ticks[0]:
            yield tag("path", class_="interval", d=f"M{x(low) + 5:g} {y - 3:g}l-5 3l5 3")
        if high > ticks[-1]:
            yield tag("path", class_="interval", d=f"M{x(high) - 5:g} {y - 3:g}l5 3l-5 3")

    parts = [text(x_label, (LABELS + WIDTH - RIGHT) / 2, height - 7, anchor="middle")]
    for tick in ticks:
        parts.append(tag("line", class_="grid", x1=x(tick), x2=x(tick), y1=TOP, y2=height - bottom))
        parts.append(text(f"{100 * tick:g}", x(tick), height - bottom + 15, anchor="middle"))
    if zero:
        parts.append(tag("line", class_="marker", x1=x(0), x2=x(0), y1=TOP, y2=height - bottom))
    for index, each in enumerate(rows):
        y = TOP + row * index + row / 2
        parts.append(_row_label(each.name, y + 4))
        if each.over_images is not None:
            parts += bar(*each.over_images, y, "interval thick")
        if each.over_seeds is not None:
            parts += bar(*each.over_seeds, y, "interval")
        parts += [tag("circle", class_="ring", cx=x(value), cy=y, r=3) for value in each.each]
        parts.append(tag("circle", tag("title", str(each)), class_="dot s0", cx=x(each.mean), cy=y, r=3.5))
    keys = [
        (tag("circle", class_="dot s0", cx=13, cy=4, r=3.5), "mean"),
        (tag("circle", class_="ring", cx=13, cy=4, r=3), "each seed"),
        (tag("line", class_="interval", x2=26, y1=4, y2=4), "95 % over seeds"),
        (tag("line", class_="interval thick", x2=26, y1=4, y2=4), "95 % over test images"),
    ]
    summary = "; ".join(f"{each.name}: {100 * each.mean:.1f}" for each in rows)
    return svg(title, summary, parts, height=height) + legend(keys[: 4 if zero else 3])


def reliability_diagram(
    confidence: Sequence[float | None], accuracy: Sequence[float | None], count: Sequence[float], *, title: str
) -> Markup:
    """Accuracy over confidence; below the diagonal, a model promises more than it keeps.

    Args:
        confidence: Mean of each bin, in [0, 1]; None where the bin is empty.
        accuracy: Share of right pixels of each bin, in [0, 1]; None where the bin is empty.
        count: Pixels of each bin.
        title: For screen readers.
    """
    bins = [(c, a, n) for c, a, n in zip(confidence, accuracy, count, strict=True) if c is not None and a is not None and n > 0]
    total = sum(n for *_, n in bins) or 1.0
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    plot = Plot(0, 1, 0, 1)
    parts = [plot.axes(ticks, ticks, x_percent=True, y_percent=True, x_label="confidence")]
    width = (WIDTH - LEFT - RIGHT) / len(count)
    for index, pixels in enumerate(count):
        top = plot.y(pixels / total)
        hint = tag("title", f"{format_value(pixels / total, percent=True)} of the pixels")
        parts.append(
            tag("rect", hint, class_="share", x=LEFT + index * width + 1, y=top, width=width - 2, height=plot.y(0) - top)
        )
    parts.append(tag("line", class_="marker", x1=plot.x(0), y1=plot.y(0), x2=plot.x(1), y2=plot.y(1)))
    parts.append(_line(plot, Series("accuracy", [(c, a) for c, a, _ in bins]), 0, percent=True))
    keys = [
        (tag("line", class_="line s0", x2=26, y1=4, y2=4), "accuracy"),
        (tag("line", class_="marker", x2=26, y1=4, y2=4), "perfectly calibrated"),
        (tag("rect", class_="share", width=26, height=8), "share of the pixels"),
    ]
    gap = sum(n * abs(c - a) for c, a, n in bins) / total
    return svg(title, f"mean gap of confidence and accuracy {gap * 100:.1f} points", parts) + legend(keys)


def heat_strip(
    labels: Sequence[str],
    xs: Sequence[float],
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    x_label: str,
    cursor: Sequence[float] = (),
) -> Markup:
    """Fractions over time where there are too many classes for lines: a row a class, a column a measurement.

    Args:
        labels: One a row, from the top.
        xs: One a column.
        values: In [0, 1], by row and column; None is grey.
        title: For screen readers.
        x_label: Under the axis.
        cursor: Places of a vertical line that a script moves; it stands at the last, in the newest column by then.
    """
    row = 14  # user units
    height, width = TOP + row * len(labels) + BOTTOM, WIDTH - LABELS - RIGHT
    grid = np.array([[math.nan if v is None else v for v in line] for line in values], dtype=np.float32)
    picture = data_uri(heat(grid), photo=False)
    parts = [tag("image", x=LABELS, y=TOP, width=width, height=row * len(labels), preserveAspectRatio="none", href=picture)]
    for index, label in enumerate(labels):
        last = format_value(Series(label, [(0, v) for v in values[index]]).last, percent=True)
        parts.append(_row_label(label, TOP + row * index + 11, f"{label}: {last} at the end"))
    parts.append(text(f"{xs[0]:,g}", LABELS, height - BOTTOM + 15))
    parts.append(text(f"{xs[-1]:,g}", LABELS + width, height - BOTTOM + 15, anchor="end"))
    parts.append(text(x_label, LABELS + width / 2, height - 7, anchor="middle"))
    if cursor:
        columns = [max(bisect_right(xs, x), 1) - 0.5 for x in cursor]
        parts.append(_cursor([round(LABELS + column / len(xs) * width, 2) for column in columns], TOP + row * len(labels)))
    bar = data_uri(heat(np.linspace(0, 1, 64, dtype=np.float32)[None]), photo=False)
    scale = legend(
        [(tag("image", href=bar, width=26, height=8, preserveAspectRatio="none"), "from 0% (violet) to 100% (yellow)")]
    )
    return svg(title, f"{len(labels)} classes, {len(xs)} measurements", parts, height=height) + scale


def _row_label(name: str, y: float, hint: str = "") -> Markup:
    """A name left of its row; all of it, or ``hint``, is shown when it is pointed at."""
    shown = join([escape(clip(name, 18)), tag("title", hint or name)])
    return text(shown, LABELS - 6, y, kind="label", anchor="end")


def _cursor(places: Sequence[float], bottom: float) -> Markup:
    at = " ".join(f"{place:g}" for place in places)
    return tag("line", class_="cursor", x1=places[-1], x2=places[-1], y1=TOP, y2=bottom, data_at=at)


def _line(plot: Plot, series: Series, index: int, *, percent: bool) -> Markup:
    """A polyline for each unbroken run, and dots that show their number when pointed at."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in series.points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    color = f"s{index % COLORS}"
    parts = [
        tag(
            "polyline",
            class_=f"line {color}",
            stroke_dasharray=dash(index),
            points=" ".join(f"{plot.x(x):g},{plot.y(y):g}" for x, y in run),
        )
        for run in runs
        if run
    ]
    points = [point for run in runs for point in run]
    if len(points) <= MARKED_POINTS:
        for x, y in points:
            hint = tag("title", f"{series.name}, {x:,g}: {format_value(y, percent=percent)}")
            parts.append(tag("circle", hint, class_=f"dot {color}", cx=plot.x(x), cy=plot.y(y), r=2.2))
    return join(parts)
