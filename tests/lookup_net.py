"""A network whose logits are written down in a table, for losses worked by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, UnlabeledBatch

# Red value of a pixel -> probability of class 0 of two.
UNSURE, THREE_QUARTERS, SURE, SURE_OF_ONE = 0, 1, 2, 3
PROBABILITY = {UNSURE: 0.5, THREE_QUARTERS: 0.75, SURE: 0.95, SURE_OF_ONE: 0.05}


class LookupNet(SegmentationNet):
    """The red value of a pixel chooses a row of the table: its logits, which are its features too."""

    def __init__(self, probability: Mapping[int, float] = PROBABILITY, **other: Any) -> None:
        super().__init__((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
        logits = [[math.log(p / (1 - p)), 0.0] for _, p in sorted(probability.items())]
        self.table = nn.Parameter(torch.tensor(logits))

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.table[image[:, 0].round().long()].movedim(-1, 1)]

    def decode(self, features: list[Tensor]) -> Tensor:
        return features[0]

    def encoder_parameters(self) -> list[nn.Parameter]:
        return []


def image(reds: Sequence[int]) -> Tensor:
    """An image of one row. [1, 3, 1, W] uint8."""
    row = torch.tensor(reds, dtype=torch.uint8)
    return torch.stack((row, torch.zeros_like(row), torch.zeros_like(row)))[None, :, None]


def labeled(reds: Sequence[int], mask: Sequence[int]) -> LabeledBatch:
    return LabeledBatch(image(reds), torch.tensor(mask, dtype=torch.uint8)[None, None])


def unlabeled(
    weak: Sequence[int], strong: Sequence[int], strong2: Sequence[int] | None = None, *, padded: int = 0
) -> UnlabeledBatch:
    """The last ``padded`` pixels are padding."""
    valid = torch.ones(1, 1, len(weak), dtype=torch.bool)
    if padded:
        valid[..., -padded:] = False
    return UnlabeledBatch(image(weak), image(strong), valid, strong2=image(strong2 or strong))
