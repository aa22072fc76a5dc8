"""A comparison for other programs: each run as a row of CSV, and the tables of a paper as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from cwbass.comparison.plan import Plan
from cwbass.comparison.results import Result
from cwbass.comparison.sheets import Numbers, budget
from cwbass.comparison.table import SCORES, stages
from cwbass.headline import percent
from cwbass.reporting.scores import SCORES as ALL_SCORES

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def runs_csv(plan: Plan, results: Sequence[Result]) -> str:
    """A row for each cell that is done, for a spreadsheet or pandas: scores as fractions in [0, 1], empty where undefined.

    Args:
        plan: Of the comparison.
        results: From ``read_results``.
    """
    scores = [name for name in ALL_SCORES if any(name in result.metrics for result in results)]
    rows: list[dict[str, Any]] = [
        {
            "labels": result.cell.labels,
            "labeled_images": result.labeled,
            "seed": result.cell.seed,
            "method": result.cell.variant,
            "weights": result.metrics["weights"],
            "steps": sum(stage["steps"] for stage in stages(plan, result.cell.variant)),
            **{name: result.metrics.get(name) for name in scores},
            "miou_last": result.of_checkpoint("last"),
            **{f"iou_{name}": result.metrics["per_class"][name]["iou"] for name in result.images.class_names},
            "guard_acted": len(result.guarded),
            "train_seconds": result.train_seconds,
            "split_hash": result.metrics["split_hash"],
            "code": result.code,
        }
        for result in results
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(table: Numbers) -> str:
    r"""The tables of a paper: mIoU of each method on each set of labels, and all scores on each; for ``\usepackage{booktabs}``.

    A cell is the mean and the standard deviation over seeds, in per cent.

    Args:
        table: From ``tabulate``.
    """
    sets: Mapping[str, Numbers] = table["labels"]
    methods = list(dict.fromkeys(name for found in sets.values() for name in found["rows"]))
    lines = [
        f"% cwbass compare: {budget(table)} for every run, warm-up included; {table['test_images']} test images, {table['protocol']}; code",
        f"% {', '.join(table['code'])}. In per cent; +- is the standard deviation over seeds, and no interval.",
        *(f"% labels {name}: {found['labeled']} images; {_seeds(found['rows'])}." for name, found in sets.items()),
    ]
    if len(sets) > 1:
        header = ["mIoU", *(f"{name} ({found['labeled']})" for name, found in sets.items())]
        body = [[name, *(_cell(found["rows"].get(name, {}).get("miou")) for found in sets.values())] for name in methods]
        lines += ["", *_tabular(header, body)]
    for name, found in sets.items():
        rows = [[method, *(_cell(row[key]) for key in SCORES)] for method, row in found["rows"].items()]
        lines += ["", *_tabular([f"{name} ({found['labeled']})", *SCORES.values()], rows)]
    return "\n".join(lines) + "\n"


def _seeds(rows: Mapping[str, Numbers]) -> str:
    """``seeds 0, 1, 2``; of each method, where they are not the same."""
    each = {name: f"seeds {', '.join(map(str, row['seeds']))}" for name, row in rows.items()}
    return each.popitem()[1] if len(set(each.values())) == 1 else "; ".join(f"{name}: {seeds}" for name, seeds in each.items())


def _cell(found: Numbers | None) -> str:
    if found is None:
        return "--"
    return percent(found["value"]) + ("" if found["deviation"] is None else rf" $\pm$ {percent(found['deviation'])}")


def _tabular(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (
        rf"{' & '.join(cells)} \\"
        for cells in ([each.translate(_LATEX) for each in header], *([name.translate(_LATEX), *cells] for name, *cells in rows))
    )
    return [
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
