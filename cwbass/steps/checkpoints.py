"""Which checkpoint of a folder counts, and which lie beside it."""

from __future__ import annotations

from pathlib import Path

from cwbass.errors import CheckpointError
from cwbass.registry.resolve import describe, is_version, open_checkpoint
from cwbass.steps.train import BEST, LAST
from cwbass.steps.warmup import BASELINE_BEST, BASELINE_LAST
from cwbass.training.checkpoint import Checkpoint, load_checkpoint
from cwbass.training.run import SNAPSHOTS

# Of a folder of `cwbass train`, or of `cwbass warmup`; the one that counts first.
FILES = {"selected": (BEST, BASELINE_BEST), "last": (LAST, BASELINE_LAST)}


def find_checkpoints(path: Path) -> dict[str, Path]:
    """Checkpoints by name, the one that counts first.

    Args:
        path: A file or the folder of a registered version, which is the only one then; or the folder of a training or a warm-up.

    Raises:
        CheckpointError: The folder holds none, or the file is missing.
    """
    if not path.is_dir() or is_version(path):
        return {describe(path)[0]: path}
    found = {name: path / file for name, files in FILES.items() for file in files if (path / file).is_file()}
    if not found:
        others = ", ".join(file.name for file in sorted(path.glob("*.pt")))
        raise CheckpointError(
            f"{path} holds neither {BEST} nor {LAST}. Where its run was stopped before there was one, the same command goes on. Else "
            f"pass a folder of `cwbass train` or `cwbass warmup`, or a file{f' ({others} is there)' if others else ''}."
        )
    return found


def chosen_file(path: Path) -> Path:
    """The first of :func:`find_checkpoints`, whose name nobody asks for.

    Raises:
        CheckpointError: The folder holds none.
    """
    return path if not path.is_dir() or is_version(path) else next(iter(find_checkpoints(path).values()))


def open_checkpoints(path: Path) -> dict[str, Checkpoint]:
    """All of :func:`find_checkpoints`, read and checked.

    Raises:
        CheckpointError: There is none, or one is damaged or of another kind.
    """
    return {name: open_checkpoint(file) for name, file in find_checkpoints(path).items()}


def open_snapshots(path: Path, of: Checkpoint) -> list[Checkpoint]:
    """Snapshots in a folder that are of the same run as a checkpoint, in the order of their steps."""
    found = map(load_checkpoint, sorted(path.glob(SNAPSHOTS))) if path.is_dir() else ()
    return [each for each in found if (each.params, each.split_hash) == (of.params, of.split_hash)]
