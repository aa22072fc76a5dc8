"""Verbs of ``cwbass registry``: look at registered models, and move their aliases."""

from __future__ import annotations

from typing import Annotated

import typer

from cwbass.cli.common import print_json, store_uri
from cwbass.cli.completion import models
from cwbass.cli.options import PARAMS, ParamsFile, Store

Alias = Annotated[str, typer.Option(help="Alias to move: lower-case letters, digits and hyphens.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]


def list_models(params: ParamsFile = PARAMS, store: Store = None) -> None:
    """Models of the registry, with their aliases."""
    from cwbass.steps.registry import list_registry

    print_json(list_registry(store_uri(store, params)))


def show(
    model: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION|@ALIAS]", help="A model, or one version of it.", autocompletion=models)
    ],
    params: ParamsFile = PARAMS,
    store: Store = None,
) -> None:
    """Versions and history of a model, or what is known of one version."""
    from cwbass.steps.registry import show

    print_json(show(store_uri(store, params), model))


def promote(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME@VERSION|@ALIAS", help="The version, by its number or another alias.", autocompletion=models),
    ],
    alias: Alias = "champion",
    reason: Reason = "by hand",
    dry_run: DryRun = False,
    params: ParamsFile = PARAMS,
    store: Store = None,
) -> None:
    """Point an alias at a version, after every file of it was checked."""
    from cwbass.steps.registry import promote_model

    print_json(promote_model(store_uri(store, params), model, alias=alias, reason=reason, dry_run=dry_run))


def rollback(
    model: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    alias: Alias = "champion",
    reason: Reason = "by hand",
    dry_run: DryRun = False,
    params: ParamsFile = PARAMS,
    store: Store = None,
) -> None:
    """Point an alias back at the version before; once more goes one further."""
    from cwbass.steps.registry import rollback_model

    print_json(rollback_model(store_uri(store, params), model, alias=alias, reason=reason, dry_run=dry_run))
