"""The flight recorder's page: what the pseudo-labels were like, epoch by epoch, with a slider to go through them.

It opens offline and asks nothing of the network. One script, which the page's own policy names by its hash, shows the epoch that
the slider stands at; where scripts are forbidden, the page shows the last.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from cwbass.data.base import DatasetSpec
from cwbass.evaluation.probes import VIRIDIS, ZONES, Frame, ProbeBook, frame_epochs
from cwbass.evaluation.sweep import Suggestion, Sweep
from cwbass.files import write_whole
from cwbass.headline import points
from cwbass.provenance import versions
from cwbass.reporting.charts import Series
from cwbass.reporting.curves import RETRAININGS, Figure, Row, draw_classes, draw_lines, draw_shares, number, points_of
from cwbass.reporting.images import file_uri
from cwbass.reporting.scores import percent
from cwbass.reporting.svg import NONE, join, tag
from cwbass.reporting.templates import template

SPARK_WIDTH, SPARK_HEIGHT = 100, 26  # user units of a histogram in the table
LINES = {
    "retention": "kept, of unlabelled pixels",
    "precision": "right, of kept ones",
    "interior_precision": "right, inside",
    "boundary_precision": "right, near boundaries",
    "disagreement": "student and teacher differ",
}
BY_CLASS = {
    "threshold": ("Threshold", "Labels of a class below this confidence are dropped. Mean over the epoch's steps."),
    "retention_per_class": ("Kept", "Share of the unlabelled pixels named as this class that may teach."),
    "interior_precision_per_class": (
        "Right, inside",
        "Of the pixels kept as this class away from boundaries, those that are it.",
    ),
    "boundary_precision_per_class": ("Right, near boundaries", "The same within 5 pixels of a boundary of the truth."),
    "pseudo_label_share": (
        "Share of the pseudo-labels",
        "Of all pixels that teach. The table above has the labelled share beside it.",
    ),
    "disagreement_per_class": (
        "Disagreement",
        "Of the pixels that the teacher names so, those that the student names otherwise.",
    ),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """An epoch that the slider can stand at."""

    name: str
    tiles: list[tuple[str, str]]  # name and number
    classes: list[tuple[str, list[str | Markup]]]  # name and cells of each


@dataclass(frozen=True, slots=True)
class Picture:
    """What a panel of a probe shows at a moment of the slider; None: at all of them."""

    moment: int | None
    uri: str
    note: str


def write_flight(
    path: Path,
    *,
    name: str,
    history: Sequence[Row],
    probes: ProbeBook | None,
    sweep: Sweep | None,
    spec: DatasetSpec,
) -> None:
    """Write the page, the same bytes for the same arguments; where something was not recorded, a sentence says so in its place.

    Args:
        path: The HTML file; its folder is made.
        name: Of the run, for the title.
        history: Rows of history.jsonl, in order.
        probes: Images that were looked at; None, or an empty book, where there were none.
        sweep: Over thresholds, after the warm-up; None where there is no selection slice.
        spec: Names and colours of the classes.
    """
    rows, starts = _recorded(history)
    shown = [rows[index] for index in sorted(frame_epochs(len(rows)))]
    script = files("cwbass.reporting").joinpath("flight.js").read_text(encoding="utf-8").strip()
    page = template("flight.html.j2").render(
        name=name,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        epochs=len(rows),
        moments=[_moment(row, spec) for row in shown],
        palette=list(zip(spec.class_names, spec.palette, strict=True)),
        probes=_draw_probes(probes or ProbeBook(), [row["step"] for row in shown]),
        zones=ZONES,
        viridis=VIRIDIS.astype(int).tolist(),
        starts=starts,
        figures=_figures(rows, [float(row["step"]) for row in shown], spec.class_names),
        sliced=any(row.get("selection_miou") is not None for row in history),
        sweep=sweep,
        overall=None if sweep is None else _cells(sweep.overall()),
        suggestions={} if sweep is None else {name: _cells(found) for name, found in sweep.classes().items()},
        sweep_figures=[] if sweep is None else _sweep_figures(sweep),
        percent=percent,
        versions=versions(),
    )
    write_whole(path, page.encode())


def _recorded(history: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """Epochs that taught by pseudo-labels, and where each retraining of a second stage begins.

    A retraining counts its own steps (``own_step`` of a row); ``step`` goes on from the stage before, so that one axis holds all.
    """
    rows: list[Row] = []
    starts: dict[str, int] = {}
    taken = 0
    for stage in ("train", *RETRAININGS):
        here = [row for row in history if row.get("stage") == stage]
        if here and stage in RETRAININGS:
            starts[RETRAININGS[stage]] = taken
        rows += [{**row, "step": taken + row["step"], "own_step": row["step"]} for row in here if row.get("seen_per_class")]
        taken += here[-1]["step"] if here else 0
    return rows, starts


def _moment(row: Row, spec: DatasetSpec) -> Moment:
    tiles = [
        ("Kept", percent(row.get("retention"))),
        ("Right, of kept", percent(row.get("precision"))),
        ("Right, inside", percent(row.get("interior_precision"))),
        ("Right, near", percent(row.get("boundary_precision"))),
        ("Mean confidence", percent(row.get("mean_confidence"))),
        ("Disagreement", percent(row.get("disagreement"))),
    ]
    stage = f"retraining {RETRAININGS[row['stage']]}, " if row["stage"] in RETRAININGS else ""
    return Moment(
        f"{stage}epoch {row['epoch'] + 1}, step {row['own_step']:,}",
        [tile for tile in tiles if tile[1] != NONE],
        [(name, _class_cells(row, index, name)) for index, name in enumerate(spec.class_names)],
    )


def _class_cells(row: Row, index: int, name: str) -> list[str | Markup]:
    def at(key: str) -> float | None:
        values = row.get(key)
        if isinstance(values, Sequence) and not isinstance(values, str):
            return number(values[index]) if index < len(values) else None
        return number(values) if key == "threshold" else None

    seen, kept, tau, gap = at("seen_per_class") or 0.0, at("kept_per_class") or 0.0, at("threshold"), at("student_gap_per_class")
    histogram = row["confidence_histogram"][index]
    return [
        compact(seen),
        compact(kept),
        compact(seen - kept),
        percent(at("retention_per_class")),
        NONE if tau is None else f"{tau:.2f}",
        _spark(histogram, tau, name) if seen else NONE,
        percent(at("precision_per_class")),
        percent(at("interior_precision_per_class")),
        percent(at("boundary_precision_per_class")),
        percent(at("pseudo_label_share")),
        percent(at("labeled_share")),
        percent(at("selection_iou_per_class")),
        NONE if gap is None else points(gap),
        percent(at("disagreement_per_class")),
    ]


def _spark(counts: Sequence[float], tau: float | None, name: str) -> Markup:
    """A histogram as wide as a word, its highest bar as high as there is room; a line where labels begin to be kept."""
    top, width = max(counts) or 1.0, SPARK_WIDTH / len(counts)
    heights = [(index, SPARK_HEIGHT * count / top) for index, count in enumerate(counts) if count]
    bars = "".join(
        f"M{index * width:g} {SPARK_HEIGHT}v-{max(0.5, height):.1f}h{width - 0.6:.3g}V{SPARK_HEIGHT}z"
        for index, height in heights
    )
    parts = [tag("path", class_="share", d=bars)]
    if tau is not None:
        parts.append(tag("line", class_="tau", x1=tau * SPARK_WIDTH, x2=tau * SPARK_WIDTH, y1=0, y2=SPARK_HEIGHT))
    low = sum(counts[: len(counts) // 2]) / sum(counts)
    label = f"Confidence of {name} from 0 to 100%; {low * 100:.0f}% of the pixels are below 50%"
    box = f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}"
    return tag("svg", join(parts), class_="spark", viewBox=box, preserveAspectRatio="none", role="img", aria_label=label)


def compact(count: float) -> str:
    """A number of pixels in four characters or so: 912, 45.3k, 1.07M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _draw_probes(book: ProbeBook, steps: Sequence[int]) -> list[tuple[str, str, list[tuple[str, str, list[Picture]]]]]:
    """Id, role and panels of each probe; a panel is its caption, its kind and its pictures."""
    drawn = []
    for index, probe in enumerate(book.probes):
        panels = [("Image", "photo", [Picture(None, file_uri(probe.image, "jpeg"), "")])]
        for caption, kind in (("Pseudo-label", "label"), ("Kept", "kept"), ("Confidence", "confidence"), ("Boundaries", "zones")):
            pictures = []
            for moment, step in enumerate(steps):
                if frames := _frames(book, step):
                    note = _kept(frames[index]) if kind == "kept" else ""
                    pictures.append(Picture(moment, file_uri(frames[index].pictures[kind], "png"), note))
            panels.append((caption, kind, pictures))
        if probe.truth is not None:
            panels.append(("Truth", "label", [Picture(None, file_uri(probe.truth, "png"), "")]))
        drawn.append((probe.id, probe.role, panels))
    return drawn


