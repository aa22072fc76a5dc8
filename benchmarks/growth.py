"""Time and memory of a training step as its work grows, drawn for docs/performance.md.

    python -m benchmarks.growth batch size classes unlabeled    # measure; each takes a minute or two
    python -m benchmarks.growth --draw                          # docs/images/growth-*.svg from what was measured

One setting changes, the others stay: the network of ``step.lite0``, 11 classes, 4 + 4 images of 96 pixels. Times are
medians of a few steps, taken in turn with the network's passes alone and with the plain implementation; memory is the peak
of a process of its own (``benchmarks.peak``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.cases import Case, lite0, network_passes, published, whole_step
from benchmarks.peak import peaks_of_steps
from benchmarks.plain import plain_step
from cwbass.reporting.svg import HEIGHT, WIDTH, Plot, join, nice_ticks, tag, text

FOLDER = Path("docs/images")
MEASURED = FOLDER / "growth.json"
SIZE, REPEATS = 96, 3


@dataclass(frozen=True, slots=True)
class Axis:
    """What grows."""

    label: str
    values: tuple[int, ...]
    settings: tuple[str, ...]  # fields of a case that take the value


AXES = {
    "batch": Axis("images of each kind in a batch", (1, 2, 4, 8, 16), ("labeled", "unlabeled")),
    "size": Axis("side of the crop, pixels", (64, 96, 128, 160, 192), ("size",)),
    "classes": Axis("classes", (2, 21, 60, 150), ("classes",)),
    "unlabeled": Axis("unlabelled images beside 4 labelled ones", (1, 2, 4, 8, 16), ("unlabeled",)),
}
PLAIN, OURS, PASSES = "plain implementation", "cwbass", "network's passes alone"
COLORS = {PLAIN: "#c2571a", OURS: "#1f77b4", PASSES: "#7a7a7a"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", choices=(*AXES, []), metavar="AXIS", help=", ".join(AXES))
    parser.add_argument("--draw", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.axes:
        found[name] = measure(AXES[name])
        MEASURED.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.draw:
        for name, measured in found.items():
            (FOLDER / f"growth-{name}.svg").write_text(draw(AXES[name], measured))


def measure(axis: Axis) -> dict[str, dict[str, list[float]]]:
    """Milliseconds and megabytes by what was measured, one for each value of the axis."""
    case = replace(lite0(), size=SIZE)
    spent: dict[str, list[float]] = {PLAIN: [], OURS: [], PASSES: []}
    for value in axis.values:
        for name, seconds in times(replace(case, **dict.fromkeys(axis.settings, value))).items():
            spent[name].append(round(1e3 * seconds, 1))
    words = [" ".join(["lite0", f"size={SIZE}", *(f"{setting}={value}" for setting in axis.settings)]) for value in axis.values]
    peaks = [round(peak) for peak in peaks_of_steps(*(f"{which} {each}" for which in ("plain", "default") for each in words))]
    return {"ms": spent, "MB": {PLAIN: peaks[: len(words)], OURS: peaks[len(words) :]}}


def times(case: Case) -> dict[str, float]:
    """Median seconds of a step, its network's passes, and a plain step."""
    method = case.method()
    calls: dict[str, Callable[[], None]] = {
        OURS: whole_step(case, method),
        PASSES: network_passes(case, method),
        PLAIN: plain_step(published(case)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(own) for name, own in seconds.items()}


def draw(axis: Axis, measured: dict[str, dict[str, list[float]]]) -> Markup:
    """Two charts side by side: milliseconds and megabytes."""
    charts = [
        tag("svg", _chart(axis, f"{what} a step", measured[unit]), x=place * WIDTH, width=WIDTH, height=HEIGHT)
        for place, (what, unit) in enumerate((("milliseconds", "ms"), ("megabytes", "MB")))
    ]
    keys = [
        join([tag("rect", x=60 + 220 * i, y=HEIGHT + 6, width=14, height=4, fill=color), text(name, 80 + 220 * i, HEIGHT + 12)])
        for i, (name, color) in enumerate(COLORS.items())
    ]
    style = tag("style", Markup("text{font:12px sans-serif;fill:#808080}.grid{stroke:#80808040}"))
    return tag(
        "svg", join([style, *charts, *keys]), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {2 * WIDTH} {HEIGHT + 20}"
    ) + Markup("\n")


def _chart(axis: Axis, title: str, lines: dict[str, list[float]]) -> Markup:
    ticks = nice_ticks(0, max(value for line in lines.values() for value in line))
    plot = Plot(0, axis.values[-1], 0, ticks[-1])
    parts = [text(title, 46, 11), plot.axes(axis.values, ticks, x_percent=False, y_percent=False, x_label=axis.label)]
    for name, values in lines.items():
        points = [(plot.x(x), plot.y(y)) for x, y in zip(axis.values, values, strict=True)]
        parts.append(_line(points, COLORS[name]))
    return join(parts)


def _line(points: Sequence[tuple[float, float]], color: str) -> Markup:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    dots = [tag("circle", cx=x, cy=y, r=2.5, fill=color) for x, y in points]
    return join([tag("polyline", points=path, fill="none", stroke=color, stroke_width=2), *dots])


if __name__ == "__main__":
    main()
