"""Modules of others that add to the registries: a method, a network, a layout that is no part of this package.

The environment alone says which: packages that are installed with an entry point of the group ``cwbass.plugins``, and modules
that ``CWBASS_PLUGINS`` names. Whatever starts another process hands the environment on. No file that is read can name code:
neither parameters nor a checkpoint nor the plan of a comparison.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections import UserDict
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cwbass.errors import ParamsError, one_line

logger = logging.getLogger(__name__)

GROUP, VARIABLE = "cwbass.plugins", "CWBASS_PLUGINS"
T = TypeVar("T")


class Registry(UserDict[str, T]):
    """Entries by name. What has a name keeps it; the same entry may come again, when its module is imported again.

    Raises:
        ParamsError: An entry is put where there is another one.
    """

    def __setitem__(self, name: str, entry: T) -> None:
        if name in self and _origin(self[name]) != _origin(entry):
            raise ParamsError(f"{name!r} is the name of {_origin(self[name])}; register {_origin(entry)} under another one")
        super().__setitem__(name, entry)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A module that was imported for what it adds."""

    name: str
    path: Path  # its file; of a module in a package, the folder of the whole package
    sha256: str  # of the source there


@cache
def load_plugins() -> tuple[Plugin, ...]:
    """Import what the environment names, once in a process, in the order of the names.

    Raises:
        ParamsError: One cannot be imported.
    """
    return tuple(_load(name, origin) for name, origin in sorted(_named().items()))


def source_sha256(path: Path) -> str:
    """A digest of a file, or of all Python files below a folder: two copies that differ in a line differ here. Hex."""
    digest = hashlib.sha256()
    top, files = (path, sorted(path.rglob("*.py"))) if path.is_dir() else (path.parent, [path])
    for file in files:
        digest.update(f"{file.relative_to(top).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _named() -> dict[str, str]:
    """Modules, and what names each of them."""
    installed = {point.module: f"the entry point {point.name} ({GROUP})" for point in entry_points(group=GROUP)}
    return installed | {name.strip(): VARIABLE for name in os.environ.get(VARIABLE, "").split(",") if name.strip()}


def _load(name: str, origin: str) -> Plugin:
    try:
        module = importlib.import_module(name)
        top = importlib.import_module(name.partition(".")[0])
        path = _place(module if top.__file__ is None else top)  # the folders of a namespace are of many owners
        plugin = Plugin(name, path, source_sha256(path))
    except (Exception, SystemExit) as error:  # whatever a module, or a script, does when it is imported
        raise ParamsError(
            f"plugin {name}, named by {origin}, cannot be imported ({type(error).__name__}: {one_line(error, 300)}). "
            "Mend it, put its folder into PYTHONPATH, or do without it."
        ) from error
    logger.info("plugin %s from %s, source %s", name, path, plugin.sha256[:12])
    return plugin


def _origin(entry: Any) -> str:
    """Where a class or function is written."""
    return f"{entry.__module__}.{getattr(entry, '__qualname__', type(entry).__qualname__)}"


def _place(module: ModuleType) -> Path:
    """The folder of a package, the file of another module."""
    return Path(next(iter(getattr(module, "__path__", ())), module.__file__ or ""))
