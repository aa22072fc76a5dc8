"""A teacher whose weights are an exponential moving average of the student's."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from cwbass.models.base import SegmentationNet

Buffers = Literal["copy", "average"]


def make_ema_teacher(student: SegmentationNet) -> SegmentationNet:
    """A copy of the student that takes no gradient and stays in eval mode."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


def decay_of_run(decay: float | Literal["auto"], steps: int) -> float:
    """Decay of a run: as given, or for ``auto`` ``1 - 6 / steps`` in [0, 0.99].

    An average reaches back over 1 / (1 - decay) updates. Of a run of 200 steps, 0.99 would be half, and the teacher would
    lag behind; ``auto`` is a sixth of a run, and 0.99 from 600 steps on.

    Args:
        decay: In [0, 1], or ``auto``.
        steps: Of the whole schedule, warm-up included, >= 1.
    """
    return min(0.99, max(0.0, 1 - 6 / steps)) if decay == "auto" else decay


def ema_decay_at(updates: int, *, decay: float, ramp: bool) -> float:
    """Decay of an update: ``min(1 - 1/(t + 1), decay)`` with a ramp, else ``decay``.

    The ramp makes the first update a copy and the early ones a plain mean, so that the
    teacher does not carry its starting weights for ever.

    Args:
        updates: Updates made before, t >= 0.
        decay: Final decay, in [0, 1].
        ramp: Whether to ramp.

    Source:
        UniMatch V2 (arXiv:2410.10777) for the ramp; CW-BASS uses a constant 0.999.
    """
    return min(1 - 1 / (updates + 1), decay) if ramp else decay


def follow_(teacher: SegmentationNet, student: SegmentationNet, *, updates: int, decay: float) -> None:
    """An update with the ramp, running statistics averaged like weights.

    Args:
        teacher: Changed in place.
        student: Same architecture.
        updates: Made before; see :func:`ema_decay_at`.
        decay: After the ramp, in [0, 1].
    """
    update_ema_(teacher, student, decay=ema_decay_at(updates, decay=decay, ramp=True), buffers="average")


@torch.no_grad()
def update_ema_(teacher: SegmentationNet, student: SegmentationNet, *, decay: float, buffers: Buffers) -> None:
    """Move the teacher towards the student: ``teacher <- decay * teacher + (1 - decay) * student``.

    Args:
        teacher: Changed in place.
        student: Same architecture.
        decay: In [0, 1].
        buffers: Float buffers (running statistics) are averaged like weights, or copied as
            published; integer buffers are always copied.
    """
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - decay)
    followed: tuple[list[Tensor], list[Tensor]] = ([], [])
    copied: tuple[list[Tensor], list[Tensor]] = ([], [])
    for own, other in zip(teacher.buffers(), student.buffers(), strict=True):
        kind = followed if buffers == "average" and own.is_floating_point() else copied
        kind[0].append(own)
        kind[1].append(other)
    if followed[0]:
        torch._foreach_lerp_(*followed, 1 - decay)
    if copied[0]:
        torch._foreach_copy_(*copied)
