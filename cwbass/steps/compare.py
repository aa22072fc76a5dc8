"""Step ``compare``: run the cells of a grid that are not done, and set their numbers side by side."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cwbass.comparison.budget import Budget
from cwbass.comparison.exports import latex, runs_csv
from cwbass.comparison.page import draw_page
from cwbass.comparison.plan import Cell, Plan, label_sets
from cwbass.comparison.results import read_results
from cwbass.comparison.run import JobFailed, Worker, cell_jobs, measure_jobs
from cwbass.comparison.sheets import markdown
from cwbass.comparison.table import tabulate
from cwbass.errors import PERMANENT, CwbassError, ParamsError
from cwbass.files import write_whole
from cwbass.methods.base import MethodConfig
from cwbass.params import Params

logger = logging.getLogger(__name__)

TABLE, MARKDOWN, PAGE, LATEX, RUNS = "table.json", "table.md", "compare.html", "table.tex", "runs.csv"


class CellsFailed(CwbassError):
    """Some cells of a comparison failed; the others are done."""

    def __init__(self, failed: Mapping[str, JobFailed]) -> None:
        lines = [f"  {cell}: {error}" for cell, error in failed.items()]
        codes = {error.exit_code for error in failed.values()}
        again = "would again: mend what the logs say" if codes <= PERMANENT else "run the same command again to try them again"
        super().__init__("\n".join([f"cells failed: {len(failed)}; {again}:", *lines]))
        self.exit_code = codes.pop() if len(codes) == 1 else CwbassError.exit_code


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was asked for, and the plan of the folder, which may hold more."""

    asked: Plan
    plan: Plan

    @property
    def groups(self) -> list[str]:
        """Where cells that were asked for share a split."""
        return list(dict.fromkeys(cell.group for cell in self.asked.cells()))

    def listing(self) -> list[dict[str, Any]]:
        """The cells that were asked for, for whoever spreads them over machines."""
        steps = {name: self.plan.length(name).steps for name in self.asked.variants}
        return [{**asdict(cell), "id": cell.id, "steps": steps[cell.variant]} for cell in self.asked.cells()]


def listed(text: str) -> list[str]:
    """``a,b`` as a and b."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(texts: Sequence[str]) -> list[int]:
    """Seeds as numbers, each once.

    Raises:
        ParamsError: One is something else.
    """
    if wrong := [text for text in texts if not text.isdecimal()]:
        raise ParamsError(f"--seeds has {', '.join(wrong)}; write whole numbers, as 0,1,2.")
    return list(dict.fromkeys(map(int, texts)))


def asked_plan(
    params: Params,
    variants: Mapping[str, MethodConfig],
    *,
    seeds: Sequence[str],
    labels: Sequence[str],
    budget: str | None,
    out_dir: Path,
) -> Plan:
    """The plan that the options of ``cwbass compare`` ask for; nothing is read or written.

    Args:
        params: Of every cell.
        variants: From ``method_variants`` or ``ablation_variants``.
        seeds: Whole numbers; empty takes the one of ``params``.
        labels: See ``label_sets``; empty takes those of ``params``.
        budget: See ``Budget.parse``; None takes the steps of ``params``.
        out_dir: Folder of the comparison.

    Raises:
        ParamsError: A parameter, a seed, a set of labels or the budget is wrong, or cells would train on several machines.
    """
    if params.train.nodes > 1:
        raise ParamsError(
            f"train.nodes is {params.train.nodes}, and a comparison trains each of its cells on one machine. Set train.nodes: 1; "
            "train.processes may be more."
        )
    return Plan(
        out=out_dir,
        params=params,
        budget=Budget("steps", params.train.steps or 0) if budget is None else Budget.parse(budget),
        variants=variants,
        seeds=whole_numbers(seeds) or [params.seed],
        labels=label_sets(labels),
    )


def prepare(asked: Plan) -> Comparison:
    """Write the plan of a comparison; where it must be known what a step of a method costs, measure that first.

    A request that is refused leaves no plan behind.

    Args:
        asked: From :func:`asked_plan`.

    Raises:
        ParamsError: A parameter is wrong, or the budget is too small.
        DataError: The folder holds another comparison, or the dataset or a list is wrong.
        JobFailed: Something else prevents that a method is measured.
        Interrupted: A signal came while methods were measured, or another process wrote the plan.
    """
    asked = asked.looked_up()
    with Worker(asked.out) as worker, worker.locked(asked.out):
        plan = asked.joined()
        for job in measure_jobs(plan, plan.unmeasured()):
            worker.run(job)
        for name in plan.variants:
            plan.length(name)  # refuses a budget that is too small
        plan.write()
    return Comparison(asked, plan)


def run_cells(plan: Plan, cells: Iterable[Cell]) -> None:
    """Run what is missing of some cells; what fails leaves the others alone.

    Raises:
        CellsFailed: Some did; all have been tried.
        Interrupted: A signal came; the same call goes on.
    """
    failed: dict[str, JobFailed] = {}
    with Worker(plan.out) as worker:
        for cell in cells:
            try:
                for job in cell_jobs(plan, cell):
                    worker.run(job)
            except JobFailed as error:
                logger.error("%s failed: %s", cell.id, error)
                failed[cell.id] = error
    if failed:
        raise CellsFailed(failed)


def write_table(out_dir: Path) -> str:
    """Write the tables, for people and for programs, and the page, from the cells that are done; returns the Markdown.

    Raises:
        DataError: There is no cell, or numbers cannot be set side by side.
    """
    plan = Plan.read(out_dir)
    results = read_results(plan)
    table = json.loads(json.dumps(tabulate(plan, results)))
    texts = {
        TABLE: f"{json.dumps(table, indent=1)}\n",
        MARKDOWN: markdown(table),
        LATEX: latex(table),
        RUNS: runs_csv(plan, results),
        PAGE: draw_page(table),
    }
    for name, text in texts.items():
        write_whole(out_dir / name, text.encode())
    return texts[MARKDOWN]
