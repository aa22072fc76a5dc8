"""Loss scaling: what float16 needs so that small gradients are not zero.

float16 holds nothing below 6e-8. The loss is multiplied by a power of two before the backward pass, and the gradients are
divided by it afterwards, which in float32 is exact. Where a gradient overflows, the step is skipped and the scale halved; after
many steps without, it is doubled. Those steps belong to the search, and are no fault of the run.

The rule and its numbers are those of ``torch.amp.GradScaler``. That one looks for values that are not finite and decides
on the step by itself; the loop does both already, for every precision and all processes alike, so what is left is a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LOWEST = 1.0  # below it, a gradient of a finite loss is too large for any precision


class LossScale:
    """The scale of now. A function of which steps overflowed, so the same in all processes.

    Args:
        value: To begin with, a power of two.
        growth_interval: Steps without an overflow after which it is doubled; None keeps the scale where it is.
    """

    def __init__(self, value: float = 2.0**16, *, growth_interval: int | None = 2000) -> None:
        self.value, self.growth_interval = value, growth_interval
        self._clean = 0  # steps since the last change

    @classmethod
    def off(cls) -> LossScale:
        """Changes no loss and no gradient, for the precisions that need no scale."""
        return cls(LOWEST, growth_interval=None)

    def scale(self, loss: Tensor) -> Tensor:
        """What the backward pass starts from. [] -> [] float32 or wider."""
        return loss if self.value == LOWEST else loss.to(torch.promote_types(loss.dtype, torch.float32)) * self.value

    def unscale_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of the scaled loss to those of the loss, in place."""
        if self.value != LOWEST:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / self.value)

    def step_taken(self) -> None:
        """The gradient was finite."""
        if self.growth_interval is None:
            return
        self._clean += 1
        if self._clean == self.growth_interval:
            self.value, self._clean = self.value * 2, 0

    def step_overflowed(self, losses: Tensor) -> bool:
        """The gradient was not finite: try half the scale.

        Args:
            losses: Of the step, summed over all processes, not scaled; any shape.

        Returns:
            Whether the scale may be to blame. It is not where a loss is not finite, nor where there is no lower scale.
        """
        if self.value <= LOWEST or not torch.isfinite(losses).all():
            return False
        self.value, self._clean = max(LOWEST, self.value / 2), 0
        return True

    def state(self) -> dict[str, Any]:
        """For :meth:`load`, and for a checkpoint."""
        return {"value": self.value, "clean": self._clean}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state` was asked for."""
        self.value, self._clean = float(state["value"]), int(state["clean"])
