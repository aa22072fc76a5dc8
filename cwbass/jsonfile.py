"""JSON that other commands wrote, read with errors that name the file, what was seen and how to mend it; numbers for it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cwbass.errors import DataError

_EVAL = "cwbass eval"


class _Typed(BaseModel):
    """What a key holds where it is there; others may be beside them."""

    model_config = ConfigDict(strict=True)


class _Class(_Typed):
    iou: float | None = None
    boundary_iou: float | None = None
    accuracy: float | None = None
    pixels: int | None = None
    baseline_iou: float | None = None
    baseline_boundary_iou: float | None = None
    iou_gain_interval: tuple[float, float] | None = None


class _Split(_Typed):
    counts: dict[str, int] | None = None
    notes: list[str] | None = None


class _Confusion(_Typed):
    class_names: list[str]
    matrix: list[list[int]]


class _Calibration(_Typed):
    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


class _Metrics(_Typed):
    images: int | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    boundary_iou: float | None = None
    boundary_f1_1px: float | None = None
    boundary_f1_3px: float | None = None
    boundary_f1_5px: float | None = None
    ece: float | None = None
    baseline_miou: float | None = None
    baseline_pixel_accuracy: float | None = None
    baseline_boundary_iou: float | None = None
    baseline_boundary_f1_1px: float | None = None
    baseline_boundary_f1_3px: float | None = None
    baseline_boundary_f1_5px: float | None = None
    baseline_ece: float | None = None
    baseline_method: str | None = None
    baseline_supervised: bool | None = None
    miou_gain: float | None = None
    miou_gain_interval: tuple[float, float] | None = None
    per_class: dict[str, _Class] | None = None
    absent_classes: list[str] | None = None
    confusion: _Confusion | None = None
    calibration: _Calibration | None = None
    checkpoints: dict[str, dict[str, float | None]] | None = None
    snapshots: list[dict[str, float | None]] | None = None
    split: _Split | None = None
    split_hash: str | None = None
    protocol: str | None = None
    seed: int | None = None
    method: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    steps: int | None = None


def read_object(path: Path, *, writer: str, mend: str = "", keys: Collection[str] = ()) -> dict[str, Any]:
    """The object that a file holds.

    Args:
        path: The file.
        writer: The command that writes it.
        mend: What to do where it is broken, a sentence; empty: run the command again.
        keys: What the object must have; one that an older version wrote may lack some.

    Raises:
        DataError: It is missing, or holds something else.
    """
    return _object(_read(path, writer, mend)[0], str(path), mend or _again(writer), keys)


def read_metrics(path: Path) -> dict[str, Any]:
    """The scores in a metrics.json, each of its own type; otherwise as :func:`read_object`."""
    return read_metrics_and_bytes(path)[0]


def read_metrics_and_bytes(path: Path) -> tuple[dict[str, Any], bytes]:
    """As :func:`read_metrics`, with the bytes that these scores were read from."""
    text, content = _read(path, _EVAL, "")
    metrics = _object(text, str(path), _again(_EVAL), ())
    try:
        _Metrics.model_validate_json(text)  # of the text: a list is a tuple there
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].lower()
        raise DataError(f"{path}, {place}: {message}, not {first['input']!r:.80}. {_again(_EVAL)}") from error
    return metrics, content


def read_rows(path: Path, *, writer: str, mend: str = "", keys: Collection[str] = ()) -> list[dict[str, Any]]:
    """The objects that a file holds, one a line; otherwise as :func:`read_object`."""
    lines = _read(path, writer, mend)[0].splitlines()
    return [_object(line, f"{path}, line {number}", mend or _again(writer), keys) for number, line in enumerate(lines, start=1)]


def finite_or_none(value: float) -> float | None:
    """A number as JSON can say it, which has no NaN."""
    return value if math.isfinite(value) else None


def _read(path: Path, writer: str, mend: str) -> tuple[str, bytes]:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig"), content  # Windows tools may begin with a byte order mark
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. `{writer}` writes it.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {mend or _again(writer)}") from error


def _object(text: str, where: str, mend: str, keys: Collection[str]) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error}). {mend}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} holds a {type(values).__name__}, not an object. {mend}")
    if missing := [key for key in keys if key not in values]:
        raise DataError(f"{where} has no {' and no '.join(missing)}. {mend}")
    return values


def _again(writer: str) -> str:
    return f"Run `{writer}` again."
