"""What the shell proposes when Tab is pressed: quick, from this machine alone, and silent where something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def models(incomplete: str) -> list[str]:
    """Versions and aliases in the registry of params.yaml, ``name@champion``, and the paths that begin alike.

    Where there is no such version or alias nothing is proposed: shells then complete paths by themselves.
    """
    try:
        found = [reference for reference in _references() if reference.startswith(incomplete)]
        return [*found, *_paths(incomplete)] if found else []
    except Exception:  # whatever a file of the user's holds: a traceback in the middle of a command line helps nobody
        return []


def _references() -> Iterator[str]:
    import yaml

    from cwbass.config import RegistryConfig
    from cwbass.registry import list_models, list_versions
    from cwbass.registry.aliases import list_aliases
    from cwbass.storage import FolderStore

    file = Path("params.yaml")
    registry = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("registry") or {} if file.is_file() else {}
    location = registry.get("store") or RegistryConfig().store
    if "://" in location:  # nobody waits for a server here
        return
    store = FolderStore(Path(location))
    for name in list_models(store):
        for wanted in (*list_aliases(store, name), *map(str, reversed(list_versions(store, name)))):
            yield f"{name}@{wanted}"


def _paths(incomplete: str) -> list[str]:
    folder, name = Path(incomplete).parent, "" if incomplete.endswith("/") else Path(incomplete).name
    begun = (path for path in folder.iterdir() if path.name.startswith(name)) if folder.is_dir() else ()
    return sorted(f"{path}/" if path.is_dir() else str(path) for path in begun if name or not path.name.startswith("."))
