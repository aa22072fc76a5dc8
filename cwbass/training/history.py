"""What the stages of a run leave behind, row by row: files with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwbass.files import write_whole
from cwbass.jsonfile import finite_or_none
from cwbass.training.loop import EpochRecord

HISTORY, TIMINGS, SKIPPED = "history.jsonl", "timings.jsonl", "skipped.jsonl"


@dataclass(frozen=True, slots=True)
class History:
    """Rows of a run so far; each stage appends its own."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    # Apart, so that the epochs, and the checkpoints that hold them, of two equal runs are equal.
    timings: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)  # steps that were not finite, with their images

    def write(self, folder: Path) -> None:
        """Write ``history.jsonl``, ``timings.jsonl`` and, where a step was skipped, ``skipped.jsonl``; an earlier run's is deleted."""
        write_rows(folder / HISTORY, self.epochs)
        write_rows(folder / TIMINGS, self.timings)
        if self.skipped:
            write_rows(folder / SKIPPED, self.skipped)
        else:
            (folder / SKIPPED).unlink(missing_ok=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line, rewritten whole: a torn line cannot be left behind."""
    write_whole(path, "".join(f"{json.dumps(_finite(row))}\n" for row in rows).encode())


def timing_row(stage: str, record: EpochRecord) -> dict[str, Any]:
    """What an epoch took, apart from what it computed."""
    return {
        "stage": stage,
        "epoch": record.epoch,
        "step": record.step,
        "seconds": record.seconds,
        "step_seconds": record.step_seconds,
        "data_wait": record.data_wait,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
