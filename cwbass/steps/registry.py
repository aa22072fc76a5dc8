"""Verbs ``registry list|show|promote|rollback``: look at models, and move their aliases."""

from __future__ import annotations

import json
from typing import Any

from cwbass.errors import DataError, ParamsError
from cwbass.registry import Version, find_version, list_models, list_versions, read_file
from cwbass.registry.aliases import Entry, current, history, list_aliases, named_version, promote, rollback
from cwbass.storage import ObjectStore, open_store


def list_registry(store: str) -> dict[str, Any]:
    """Every model with its newest version and its aliases."""
    opened = open_store(store)
    models = [
        {
            "name": name,
            "versions": len(numbers := list_versions(opened, name)),
            "latest": str(numbers[-1]),
            "aliases": _aliases(opened, name),
        }
        for name in list_models(opened)
    ]
    return {"store": store, "models": models}


def show(store: str, model: str) -> dict[str, Any]:
    """All versions and moves of a model; or, with ``@version`` or ``@alias``, what is known of one version.

    Raises:
        DataError: There is no such model or version.
    """
    opened, (name, _, wanted) = open_store(store), model.partition("@")
    if wanted:
        return _show_version(opened, named_version(opened, name, wanted))
    numbers = list_versions(opened, name)
    if not numbers:
        raise DataError(f"{store} has no model {name!r}; it has: {', '.join(list_models(opened)) or 'none'}.")
    rows = []
    for number in numbers:
        version = find_version(opened, name, number)
        scores = _read_json(opened, version, "metrics.json")
        rows.append(
            {"version": str(number), "miou": scores.get("miou"), "split_hash": scores.get("split_hash"), "uri": version.uri}
        )
    moves = {alias: [entry.to_dict() for entry in history(opened, name, alias)] for alias in list_aliases(opened, name)}
    return {"name": name, "aliases": _aliases(opened, name), "versions": rows, "history": moves}


def promote_model(store: str, model: str, *, alias: str, reason: str, dry_run: bool) -> dict[str, Any]:
    """Point an alias at ``name@version`` or at what another alias points to.

    Args:
        store: Folder or ``s3://`` URI of the registry.
        model: ``name@1.4.0`` or ``name@candidate``.
        alias: Lower-case letters, digits and hyphens.
        reason: For the history.
        dry_run: Say what would be written, and write nothing.

    Raises:
        ParamsError: ``model`` says no version, or the alias has another form.
        DataError: There is no such version.
        ServiceError: A file of it is damaged, or the alias was moved meanwhile.
    """
    opened, (name, _, wanted) = open_store(store), model.partition("@")
    if not wanted:
        raise ParamsError(f"{model!r} says no version; write {name}@1.4.0, or {name}@candidate.")
    seen = current(opened, name, alias)
    version = named_version(opened, name, wanted)
    return _moved(name, promote(opened, name, alias, version.number, seen=seen, reason=reason, dry_run=dry_run), dry_run)


def rollback_model(store: str, model: str, *, alias: str, reason: str, dry_run: bool) -> dict[str, Any]:
    """Point an alias back at the version before; ``model`` is a name alone, the other arguments are as above.

    Raises:
        DataError: There is none.
        ServiceError: A file of it is damaged, or the alias was moved meanwhile.
    """
    opened = open_store(store)
    return _moved(model, rollback(opened, model, alias, reason=reason, dry_run=dry_run), dry_run)


def _show_version(store: ObjectStore, version: Version) -> dict[str, Any]:
    pointing = [alias for alias, number in _aliases(store, version.name).items() if number == str(version.number)]
    return {
        "name": version.name,
        "version": str(version.number),
        "uri": version.uri,
        "manifest_sha256": version.manifest_sha256,
        "aliases": pointing,
        "files": dict(version.digests),
        "onnx": _read_json(store, version, "config.json").get("onnx"),
        "metrics": _read_json(store, version, "metrics.json"),
        "provenance": _read_json(store, version, "provenance.json"),
    }


def _aliases(store: ObjectStore, name: str) -> dict[str, str]:
    entries = {alias: current(store, name, alias) for alias in list_aliases(store, name)}
    return {alias: entry.version for alias, entry in entries.items() if entry is not None}


def _moved(name: str, entry: Entry, dry_run: bool) -> dict[str, Any]:
    return {"name": name, **entry.to_dict(), "dry_run": dry_run}


def _read_json(store: ObjectStore, version: Version, file: str) -> dict[str, Any]:
    """A file of a version; empty where it has none."""
    values: dict[str, Any] = json.loads(read_file(store, version, file)) if file in version.digests else {}
    return values
