"""Where a model came from: commit, data and environment, as far as they can be told."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import cwbass

REVISION = "CWBASS_REVISION"  # commit that an image was built from; there is no repository in it
PACKAGES = ("torchvision", "segmentation-models-pytorch", "timm", "numpy")


def git_state() -> dict[str, Any] | None:
    """Commit of the working folder, and whether tracked files differ from it; in an image, that of the code; else None."""
    if (found := _commit(Path())) is not None:
        revision, dirty = found
        return {"revision": revision, "dirty": dirty}
    built = os.environ.get(REVISION)
    return {"revision": built, "dirty": False} if built else None


def code_revision(root: Path = Path(__file__).parents[1]) -> str | None:
    """Commit of a checkout in twelve digits, ``-dirty`` with changes; None where ``root`` is none.

    Args:
        root: The checkout; by default, where this package lies.
    """
    if not (root / ".git").exists():  # a parent's repository is not ours
        return None
    if (found := _commit(root)) is None:
        return None
    revision, dirty = found
    return f"{revision[:12]}{'-dirty' if dirty else ''}"


def dvc_md5(data_root: str, folder: Path = Path()) -> str | None:
    """The hash under which DVC knows a dataset; None where it does not.

    Args:
        data_root: ``data.root``.
        folder: Of dvc.lock.
    """
    pins = [*_pins(folder / "dvc.lock", data_root), *_pins(folder / f"{data_root.rstrip('/')}.dvc", Path(data_root).name)]
    return pins[0] if pins else None


def versions() -> dict[str, str]:
    """What the model was made with."""
    found = {"cwbass": cwbass.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _pins(path: Path, data_root: str) -> list[str]:
    """Hashes that a file of DVC gives for a path."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        stages = values.get("stages", {"data": values})
        entries = [entry for stage in stages.values() for kind in ("deps", "outs") for entry in stage.get(kind) or ()]
        return [str(entry["md5"]) for entry in entries if entry.get("path") == data_root and entry.get("md5")]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError):
        return []


def _commit(folder: Path) -> tuple[str, bool] | None:
    """The commit that a folder of a repository is at, and whether tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", folder, *arguments), capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no") != ""
    except (OSError, subprocess.SubprocessError):
        return None
