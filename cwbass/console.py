"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # torch takes seconds to load, and a table does not need it
    from cwbass.data.check import CheckReport
    from cwbass.doctor import Diagnosis
    from cwbass.evaluation.sweep import Sweep

DASH = "-"


def print_scores(metrics: Mapping[str, Any], report: Path | None) -> None:
    """Supervised-only against the model: mIoU, boundary IoU, every class; in per cent."""
    console = Console()
    compared = metrics.get("baseline_miou") is not None
    columns = ["", *(["supervised"] if compared else []), "cwbass" if compared else "model", *(["gain"] if compared else [])]
    table = Table(
        *columns, title=f"Test split {str(metrics['split_hash'])[:12]}, {metrics['images']} images, {metrics['protocol']}"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for key, name in (
        ("miou", "mIoU"),
        ("boundary_iou", "boundary IoU"),
        ("boundary_f1_3px", "boundary F1, 3 px"),
        ("pixel_accuracy", "pixel accuracy"),
        ("ece", "calibration error"),
    ):
        _row(table, name, metrics.get(f"baseline_{key}"), metrics.get(key), compared)
    table.add_section()
    for name, row in metrics["per_class"].items():
        _row(table, name, row.get("baseline_iou"), row["iou"], compared)
    console.print(table)
    if metrics.get("absent_classes"):
        console.print(Text(f"absent from the test split: {', '.join(metrics['absent_classes'])}"))
    if len(metrics.get("checkpoints", {})) > 1:
        others = Table("checkpoint", "mIoU", title="All checkpoints, test split")
        for name, scores in metrics["checkpoints"].items():
            others.add_row(Text(name), _percent(scores["miou"]))
        console.print(others)
    if report is not None:
        console.print(Text(f"report: {report}"), soft_wrap=True)


def print_findings(report: CheckReport, root: Path) -> None:
    """What is wrong with a dataset, errors first."""
    console = Console(stderr=True)
    if not report.findings:
        console.print(Text(f"{root}: no problem found"))
        return
    table = Table("", "kind", "file", "what, and how to mend it", title=str(root))
    for finding in (*report.errors, *report.warnings):
        table.add_row(finding.severity, finding.kind, Text(finding.file or DASH), Text(finding.message))
    console.print(table)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """What this machine has, and how to mend what it lacks."""
    table = Table("", "what", "seen", "mend")
    for check in diagnosis.checks:
        table.add_row(check.status, check.name, Text(check.value), Text(check.mend))
    Console().print(table)


def print_thresholds(sweep: Sweep) -> None:
    """A threshold for each class and for all, what it would keep, how right that is on the slice, and why this one; in per cent."""
    console = Console()
    source = sweep.source
    table = Table(
        "", "threshold", "precision", "kept", "pixels", "why", title=f"{source['network']} after {source['step']} steps"
    )
    for column in table.columns[1:5]:
        column.justify = "right"
    for number, (name, found) in enumerate([("all classes", sweep.overall()), *sweep.classes().items()]):
        numbers = (f"{found.threshold:.2f}", _percent(found.precision), _percent(found.retention), f"{found.pixels:,}")
        table.add_row(Text(name), *numbers, Text(found.reason), end_section=number == 0)
    console.print(table)
    console.print(Text(f"measured on the selection slice of split {source['split_hash'][:12]}, {source['images']} images"))


def _row(table: Table, name: str, before: float | None, after: float | None, compared: bool) -> None:
    if not compared:
        table.add_row(Text(name), _percent(after))
        return
    gain = DASH if before is None or after is None else f"{100 * (after - before):+.1f}"
    table.add_row(Text(name), _percent(before), _percent(after), gain)


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}"
