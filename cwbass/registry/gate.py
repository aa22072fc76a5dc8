"""Whether a model is good enough to be registered. A number that is not there is not good enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from cwbass.config import RegistryConfig
from cwbass.headline import has_supervised_baseline
from cwbass.markdown import markdown_table, markdown_text

_ROUNDING = 1e-9  # 0.06 - 0.05 is a hair below 0.01
_COMPARABLE = ("split_hash", "protocol")


@dataclass(frozen=True, slots=True)
class Champion:
    """What a new model is held against."""

    version: str
    metrics: Mapping[str, Any]  # content of its metrics.json


@dataclass(frozen=True, slots=True)
class Check:
    """One limit and what was seen."""

    what: str
    limit: str
    seen: str
    reason: str | None = None  # why it refuses; None where it passes


def check_gate(
    metrics: Mapping[str, Any], registry: RegistryConfig, *, size_bytes: int | None = None, champion: Champion | None = None
) -> tuple[Check, ...]:
    """Every limit that is asked, and whether it is kept.

    A number that is missing, not finite or out of its range refuses. With ``min_gain`` at -1 no gain
    is asked of a model whose baseline was not measured. Without a champion, nothing is asked against
    one: the first model has none.

    Args:
        metrics: Content of metrics.json.
        registry: The limits.
        size_bytes: Of the weights.
        champion: None: there is none yet, or it is this very model.
    """
    return tuple(_checks(metrics, registry, size_bytes, champion))


def reasons(checks: tuple[Check, ...]) -> tuple[str, ...]:
    """Why a model may not be registered; empty where it may."""
    return tuple(check.reason for check in checks if check.reason is not None)


def gate_page(name: str, checks: tuple[Check, ...], *, outcome: str, champion: Champion | None) -> str:
    """Markdown that says what was asked, what was seen and what came of it.

    Args:
        name: Of the model.
        checks: From :func:`check_gate`.
        outcome: One sentence.
        champion: What it was held against.
    """
    refused = reasons(checks)
    rows = [(check.what, check.limit, check.seen, "passes" if check.reason is None else "refuses") for check in checks]
    lines = [f"# {name}: {'refused' if refused else 'passed'}", "", markdown_text(outcome), ""]
    lines += [markdown_table(("What", "Asked", "Seen", ""), rows), ""]
    if refused:
        lines += ["## Why", "", *(f"- {markdown_text(reason)}" for reason in refused), ""]
    held = "There was no other champion to compare with." if champion is None else f"Champion: version {champion.version}."
    lines += [
        f"{held} Scores are fractions, measured on the test split. The limits are those of `registry` in `params.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _checks(
    metrics: Mapping[str, Any], registry: RegistryConfig, size_bytes: int | None, champion: Champion | None
) -> Iterator[Check]:
    yield _least("miou", metrics.get("miou"), (0, 1), "min_miou", registry.min_miou)
    supervised, compared = has_supervised_baseline(metrics), metrics.get("baseline_miou") is not None
    if registry.min_gain > -1 and compared and not supervised:
        seen = f"over {metrics['baseline_method']}"
        reason = f"miou_gain is {seen}, registry.min_gain asks for the gain over the supervised baseline: score with that one"
        yield Check("miou_gain", f"registry.min_gain {registry.min_gain:.4f}", seen, reason)
    elif registry.min_gain > -1 or supervised:
        yield _least("miou_gain", metrics.get("miou_gain"), (-1, 1), "min_gain", registry.min_gain)
    if registry.max_ece is not None:
        yield _most("ece", metrics.get("ece"), "max_ece", registry.max_ece, top=1)
    if registry.max_size_mb is not None:
        size = None if size_bytes is None else size_bytes / 1e6
        yield _most("size of the weights in MB", size, "max_size_mb", registry.max_size_mb)
    if champion is not None and (registry.min_champion_gain is not None or registry.max_class_drop is not None):
        yield from _against(metrics, registry, champion)


def _against(metrics: Mapping[str, Any], registry: RegistryConfig, champion: Champion) -> Iterator[Check]:
    """Limits against the champion, which count only where both were measured in the same way."""
    for key in _COMPARABLE:
        ours, theirs = metrics.get(key), champion.metrics.get(key)
        if ours is None or ours != theirs:
            short = [str(value)[:24] for value in (ours, theirs)]
            yield Check(
                f"{key} as the champion's",
                short[1],
                short[0],
                f"{key} is {short[0]}, that of champion {champion.version} is {short[1]}: their scores cannot be compared. "
                "Score both alike, or set registry.min_champion_gain and registry.max_class_drop to null for once",
            )
            return
    if registry.min_champion_gain is not None:
        yield _champion_gain(metrics, registry.min_champion_gain, champion)
    if registry.max_class_drop is not None:
        yield _class_drop(metrics, registry.max_class_drop, champion)


def _champion_gain(metrics: Mapping[str, Any], least: float, champion: Champion) -> Check:
    what, limit = f"gain over champion {champion.version}", f"registry.min_champion_gain {least:.4f}"
    ours = _number("miou", metrics.get("miou"), (0, 1))
    if isinstance(ours, str):
        return Check(what, limit, str(metrics.get("miou")), ours)
    theirs = _number(f"miou of champion {champion.version}", champion.metrics.get("miou"), (0, 1))
    if isinstance(theirs, str):
        return Check(what, limit, str(champion.metrics.get("miou")), theirs)
    gain = ours - theirs
    seen = f"{gain:.4f}"
    if gain < least - _ROUNDING:
        return Check(what, limit, seen, f"{what} is {seen} ({theirs:.4f} to {ours:.4f}), below {limit}")
    return Check(what, limit, seen)


def _class_drop(metrics: Mapping[str, Any], most: float, champion: Champion) -> Check:
    what, limit = f"largest drop of a class against champion {champion.version}", f"registry.max_class_drop {most:.4f}"
    ours, theirs = _class_ious(metrics), _class_ious(champion.metrics)
    if not theirs:
        return Check(what, limit, "not measured", f"the champion {champion.version} has no per_class scores to compare with")
    drops: dict[str, float] = {}
    for name, before in theirs.items():
        if before is None:  # the champion's test images did not show it
            continue
        after = _number(f"IoU of {name}", ours.get(name), (0, 1))
        if isinstance(after, str):
            return Check(what, limit, f"{name}: not measured", after)
        drops[name] = before - after
    if not drops:
        return Check(what, limit, "not measured", f"no class of champion {champion.version} was measured")
    worst = max(drops, key=lambda name: drops[name])
    seen = f"{worst}: {drops[worst]:.4f}"
    if drops[worst] > most + _ROUNDING:
        change = f"{theirs[worst]:.4f} to {ours[worst]:.4f}"
        return Check(what, limit, seen, f"{worst} loses {drops[worst]:.4f} IoU ({change}), above {limit}")
    return Check(what, limit, seen)


def _class_ious(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    rows = metrics.get("per_class")
    if not isinstance(rows, Mapping):
        return {}
    return {str(name): row.get("iou") if isinstance(row, Mapping) else None for name, row in rows.items()}


def _least(key: str, value: object, bounds: tuple[int, int], limit: str, least: float) -> Check:
    asked = f"registry.{limit} {least:.4f}"
    if value is None:
        return Check(key, asked, "not measured", f"{key} was not measured, registry.{limit} asks for {least:g} or more")
    found = _number(key, value, bounds)
    if isinstance(found, str):
        return Check(key, asked, str(value), found)
    seen = f"{found:.4f}"
    return Check(key, asked, seen, f"{key} is {seen}, below {asked}" if found < least - _ROUNDING else None)


def _most(key: str, value: object, limit: str, most: float, *, top: float | None = None) -> Check:
    asked = f"registry.{limit} {most:g}"
    if value is None:
        return Check(key, asked, "not measured", f"{key} was not measured, registry.{limit} asks for {most:g} or less")
    found = _number(key, value, (0, top))
    if isinstance(found, str):
        return Check(key, asked, str(value), found)
    seen = f"{found:.4f}"
    return Check(key, asked, seen, f"{key} is {seen}, above {asked}" if found > most + _ROUNDING else None)


def _number(key: str, value: object, bounds: tuple[float, float | None]) -> float | str:
    """A value that is a number within its bounds, or what is wrong with it."""
    if value is None:
        return f"{key} was not measured"
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return f"{key} is {value!r}, which is no number"
    low, high = bounds
    if value < low or (high is not None and value > high):
        return f"{key} is {value:g}, but a fraction lies in [{low}, {high}]"
    return value
