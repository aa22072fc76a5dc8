"""Names that move: ``champion`` is whichever version its newest entry says.

    models/NAME/aliases/champion/00000001.json    written once, never changed
                                 00000002.json    the newest: what the alias is now

An entry is put under the next number if that is absent, so that of two writers who saw the same
state one gets it and the other is told. This compare-and-swap rests on what versions rest on,
and what it leaves behind is the history.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from cwbass.errors import DataError, ParamsError, ServiceError
from cwbass.registry import Number, Version, find_version, list_models, list_versions, verify_version
from cwbass.storage import ObjectStore

CHAMPION = "champion"
_SCHEMA = 1
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_ENTRY = re.compile(r"\d{8}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One move of an alias."""

    alias: str
    number: int  # of the entry, from 1 on
    version: str
    manifest_sha256: str  # of that version
    action: Literal["promote", "rollback"]
    returns_to: int | None  # entry whose version a rollback goes back to
    previous: str | None  # version before this move
    reason: str
    by: str
    at: str  # UTC, ISO 8601

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def current(store: ObjectStore, name: str, alias: str) -> Entry | None:
    """Where an alias points; None where it was never set.

    Raises:
        DataError: The newest entry cannot be read.
    """
    numbers = _numbers(store, name, alias)
    return _read(store, name, alias, numbers[-1]) if numbers else None


def history(store: ObjectStore, name: str, alias: str) -> list[Entry]:
    """All moves of an alias, oldest first."""
    return [_read(store, name, alias, number) for number in _numbers(store, name, alias)]


def list_aliases(store: ObjectStore, name: str) -> list[str]:
    """The aliases that a model has, sorted."""
    base = f"models/{name}/aliases/"
    return sorted({key.removeprefix(base).split("/")[0] for key in store.list(base)})


def aliased_version(store: ObjectStore, name: str, alias: str) -> Version:
    """The version an alias points to; its manifest must be the one that was promoted.

    Raises:
        DataError: There is no such model or alias.
        ServiceError: The manifest was changed since.
    """
    entry = current(store, name, alias)
    if entry is None:
        if not list_versions(store, name):
            raise DataError(f"the registry has no model {name!r}; it has: {', '.join(list_models(store)) or 'none'}.")
        known = ", ".join(list_aliases(store, name)) or "none"
        raise DataError(f"{name} has no alias {alias!r} (it has: {known}). Set it with `cwbass registry promote`.")
    return _version_of(store, name, entry)


def named_version(store: ObjectStore, name: str, wanted: str) -> Version:
    """A version by number or alias.

    Raises:
        DataError: There is none.
    """
    if wanted[0].isdigit():
        return find_version(store, name, Number.parse(wanted))
    return aliased_version(store, name, wanted)


def promote(
    store: ObjectStore, name: str, alias: str, number: Number, *, seen: Entry | None, reason: str, dry_run: bool = False
) -> Entry:
    """Point an alias at a version, if it still stands where the caller saw it.

    Every file of the version is read and checked first. Nothing is written if the alias points there already.

    Args:
        store: The registry.
        name: Of the model.
        alias: Lower-case letters, digits and hyphens.
        number: The version.
        seen: From :func:`current`; None: the alias was not set.
        reason: For those who read the history.
        dry_run: Write nothing; give what would be written.

    Raises:
        ParamsError: The alias has another form.
        DataError: There is no such version.
        ServiceError: A file of the version is damaged, or the alias was moved meanwhile.
    """
    if not _NAME.fullmatch(alias):
        raise ParamsError(f"{alias!r} is no alias; use lower-case letters, digits and hyphens, as in champion.")
    version = find_version(store, name, number)
    verify_version(store, version)
    if seen is not None and seen.version == str(number):
        return seen
    return _move(store, name, _entry(alias, version, seen, "promote", None if seen is None else seen.number, reason), dry_run)


def rollback(store: ObjectStore, name: str, alias: str, *, reason: str, dry_run: bool = False) -> Entry:
    """Point an alias at the version it pointed at before; once more goes one further back.

    Raises:
        DataError: There is nothing before.
        ServiceError: A file of that version is damaged, or the alias was moved meanwhile.
    """
    seen = current(store, name, alias)
    if seen is None or seen.returns_to is None:
        now = "is not set" if seen is None else f"is {seen.version}"
        raise DataError(f"{name}@{alias} {now}, and there is no version before it to go back to.")
    target = _read(store, name, alias, seen.returns_to)
    version = _version_of(store, name, target)
    verify_version(store, version)
    return _move(store, name, _entry(alias, version, seen, "rollback", target.returns_to, reason), dry_run)


def _entry(
    alias: str,
    version: Version,
    seen: Entry | None,
    action: Literal["promote", "rollback"],
    returns_to: int | None,
    reason: str,
) -> Entry:
    return Entry(
        alias=alias,
        number=1 if seen is None else seen.number + 1,
        version=str(version.number),
        manifest_sha256=version.manifest_sha256,
        action=action,
        returns_to=returns_to,
        previous=None if seen is None else seen.version,
        reason=reason,
        by=_who(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _move(store: ObjectStore, name: str, entry: Entry, dry_run: bool) -> Entry:
    if dry_run:
        return entry
    key = _key(name, entry.alias, entry.number)
    content = json.dumps({"schema": _SCHEMA, "name": name, **entry.to_dict()}, indent=2) + "\n"
    if not store.put(key, content.encode(), if_absent=True):
        winner = _read(store, name, entry.alias, entry.number)
        raise ServiceError(
            f"{name}@{entry.alias} was moved to {winner.version} by {winner.by} in the meantime ({store.uri(key)}); "
            f"{entry.version} was not. Look at it, and run again."
        )
    return entry


def _version_of(store: ObjectStore, name: str, entry: Entry) -> Version:
    version = find_version(store, name, Number.parse(entry.version))
    if version.manifest_sha256 != entry.manifest_sha256:
        raise ServiceError(
            f"{version.uri}/MANIFEST.json is not the one that {entry.alias} was set to: its SHA-256 is "
            f"{version.manifest_sha256[:12]}, was {str(entry.manifest_sha256)[:12]}. Restore it, or promote another version."
        )
    return version


def _numbers(store: ObjectStore, name: str, alias: str) -> list[int]:
    base = f"models/{name}/aliases/{alias}/"
    names = (key.removeprefix(base).removesuffix(".json") for key in store.list(base))
    return sorted(int(text) for text in names if _ENTRY.fullmatch(text))


def _read(store: ObjectStore, name: str, alias: str, number: int) -> Entry:
    key = _key(name, alias, number)
    try:
        values: Mapping[str, Any] = json.loads(store.get(key))
        schema, _ = values["schema"], values["name"]
        entry = Entry(**{field: values[field] for field in Entry.__dataclass_fields__})
        Number.parse(entry.version)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{store.uri(key)} is no entry of an alias ({error!r}). Restore it, or promote a version anew."
        ) from error
    if schema != _SCHEMA:
        raise DataError(f"{store.uri(key)} has schema {schema!r}, this cwbass reads {_SCHEMA}. Use the cwbass that wrote it.")
    return entry


def _key(name: str, alias: str, number: int) -> str:
    return f"models/{name}/aliases/{alias}/{number:08}.json"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
