"""A comparison as one HTML page: opens offline, needs no script, and forbids itself every request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cwbass.comparison.sheets import Numbers, budget, notes, sheets, summary
from cwbass.reporting.charts import Series, interval_chart, line_chart
from cwbass.reporting.curves import Figure
from cwbass.reporting.html import template


def draw_page(table: Numbers) -> str:
    """The page of a comparison.

    Args:
        table: From ``tabulate``.
    """
    return template("compare.html.j2").render(
        summary=summary(table),
        notes=notes(table),
        facts={
            "Budget": budget(table),
            "Protocol": table["protocol"],
            "Test images": f"{table['test_images']:,}",
            "Compared with": table["reference"],
            "Code": ", ".join(table["code"]),
        },
        labels=[(name, found, sheets(found, table), _figures(found, table)) for name, found in table["labels"].items()],
        by_labels=_by_labels(table),
    )


def _figures(found: Numbers, table: Numbers) -> list[Figure]:
    rows: dict[str, Numbers] = found["rows"]
    figures = [
        Figure(
            "mIoU", "Mean over seeds, with its interval; the checkpoint that counts.",
            _intervals([(name, row["miou"]) for name, row in rows.items()], "Test mIoU", "mIoU, per cent", zero=False),
        )
    ]  # fmt: skip
    for other, key in ((table["reference"], "against_reference"), ("supervised", "against_supervised")):
        differences = [(name, row[key]) for name, row in rows.items() if row[key] is not None]
        if differences:
            caption = "On the same resamples of the test images; right of the line is better. Seeds that both have."
            body = _intervals(differences, f"Difference from {other}", "points of mIoU", zero=True)
            figures.append(Figure(f"Difference from {other}", caption, body))
    curves = [Series(name, row["curve"]) for name, row in rows.items() if len(row["curve"]) > 1]
    if curves:
        caption = "mIoU on the test images at steps that were kept, mean over seeds. Nothing was chosen by it."
        body = line_chart(curves, title="mIoU against steps", x_label="optimiser step", percent=True)
        figures.append(Figure("mIoU against steps", caption, body))
    return figures


def _by_labels(table: Numbers) -> Figure | None:
    """mIoU against labelled images, where there is more than one set of labels."""
    names = dict.fromkeys(name for found in table["labels"].values() for name in found["rows"])
    series = []
    for name in names:
        points = [
            (float(found["labeled"]), found["rows"][name]["miou"]["value"])
            for found in table["labels"].values()
            if name in found["rows"]
        ]
        series.append(Series(name, sorted(points)))
    if all(len(line.points) < 2 for line in series):
        return None
    body = line_chart(series, title="mIoU against labels", x_label="labelled images", percent=True)
    return Figure("mIoU against labels", "Mean over seeds; the checkpoint that counts.", body)


def _intervals(rows: Sequence[tuple[str, Any]], title: str, x_label: str, *, zero: bool) -> Markup:
    return interval_chart(
        [(name, found["value"], found["low"], found["high"]) for name, found in rows], title=title, x_label=x_label, zero=zero
    )
