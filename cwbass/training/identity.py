"""What tells one run from another: its parameters, split, inputs and code, but for what changes no number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cwbass
from cwbass.config import Section
from cwbass.params import flatten
from cwbass.plugins import load_plugins, source_sha256

# What may change between two parts of one run without changing what it computes; a device changes speed and rounding.
NEUTRAL = frozenset(
    {
        "data.root",
        "eval.gallery",
        "train.cache",
        "train.checkpoint_uri",
        "train.device",
        "train.nodes",
        "train.processes",
        "train.save_minutes",
        "train.workers",
    }
)

# Keys that came later: at these values they say what runs from before them did, whose records lack them.
LATER: Mapping[str, Any] = {
    "eval.postprocess": None,
    "eval.postprocess_options": {},
    "train.deterministic": False,
    "train.loss.name": "cross_entropy",
    "train.loss.options": {},
    "train.ohem.min_share": 0.1,
    "train.ohem.threshold": 1.0,
    "train.optimizer.options": {},
    "train.optimizer.schedule": "poly",
}


def run_identity(step: str, params: Section, split_hash: str, **inputs: str) -> dict[str, Any]:
    """What two runs must have in common for one to continue the other.

    Args:
        step: ``warmup`` or ``train``.
        params: Its parameters.
        split_hash: Of the manifest.
        inputs: Name and SHA-256 of what else the step starts from.

    Returns:
        Dotted keys, and values that JSON can say.
    """
    values = decisive(params.model_dump(mode="json"))
    plugins = {f"plugin.{plugin.name}": plugin.sha256[:12] for plugin in load_plugins()}
    return {"step": step, "split_hash": split_hash, "code": code_version(), **plugins, **inputs, **values}


def decisive(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, or sections of them, by dotted key; those that change no number, and ``LATER``, are left out."""
    return {key: value for key, value in flatten(params).items() if key not in NEUTRAL and (key, value) not in LATER.items()}


def differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which two runs differ."""
    return sorted(key for key in there.keys() | now.keys() if there.get(key) != now.get(key))


def differences(there: Mapping[str, Any], now: Mapping[str, Any], force: Sequence[str] = ()) -> list[str]:
    """A line for each dotted key in which two runs differ, with both values; at most 21.

    Args:
        there: Of the earlier run.
        now: Of this one.
        force: Keys that may differ; a section stands for all its keys.
    """
    keys = [key for key in differing(there, now) if not any(key == one or key.startswith(f"{one}.") for one in force)]
    lines = [f"  {key}: {_short(there.get(key))} there, {_short(now.get(key))} now" for key in keys[:20]]
    return lines + ([f"  and {len(keys) - 20} more"] if len(keys) > 20 else [])


@cache
def code_version() -> str:
    """Version of the package and a digest of its source: two copies that differ in a line differ here."""
    return f"{cwbass.__version__}+{source_sha256(Path(cwbass.__file__).parent)[:12]}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
