"""Tiny networks and random batches for the tests of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch

CLASSES = 4
IGNORE = 255

MakeBatches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
MakeProgress = Callable[..., Progress]


class PixelNet(SegmentationNet):
    """One 1 x 1 convolution: the logits of a pixel depend on that pixel alone."""

    def __init__(self, classes: int = CLASSES, **other: Any) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.conv = nn.Conv2d(3, classes, 1)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [image]

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.conv(features[0])
        return logits

    def encoder_parameters(self) -> list[nn.Parameter]:
        return []


class NormNet(PixelNet):
    """A 3 x 3 convolution with batch norm before the last one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.stem(image)]

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.stem.parameters())


@pytest.fixture
def pixel_net() -> type[SegmentationNet]:
    return PixelNet


@pytest.fixture
def norm_net() -> type[SegmentationNet]:
    return NormNet


@pytest.fixture
def batches() -> MakeBatches:
    """Random batches; the last ``padded`` rows of the unlabelled crops are padding, and of every other one the columns."""

    def make(*, size: int = 2, side: int = 12, padded: int = 3, seed: int = 0) -> tuple[LabeledBatch, UnlabeledBatch]:
        generator = torch.Generator().manual_seed(seed)

        def image() -> Tensor:
            coarse = torch.randint(0, 256, (size, 3, -(-side // 3), -(-side // 3)), generator=generator)
            return coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., :side, :side].to(torch.uint8)

        mask = torch.randint(0, CLASSES, (size, side, side), generator=generator)
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = IGNORE
        valid = torch.ones(size, side, side, dtype=torch.bool)
        valid[:, side - padded :] = False
        valid[::2, :, side - padded :] = False
        labeled = LabeledBatch(image(), mask.to(torch.uint8))
        return labeled, UnlabeledBatch(image(), image(), valid, strong2=image())

    return make


@pytest.fixture
def progress() -> MakeProgress:
    def make(step: int = 0, *, total: int = 100, start: int = 0, seed: int = 0) -> Progress:
        return Progress(step, total, start, 0, torch.Generator().manual_seed(seed))

    return make
