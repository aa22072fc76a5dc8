"""Rows of a run's history, its timings, and the steps it skipped: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwbass.files import write_whole
from cwbass.training.loop import EpochRecord

HISTORY, TIMINGS, SKIPPED = "history.jsonl", "timings.jsonl", "skipped.jsonl"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line, rewritten whole: a torn line cannot be left behind."""
    write_whole(path, "".join(f"{json.dumps(_finite(row))}\n" for row in rows).encode())


def timing_row(stage: str, record: EpochRecord) -> dict[str, Any]:
    """What an epoch took, apart from what it computed: this differs between two equal runs."""
    return {
        "stage": stage,
        "epoch": record.epoch,
        "step": record.step,
        "seconds": record.seconds,
        "step_seconds": record.step_seconds,
        "data_wait": record.data_wait,
    }


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
