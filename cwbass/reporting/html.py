"""A run as one HTML file: what was reached, how it was measured, and what it looks like.

The page carries its style and images, needs no script, and forbids itself every request, so
that it opens offline, from an attachment, and in the sandboxed viewer of a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwbass.data.base import DatasetSpec
from cwbass.files import write_whole
from cwbass.headline import certainty, false_classes, has_supervised_baseline
from cwbass.provenance import versions
from cwbass.reporting import scores
from cwbass.reporting.curves import Row, draw_curves, number
from cwbass.reporting.findings import find_concerns
from cwbass.reporting.gallery import GalleryItem, draw_panels
from cwbass.reporting.images import BOTH_WRONG, BROKEN, FIXED
from cwbass.reporting.svg import NONE
from cwbass.reporting.templates import template

EPOCH_COLUMNS = {
    "stage": "Stage", "epoch": "Epoch", "step": "Step", "lr": "Rate", "seconds": "Seconds", "loss": "Loss",
    "selection_miou": "Selection mIoU", "retention": "Retention", "precision": "Precision", "mean_confidence": "Confidence",
    "unsup_weight": "Unsup. weight", "data_wait": "Data wait", "nonfinite": "Skipped",
}  # fmt: skip
SHARES = {"selection_miou", "retention", "precision", "mean_confidence", "data_wait"}


def write_report(
    path: Path,
    *,
    name: str,
    metrics: Mapping[str, Any],
    history: Sequence[Row],
    gallery: Sequence[GalleryItem],
    spec: DatasetSpec,
    params_text: str,
    flight: str | None = None,
) -> None:
    """Write the report, the same bytes for the same arguments; where numbers are missing, a sentence says so in their place.

    Args:
        path: The HTML file; its folder is made.
        name: Of the run, for the title.
        metrics: Content of metrics.json; every key is optional, scores are fractions. ``split`` has ``counts`` (images by part) and
            ``notes`` (sentences), both optional.
        history: Rows of history.jsonl, in order; empty where nothing was trained.
        gallery: Images to show, at most about 100 KB each.
        spec: Names and colours of the classes.
        params_text: The parameters in full, as YAML.
        flight: Name of the flight recorder's page, in the same folder; None where there is none.

    Raises:
        DataError: A map of the gallery does not fit its image or the classes.
    """
    ours, theirs = scores.ours(metrics), scores.theirs(metrics)
    split: Mapping[str, Any] = metrics.get("split") or {}
    has_baseline = number(metrics.get("baseline_miou")) is not None
    score_names, checkpoints = scores.checkpoint_table(metrics)
    page = template("report.html.j2").render(
        name=name,
        ours=ours if has_baseline else "model",
        theirs=theirs,
        verdict=scores.verdict(metrics),
        certainty=certainty(metrics),
        tiles=scores.tiles(metrics),
        facts=scores.facts(metrics),
        has_baseline=has_baseline,
        has_supervised_baseline=has_supervised_baseline(metrics),
        score_table=scores.score_table(metrics),
        class_table=scores.class_table(metrics),
        class_chart=scores.class_chart(metrics),
        absent_classes=metrics.get("absent_classes") or [],
        false_classes=false_classes(metrics),
        score_names=score_names,
        checkpoints=checkpoints,
        concerns=find_concerns(history, spec.class_names),
        curves=draw_curves(history, spec.class_names),
        epochs=_epoch_table(history),
        confusion=scores.confusion(metrics),
        reliability=scores.reliability(metrics),
        gallery=[(item.title, list(draw_panels(item, spec, ours, theirs))) for item in gallery],
        palette=list(zip(spec.class_names, spec.palette, strict=True)),
        changes={"mended": FIXED, "broken": BROKEN, "wrong in both": BOTH_WRONG},
        split_counts=split.get("counts") or {},
        split_notes=split.get("notes") or [],
        params_text=params_text,
        flight=flight,
        versions=versions(),
    )
    write_whole(path, page.encode())


def _epoch_table(history: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the history, without the columns that no row fills."""
    keys = [key for key in EPOCH_COLUMNS if any(row.get(key) is not None for row in history)]
    heads = [EPOCH_COLUMNS[key] + (", %" if key in SHARES else "") for key in keys]
    return heads, [[_cell(key, row.get(key)) for key in keys] for row in history]


def _cell(key: str, value: object) -> str:
    if key in SHARES:
        return scores.percent(value)
    found = number(value)
    if found is None:
        return NONE if value is None else str(value)
    return f"{found:,.0f}" if found.is_integer() else f"{found:.3g}"
