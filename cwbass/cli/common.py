"""What verbs have in common: the things that options name, as they are on this machine, and how a result is printed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cwbass.cli.options import PARAMS
from cwbass.files import write_whole

if TYPE_CHECKING:
    from cwbass.params import P

logger = logging.getLogger(__name__)


def load(kind: type[P], params: Path, overrides: list[str] | None, data: str | None = None) -> P:
    """The sections of a step, from ``--params`` and ``--set``; ``--data`` is recorded, but where ``--set`` names the dataset."""
    from cwbass.params import naming, read_params

    return load_changed(kind, read_params(params), [*naming(data), *(overrides or ())])


def load_changed(kind: type[P], values: dict[str, Any], overrides: list[str] | None) -> P:
    """The sections of a step, from values that ``--set`` changes in place; tells of keys that the step does not read."""
    from cwbass.params import apply_overrides, load_params

    loaded = load_params(apply_overrides(values, overrides or ()), kind)
    keys = [override.partition("=")[0].strip() for override in overrides or ()]
    if unread := [key for key in keys if key.partition(".")[0] not in kind.model_fields]:
        logger.warning("--set %s changes nothing: this command reads %s alone.", ", ".join(unread), ", ".join(kind.model_fields))
    return loaded


def dataset_folder(data: str) -> Path:
    """The dataset that ``--data`` or data.root names."""
    from cwbass.data.remote import local_dataset

    return local_dataset(data)


def local_checkpoint(reference: str, store: str | None, params: Path | None = None) -> Path:
    """A checkpoint, for a path, a URI, or a model of the registry."""
    if Path(reference).exists():
        return Path(reference)
    from cwbass.registry.resolve import resolve

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
        write_whole(file, json.dumps(values).encode())
