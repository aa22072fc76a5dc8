"""Equal budgets: how many optimiser steps a method may take for so many steps, minutes, or images through the encoder."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from cwbass.errors import DataError, ParamsError
from cwbass.methods.base import FIRST_STAGE_STEPS, Retraining

Kind = Literal["steps", "minutes", "passes"]
MOST_STEPS = 10**9


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work takes on one machine."""

    seconds: float | None  # None where no step was timed
    passes: float  # images through an encoder whose gradient is taken
    passes_no_grad: float  # images through an encoder without it: a teacher's, or labels made offline
    device_mb: float | None = None  # peak of the accelerator's memory, 10^6 bytes; None on a CPU


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What a method takes: a step, and where it has a second stage, a step of that and all of its labelling."""

    step: Cost
    retraining: Cost | None = None
    labelling: Cost | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read what :meth:`to_dict` gave.

        Raises:
            DataError: It is something else; ``where`` says where it was read.
        """
        try:
            costs: dict[str, Any] = {name: None if cost is None else Cost(**cost) for name, cost in values.items()}
            return cls(**costs)
        except (TypeError, AttributeError) as error:
            raise DataError(f"{where} holds no costs of a method ({error}). Delete it: they are measured again.") from error


@dataclass(frozen=True, slots=True)
class Budget:
    """What every cell of a comparison may spend, warm-up included."""

    kind: Kind
    amount: float

    def __str__(self) -> str:
        whole = float(self.amount).is_integer()
        return f"{self.kind}={self.amount:.0f}" if whole else f"{self.kind}={self.amount!r}"  # which reads back to the same

    @classmethod
    def parse(cls, text: str) -> Self:
        """``steps=1500``, ``minutes=20`` or ``passes=48000``.

        Raises:
            ParamsError: It is none of these, or not above 0.
        """
        kind, _, number = text.partition("=")
        try:
            amount = float(number)
        except ValueError:
            amount = math.nan
        if kind not in get_args(Kind) or not 0 < amount < math.inf or (kind == "steps" and not amount.is_integer()):
            raise ParamsError(f"--budget is {text!r}; write steps=1500, minutes=20 or passes=48000.")
        return cls(kind, amount)  # type: ignore[arg-type]

    def price(self, cost: Cost | None, *, steps: float = 1) -> float:
        """What work costs in this budget's unit; ``steps`` is how many optimiser steps it is.

        Raises:
            DataError: The unit is none that steps can tell, and the cost was not measured.
        """
        if self.kind == "steps":
            return steps
        if cost is not None and self.kind == "passes":
            return cost.passes + cost.passes_no_grad
        if cost is not None and cost.seconds is not None:
            return cost.seconds / 60
        raise DataError(
            f"a budget of {self} asks what a step takes, and that was not measured. Run `cwbass compare`: it does so."
        )


@dataclass(frozen=True, slots=True)
class Length:
    """Steps of a run: all of its schedule, and those of the warm-up among them."""

    steps: int
    warmup: int


def spent(
    steps: int,
    budget: Budget,
    cost: MethodCost | None,
    warmup: Cost | None,
    *,
    share: float,
    retraining: Retraining | None,
) -> float:
    """What a run takes of the budget, in its unit.

    Args:
        steps: Of the schedule, warm-up included.
        budget: Says in which unit.
        cost: Of the method; None where steps alone are counted.
        warmup: Cost of a supervised step; likewise.
        share: Of the steps that are the warm-up's.
        retraining: The second stage, which trains twice more; None where there is none.
    """
    first = warmup_steps(steps, share)
    total = first * budget.price(warmup) + (steps - first) * budget.price(cost.step if cost else None)
    if retraining is not None:
        total += 2 * (retraining.steps or steps) * budget.price(cost.retraining if cost else None)
        total += budget.price(cost.labelling if cost else None, steps=0)
    return total


def warmup_steps(steps: int, share: float) -> int:
    """The warm-up keeps its share of a longer or shorter run, and leaves the method a step."""
    return min(round(share * steps), steps - 1)


def longest(
    budget: Budget,
    name: str,
    *,
    cost: MethodCost | None,
    warmup: Cost | None,
    share: float,
    retraining: Retraining | None,
) -> Length:
    """The longest run that the budget pays for; see :func:`spent` for what it is of.

    Raises:
        ParamsError: It pays for no run at all, or not for one that a second stage can follow; ``name`` says of what.
        DataError: A cost was not measured.
    """

    def takes(steps: int) -> float:
        return spent(steps, budget, cost, warmup, share=share, retraining=retraining)

    steps = bisect_right(range(1, MOST_STEPS), budget.amount * (1 + 1e-9), key=takes)
    if steps < 2:
        raise ParamsError(
            f"a budget of {budget} is too small for {name}: two steps of it take {_text(takes(2))} {budget.kind}. Raise it."
        )
    found = Length(steps, warmup_steps(steps, share))
    if retraining is not None and found.steps - found.warmup < FIRST_STAGE_STEPS:
        raise ParamsError(
            f"a budget of {budget} is too small for {name}: of steps between warm-up and second stage it pays for "
            f"{found.steps - found.warmup}, and {FIRST_STAGE_STEPS} are needed. Raise it."
        )
    return found


def _text(amount: float) -> str:
    return f"{amount:.3g}" if amount < 1000 else f"{amount:,.0f}"
