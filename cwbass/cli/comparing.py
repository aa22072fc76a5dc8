"""Verbs that train methods, or variants of one, and set them side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwbass.cli.common import dataset_folder, load, print_json
from cwbass.cli.options import PARAMS, Overrides, ParamsFile
from cwbass.errors import CwbassError

if TYPE_CHECKING:
    from cwbass.methods.base import MethodConfig
    from cwbass.params import Params

logger = logging.getLogger(__name__)

Methods = Annotated[
    list[str] | None,
    typer.Option(metavar="A,B", help="Methods; supervised is always among them. Default: the one of the parameters."),
]
Seeds = Annotated[list[str] | None, typer.Option(metavar="0,1,2", help="Seeds; default: the one of the parameters.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="1/16,1/8", help="Shares or counts of labelled images, or NAME=FILE of ids; default: as the parameters say."
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="KIND=N",
        help="steps=N, minutes=N or passes=N of every run, warm-up included; default: train.steps. For the last two, steps of each "
        "method are measured before the plan is written.",
    ),
]
Grid = Annotated[Path, typer.Option(help="Folder of the comparison; the same command goes on where it was.", file_okay=False)]
OneCell = Annotated[str | None, typer.Option("--cell", metavar="ID", help="Run this cell alone, and make no table.")]
ListCells = Annotated[bool, typer.Option("--list", help="Write the plan, print its cells as JSON, and run none; see --budget.")]
TableOnly = Annotated[bool, typer.Option("--table", help="Make the table of what is there, and run nothing.")]


def compare(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    methods: Methods = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="'NAME=METHOD KEY=VALUE ...'",
            help="Another row: a method with keys of its section changed, as 'tau0=unimatch threshold.tau=0'. As often as needed.",
        ),
    ] = None,
    seeds: Seeds = None,
    labels: Labels = None,
    budget: BudgetOption = None,
    out: Grid = Path("artifacts/compare"),
    cell: OneCell = None,
    list_cells: ListCells = False,
    table_only: TableOnly = False,
) -> None:
    """Train methods x seeds x labels on one budget, and set them side by side with intervals."""
    from cwbass.comparison.variants import method_variants, own_variants
    from cwbass.params import Params

    if table_only:
        _table(out)
        return
    loaded = load(Params, params, overrides)
    plain = method_variants(_listed(methods) or [loaded.method.name], loaded)
    own = own_variants(variants or [], loaded)
    _compare(loaded, {**plain, **own}, seeds, labels, budget, out, cell, list_cells)


def ablate(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    variants: Annotated[list[str] | None, typer.Option(metavar="A,B", help="These alone; --list names all.")] = None,
    seeds: Seeds = None,
    labels: Labels = None,
    budget: BudgetOption = None,
    out: Grid = Path("artifacts/ablate"),
    cell: OneCell = None,
    list_cells: ListCells = False,
    table_only: TableOnly = False,
) -> None:
    """Compare a method with its terms switched off, one by one, and with each alone: method.name where it names terms, else cw_bass."""
    from cwbass.comparison.variants import ablation_variants, chosen
    from cwbass.params import Params

    if table_only:
        _table(out)
        return
    loaded = load(Params, params, overrides)
    _compare(loaded, chosen(ablation_variants(loaded), _listed(variants)), seeds, labels, budget, out, cell, list_cells)


def _compare(
    params: Params,
    variants: Mapping[str, MethodConfig],
    seeds: list[str] | None,
    labels: list[str] | None,
    budget: str | None,
    out: Path,
    cell: str | None,
    list_cells: bool,
) -> None:
    from cwbass.steps.compare import asked_plan, prepare, run_cells

    if "://" in params.data.root:  # all cells read the one copy
        copied = params.data.model_copy(update={"root": str(dataset_folder(params.data.root))})
        params = params.model_copy(update={"data": copied})
    asked = asked_plan(params, variants, seeds=_listed(seeds), labels=_listed(labels), budget=budget, out_dir=out)
    comparison = prepare(asked)
    if list_cells:
        print_json(comparison.listing())
    elif cell is not None:
        run_cells(comparison.plan, [comparison.asked.cell(cell)])
        print_json({"cell": cell, "folder": str(out / cell)})
    else:
        try:
            run_cells(comparison.plan, comparison.asked.cells())
        except CwbassError:
            _table_so_far(out)
            raise
        _table(out)


def _table_so_far(out: Path) -> None:
    """Of what is done, while an error is on its way that counts for more than one of the table."""
    try:
        if list(out.glob("*/*/*/reports/confusions.npz")):
            _table(out)
    except Exception as error:
        logger.warning("there is no table: %s", error)


def _table(out: Path) -> None:
    from cwbass.steps.compare import write_table

    typer.echo(write_table(out), nl=False)


def _listed(texts: list[str] | None) -> list[str]:
    """``--x a,b --x c`` as a, b, c."""
    from cwbass.steps.compare import listed

    return listed(",".join(texts or ()))
