"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwbass.errors import counted
from cwbass.headline import DASH, certainty, false_classes, percent, score_table, scored_on

if TYPE_CHECKING:  # torch takes seconds to load, and a table does not need it
    from cwbass.data.check import CheckReport
    from cwbass.doctor import Diagnosis
    from cwbass.evaluation.sweep import Sweep


def print_scores(metrics: Mapping[str, Any], report: Path | None) -> None:
    """The model beside its baseline: mIoU, boundary IoU, every class; in per cent."""
    console = Console()
    found = score_table(metrics)
    table = Table(*found.header, title=scored_on(metrics))
    for column in table.columns[1:]:
        column.justify = "right"
    for section in (found.scores, found.classes):
        for row in section:
            table.add_row(*map(Text, row))
        table.add_section()
    console.print(table)
    if (sure := certainty(metrics)) is not None:
        console.print(Text(sure))
    if metrics.get("absent_classes"):
        console.print(Text(f"absent from the test split: {', '.join(metrics['absent_classes'])}"))
    if false := false_classes(metrics):
        console.print(Text(f"absent, but predicted there, so 0 in the mean: {', '.join(false)}"))
    if len(metrics.get("checkpoints", {})) > 1:
        others = Table("checkpoint", "mIoU", title="All checkpoints, test split")
        for name, scores in metrics["checkpoints"].items():
            others.add_row(Text(name), percent(scores["miou"]))
        console.print(others)
    if report is not None:
        console.print(Text(f"report: {report}"), soft_wrap=True)


def print_findings(report: CheckReport, root: Path) -> None:
    """What is wrong with a dataset, errors first."""
    console = Console(stderr=True)
    if not report.findings:
        console.print(Text(f"{root}: no problem found in {counted(report.images, 'image')} and {counted(report.masks, 'mask')}"))
        return
    table = Table("", "kind", "file", "what, and how to mend it", title=str(root))
    for finding in (*report.errors, *report.warnings):
        table.add_row(finding.severity, finding.kind, Text(finding.file or DASH), Text(finding.message))
    console.print(table)
    for finding in report.errors:
        if "yaml" in finding.details:  # below the table, whose borders would be copied along
            console.print(Text(finding.details["yaml"]), soft_wrap=True)


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
    title = f"{source['network']} after {counted(source['step'], 'step')}"
    table = Table("", "threshold", "precision", "kept", "pixels", "why", title=title)
    for column in table.columns[1:5]:
        column.justify = "right"
    for number, (name, found) in enumerate([("all classes", sweep.overall()), *sweep.classes().items()]):
        numbers = (f"{found.threshold:.2f}", percent(found.precision), percent(found.retention), f"{found.pixels:,}")
        table.add_row(Text(name), *numbers, Text(found.reason), end_section=number == 0)
    console.print(table)
    images = counted(source["images"], "image")
    console.print(Text(f"measured on the selection slice of split {source['split_hash'][:12]}, {images}"))
