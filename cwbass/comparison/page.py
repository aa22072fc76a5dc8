"""A comparison as one HTML page: opens offline, needs no script, and forbids itself every request."""

from __future__ import annotations

from cwbass.comparison.sheets import Numbers, against, budget, notes, sheets, summary
from cwbass.reporting.charts import Estimate, Series, interval_chart, line_chart
from cwbass.reporting.curves import Figure
from cwbass.reporting.templates import template


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
    means = [Estimate(name, row["miou"]["value"], row["miou"]["each"], _ends(row["miou"])) for name, row in rows.items()]
    body = interval_chart(means, title="Test mIoU", x_label="mIoU, per cent", scale=(0, 1))
    figures = [Figure("mIoU", "Of the checkpoint that counts: each seed, their mean, and its interval over seeds.", body)]
    for other, key in against(table).items():
        differences = [
            Estimate(name, row[key]["value"], list(row[key]["each"].values()), _ends(row[key]["over_seeds"]), _ends(row[key]))
            for name, row in rows.items()
            if row[key] is not None
        ]
        if differences:
            title = f"Difference from {other}"
            caption = "Right of the line is better. Of the two intervals, one is for other seeds, one for other test images."
            body = interval_chart(differences, title=title, x_label="points of mIoU", scale=(-1, 1))
            figures.append(Figure(title, caption, body))
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
    if all(len({labeled for labeled, _ in line.points}) < 2 for line in series):  # lists may name as many images
        return None
    body = line_chart(series, title="mIoU against labels", x_label="labelled images", percent=True)
    return Figure("mIoU against labels", "Mean over seeds; the checkpoint that counts.", body)


def _ends(found: Numbers) -> tuple[float, float] | None:
    return None if found["low"] is None else (found["low"], found["high"])
