"""What travels between data, methods and the training loop.

Shapes: B images, C classes, H x W pixels. Images stay uint8 in [0, 255] until the network
normalises them, so that batches are small and every view costs integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from cwbass.world import ALONE, World


def sent(drawn: Tensor, like: Tensor) -> Tensor:
    """What was drawn on the CPU, on the device of ``like``: a GPU fetches it from page-locked memory, and nobody waits."""
    return drawn.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else drawn.to(like.device)


# Columns of a batch's places: the image, by its number among the split's labelled (unlabelled) ones; the rectangle of it that the
# crop shows; the crop's pixels that show it, from the upper left, the rest being padding; and whether it is mirrored. Pixels.
PLACE = ("index", "top", "left", "height", "width", "out_height", "out_width", "mirror")


def shown(place: Tensor, size: int) -> Tensor:
    """Which pixels of crops show their images, and not padding. [B, 8] -> [B, S, S] bool."""
    line = torch.arange(size, device=place.device)
    rows, columns = (line < place[:, PLACE.index(side), None] for side in ("out_height", "out_width"))
    return rows[:, :, None] & columns[:, None, :]


@dataclass(frozen=True, slots=True)
class LabeledBatch:
    """Weakly augmented images with their masks."""

    image: Tensor  # [B, 3, H, W] uint8
    mask: Tensor  # [B, H, W] uint8, class index; ignore_index where padded or unknown
    tags: Tensor | None = None  # [B, C] int8, as of an UnlabeledBatch
    place: Tensor | None = None  # [B, 8] int64, as of an UnlabeledBatch

    def to(self, device: torch.device) -> LabeledBatch:
        """Copy to ``device`` (asynchronously from pinned memory)."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> LabeledBatch:
        """Copy to page-locked memory; called by ``DataLoader(pin_memory=True)``."""
        return _map(self, Tensor.pin_memory)


@dataclass(frozen=True, slots=True)
class UnlabeledBatch:
    """Views of the same crops: same geometry, different photometry."""

    weak: Tensor  # [B, 3, H, W] uint8, what the teacher labels
    strong: Tensor  # [B, 3, H, W] uint8, what the student learns from
    valid: Tensor  # [B, H, W] bool, False where the crop was padded
    pseudo_label: Tensor | None = None  # [B, H, W] uint8, only where labels were made offline
    confidence: Tensor | None = None  # [B, H, W] uint8, 255 * confidence of the offline labels
    strong2: Tensor | None = None  # [B, 3, H, W] uint8, a second strong view, only for a method with two strong_views
    # [B, C] int8: 1 where the whole image is said to show a class, 0 where not to, -1 where nothing is said of it; the crop may
    # lack what the image shows. None where no labelled (unlabelled) image of the split has tags.
    tags: Tensor | None = None
    place: Tensor | None = None  # [B, 8] int64: what each crop is of, as in PLACE; only for a method that asks for places

    def to(self, device: torch.device) -> UnlabeledBatch:
        """Copy to ``device`` (asynchronously from pinned memory)."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> UnlabeledBatch:
        """Copy to page-locked memory; called by ``DataLoader(pin_memory=True)``."""
        return _map(self, Tensor.pin_memory)


Batch = TypeVar("Batch", LabeledBatch, UnlabeledBatch)


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    values = (getattr(batch, each.name) for each in fields(batch))
    changed: list[Any] = [None if value is None else change(value) for value in values]
    return type(batch)(*changed)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands; all a method may know of the loop."""

    step: int  # optimiser steps taken before this one, warm-up included
    total_steps: int  # of the whole schedule, warm-up included
    start_step: int  # the step at which this stage began (0 in the warm-up)
    epoch: int  # of this stage, from 0
    generator: torch.Generator  # CPU, seeded from (seed, step): same step, same draws
    pass_steps: int = 1  # steps of a pass over the unlabelled images: an epoch as papers count it
    world: World = ALONE  # the processes that hold the rest of the batch; they draw the same from their generators
    # Takes a part of the loss and gives its value: the loop backpropagates it at once, which frees its graph. A method that is
    # done with one of its forward passes before it begins another then needs the memory of one. Nobody need call it.
    settle: Callable[[Tensor], Tensor] = lambda part: part

    @property
    def stage_fraction(self) -> float:
        """Share of this stage that is done, in [0, 1)."""
        return (self.step - self.start_step) / max(1, self.total_steps - self.start_step)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a training step gives the loop. Everything but ``loss`` is detached."""

    loss: Tensor  # [] float, the whole loss; on the graph, but for what was settled
    means: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # [], or [K] of a threshold; averaged over the epoch and the processes
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # [], [N] or [K, N] each; summed over the epoch and the processes


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often predictions on the selection slice are right, by class and confidence.

    Bin i of N holds confidences in [i/N, (i+1)/N); the last bin includes 1.
    """

    correct: Tensor  # [C, N] float64, pixels predicted as class c in bin n that are class c
    total: Tensor  # [C, N] float64, pixels predicted as class c in bin n