def _frames(book: ProbeBook, step: int) -> list[Frame] | None:
    """The newest by a step."""
    before = [at for at in book.frames if at <= step]
    return book.frames[max(before)] if before else None


def _kept(frame: Frame) -> str:
    return f"{percent(frame.kept)}%" + ("" if frame.right is None else f", {percent(frame.right)}% of it right")


def _figures(rows: Sequence[Row], cursor: Sequence[float], class_names: Sequence[str]) -> list[Figure]:
    if not rows:
        return []
    lines = [Series(name, points_of(rows, key)) for key, name in LINES.items()]
    near = "What is right is measured on the selection slice; near is within 5 pixels of a boundary of the truth."
    drawn = [
        draw_lines("All classes", near, lines, percent=True, otherwise="", cursor=cursor),
        *(draw_classes(*texts, rows, key, class_names, otherwise="", cursor=cursor) for key, texts in BY_CLASS.items()),
    ]
    return [figure for figure in drawn if isinstance(figure, Figure)]


def _cells(found: Suggestion) -> list[str]:
    return [f"{found.threshold:.2f}", percent(found.precision), percent(found.retention), f"{found.pixels:,}", found.reason]


def _sweep_figures(sweep: Sweep) -> list[Figure]:
    precision, retention = sweep.curves()
    right, kept = "Precision at each threshold", "Kept at each threshold"
    drawn = [
        draw_shares(
            title, caption, sweep.class_names, sweep.thresholds, values, x_label="threshold", otherwise="", y_range=(0, 1)
        )
        for title, caption, values in (
            (right, "Of the labels that would be kept, those that are right; a gap where none would be.", precision),
            (kept, "Share of the labels that would be kept.", retention),
        )
    ]
    return [figure for figure in drawn if isinstance(figure, Figure)]
