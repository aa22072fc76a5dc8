"""JSON that other commands wrote, read with errors that name the file, what was seen and how to mend it; numbers for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cwbass.errors import DataError


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _is_object_of_objects(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


_SCORES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "images": (_is_number, "a number"),
    "miou_gain_interval": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
        "two numbers",
    ),
    "per_class": (_is_object_of_objects, "an object of objects"),
    "checkpoints": (_is_object_of_objects, "an object of objects"),
    "split": (lambda value: isinstance(value, dict), "an object"),
}


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
    """The scores in a metrics.json; otherwise as :func:`read_object`.

    Raises:
        DataError: As there; or a value that others are looked up in is of another kind.
    """
    return read_metrics_and_bytes(path)[0]


def read_metrics_and_bytes(path: Path) -> tuple[dict[str, Any], bytes]:
    """As :func:`read_metrics`, with the bytes that these scores were read from."""
    writer = "cwbass eval"
    text, content = _read(path, writer, "")
    scores = _object(text, str(path), _again(writer), ())
    for key, (is_sound, expected) in _SCORES.items():
        if (value := scores.get(key)) is not None and not is_sound(value):
            raise DataError(f"{path}: {key} is {str(value)[:80]}, not {expected}. {_again(writer)}")
    return scores, content


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
