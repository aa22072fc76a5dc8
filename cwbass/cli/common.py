"""What verbs have in common: the things that options name, as they are on this machine, and how a result is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cwbass.cli.options import PARAMS

if TYPE_CHECKING:
    from cwbass.params import P


def load(kind: type[P], params: Path, overrides: list[str] | None) -> P:
    """The sections of a step, from ``--params`` and ``--set``."""
    from cwbass.params import load_params, read_params

    return load_params(read_params(params, overrides or ()), kind)


def dataset_folder(data: str) -> Path:
    """The dataset that ``--data`` or data.root names."""
    from cwbass.data.remote import local_dataset

    return local_dataset(data)


def local_checkpoint(reference: str, store: str | None, params: Path | None = None) -> Path:
    """A checkpoint, for a path, a URI, or a model of the registry."""
    if Path(reference).exists():
        return Path(reference)
    from cwbass.resolve import resolve

    named = "@" in reference and (store or params or PARAMS.is_file())  # whatever else a reference is, it needs no registry
    return resolve(reference, store=store_uri(store, params or PARAMS) if named else None)


def store_uri(store: str | None, params: Path) -> str:
    """The registry that is named, or else that of the parameters."""
    from cwbass.params import Params

    return store or load(Params, params, None).registry.store


def print_json(values: Any, file: Path | None = None) -> None:
    """A result on stdout, and in ``file``."""
    typer.echo(json.dumps(values, indent=2))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
