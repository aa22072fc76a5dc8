"""Whether a model is good enough to be registered. A number that is not there is not good enough."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from cwbass.config import RegistryConfig

_ROUNDING = 1e-9  # 0.06 - 0.05 is a hair below 0.01


def check_gate(metrics: Mapping[str, Any], registry: RegistryConfig) -> tuple[str, ...]:
    """Why a model may not be registered; empty where it may.

    A number that is missing, not finite or no fraction refuses. With ``min_gain`` at -1 no gain is
    asked of a model whose baseline was not measured.

    Args:
        metrics: Content of metrics.json: ``miou``, ``miou_gain`` and ``baseline_miou``.
        registry: The limits.
    """
    reasons = [_refusal("miou", metrics.get("miou"), (0, 1), "min_miou", registry.min_miou)]
    if registry.min_gain > -1 or metrics.get("baseline_miou") is not None:
        reasons.append(_refusal("miou_gain", metrics.get("miou_gain"), (-1, 1), "min_gain", registry.min_gain))
    return tuple(reason for reason in reasons if reason is not None)


def _refusal(key: str, value: object, bounds: tuple[int, int], limit: str, least: float) -> str | None:
    if value is None:
        return f"{key} was not measured, registry.{limit} asks for {least:g} or more"
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return f"{key} is {value!r}, which is no number"
    if not bounds[0] <= value <= bounds[1]:
        return f"{key} is {value:g}, but a fraction lies in [{bounds[0]}, {bounds[1]}]"
    if value < least - _ROUNDING:
        return f"{key} is {value:.4f}, below registry.{limit} {least:.4f}"
    return None
