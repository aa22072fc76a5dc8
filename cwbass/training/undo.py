"""Taking back what a step has done to a method before it turned out that the step cannot be taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BufferCopy:
    """The buffers of a module as they were: running statistics, thresholds.

    A forward pass moves them long before the gradient is known; one image that is not finite would stay in the running
    statistics for good.

    Args:
        module: Its buffers are changed in place, never replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for buffer in module.buffers():
            kinds.setdefault((buffer.device, buffer.dtype), []).append(buffer)  # of one kind, they are copied in one go
        self._pairs = [(own, [buffer.clone() for buffer in own]) for own in kinds.values()]

    def keep(self) -> None:
        """Remember them as they are."""
        for own, kept in self._pairs:
            torch._foreach_copy_(kept, own)

    def restore_(self) -> None:
        """Make them what they were."""
        for own, kept in self._pairs:
            torch._foreach_copy_(own, kept)
