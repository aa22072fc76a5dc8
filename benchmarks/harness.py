"""Rows of a table of costs: two things measured in turn in the same run, and the ratio of the two.

A module in ``benchmarks/rows`` holds ``ROWS``, a tuple of :class:`Row`. A row's ``measure`` makes its inputs and gives
a :class:`Pair` of calls, which :func:`run` times, or :class:`Samples` of what it has measured itself (bytes, seconds
of a command).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WARM_UPS, LONG = 2, 2.0  # rounds that are not counted; one is enough where it takes this many seconds


class Unavailable(Exception):
    """What a row needs is not on this machine; the message says what, and how to get it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two calls to be timed in turn."""

    ours: Callable[[], object]
    against: Callable[[], object]
    calls: int = 1  # of each in a repeat; their mean counts
    clock: Callable[[], float] = time.perf_counter  # time.process_time where work is on one thread: others disturb it less
    note: str = ""  # what to know of the figures


@dataclass(frozen=True, slots=True)
class Samples:
    """Figures that a row measured itself: one of each a repeat."""

    ours: Sequence[float]
    against: Sequence[float] | None  # None where the goal is on ours alone
    unit: str = "s"  # s | MB | 1/s
    note: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row should reach. See :func:`at_most` and :func:`at_least`."""

    limit: float
    lowest: bool  # whether the limit is a lower one

    def __str__(self) -> str:
        return f"{'at least' if self.lowest else 'at most'} {self.limit:g}"

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.lowest else value <= self.limit


def at_most(limit: float) -> Goal:
    """``ours / against`` is not above the limit; without ``against``, ours is not."""
    return Goal(limit, False)


def at_least(limit: float) -> Goal:
    """``against / ours``, how many times as fast, is not below the limit. (For rates, give seconds an item.)"""
    return Goal(limit, True)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str  # dotted, unique: "step.lite0"
    what: str
    against: str  # what it is measured against; "" for nothing
    goal: Goal | None  # None reports only, ours / against
    measure: Callable[[int], Pair | Samples]  # takes the number of repeats
    repeats: int = 15  # of a run without --repeats; all of a row should take less than three minutes


@dataclass(frozen=True, slots=True)
class Result:
    """What a row measured."""

    row: Row
    samples: Samples | None = None  # None where it could not be
    missing: str = ""  # why not

    @property
    def ratios(self) -> list[float]:
        """One a repeat; above 1 is good where the goal is :func:`at_least`, and bad elsewhere."""
        if self.samples is None or self.samples.against is None:
            return []
        faster = self.row.goal is not None and self.row.goal.lowest
        pairs = zip(self.samples.ours, self.samples.against, strict=True)
        return [b / a if faster else a / b for a, b in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: medians, the quartiles of the ratio, and whether the median reaches the goal."""
        ratios, samples, goal = self.ratios, self.samples, self.row.goal
        ratio = statistics.median(ratios) if ratios else None
        ours = None if samples is None else statistics.median(samples.ours)
        decisive = ours if ratio is None else ratio
        return {
            "name": self.row.name,
            "what": self.row.what,
            "measured_against": self.row.against or None,
            "unit": None if samples is None else samples.unit,
            "repeats": 0 if samples is None else len(samples.ours),
            "ours": ours,
            "against": None if samples is None or samples.against is None else statistics.median(samples.against),
            "ratio": ratio,
            "spread": _quartiles(ratios or ([] if samples is None else samples.ours)),
            "goal": None if goal is None else str(goal),
            "reached": None if goal is None or decisive is None else goal.reached(decisive),
            "note": self.missing or ("" if samples is None else samples.note),
        }


def run(row: Row, repeats: int | None = None) -> Result:
    """Measure a row.

    Args:
        row: Which.
        repeats: How often; None takes the row's own number.
    """
    repeats = repeats or row.repeats
    try:
        measured = row.measure(repeats)
    except Unavailable as reason:
        return Result(row, missing=str(reason))
    return Result(row, time_in_turn(measured, repeats) if isinstance(measured, Pair) else measured)


def time_in_turn(pair: Pair, repeats: int) -> Samples:
    """Seconds of both calls of each repeat. Every other repeat begins with the other one, so that neither gains by its place."""
    for _ in range(WARM_UPS):
        if sum(_seconds(pair, call) for call in (pair.ours, pair.against)) > LONG:
            break
    seconds: tuple[list[float], list[float]] = ([], [])
    both = list(zip((pair.ours, pair.against), seconds, strict=True))
    for repeat in range(repeats):
        for call, own in reversed(both) if repeat % 2 else both:
            own.append(_seconds(pair, call) / pair.calls)
    return Samples(*seconds, note=pair.note)


def _seconds(pair: Pair, call: Callable[[], object]) -> float:
    started = pair.clock()
    for _ in range(pair.calls):
        call()
    return pair.clock() - started


def choose(rows: Sequence[Row], only: str | None) -> list[Row]:
    """The rows of a comma-separated list; a part that is no row's name stands for all whose names begin with it.

    Raises:
        ValueError: A part of the list matches no row.
    """
    if only is None:
        return list(rows)
    chosen: set[str] = set()
    for part in (part.strip() for part in only.split(",")):
        names = {row.name for row in rows if row.name == part} or {row.name for row in rows if row.name.startswith(part)}
        if not names:
            raise ValueError(f"no row begins with {part!r}; there are: {', '.join(row.name for row in rows)}")
        chosen |= names
    return [row for row in rows if row.name in chosen]


HEAD = f"{'row':28s}{'ours':>12s}{'against':>12s}{'ratio':>9s}  {'quartiles':16s}{'goal':14s}{'':4s}"


def line(result: Result) -> str:
    """A result as a line of text, and a second one where there is something to add."""
    found = result.to_dict()
    ours, against = (_amount(found[side], found["unit"]) for side in ("ours", "against"))
    ratio = "" if found["ratio"] is None else f"{found['ratio']:.3f}"
    spread = "" if found["spread"] is None else "{:.3f} - {:.3f}".format(*found["spread"])
    verdict = {None: "", True: "yes", False: "no"}[found["reached"]]
    text = f"{found['name']:28s}{ours:>12s}{against:>12s}{ratio:>9s}  {spread:16s}{found['goal'] or '':14s}{verdict:4s}".rstrip()
    what = f"{result.row.what}, against {result.row.against}" if result.row.against else result.row.what
    return "\n".join([text, f"    {what}", *([f"    {found['note']}"] if found["note"] else [])])


def _quartiles(values: Sequence[float]) -> list[float] | None:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else None


def _amount(value: float | None, unit: str | None) -> str:
    if value is None:
        return ""
    if unit == "s":
        return f"{value:.2f} s" if value >= 10 else f"{value * 1e3:.2f} ms"
    return f"{value:.1f} {unit}"
