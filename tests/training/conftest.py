"""A tiny network, batches and a method that follows a script, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from cwbass.methods.base import Method, MethodConfig
from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch


class TinyNet(SegmentationNet):
    """Encoder: a convolution and a norm. Decoder: a convolution."""

    def __init__(self) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.head = nn.Conv2d(4, 3, 1)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.encoder(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(features[0])
        return logits

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())


class NormedNet(TinyNet):
    """With a batch norm in place of the group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder[1] = nn.BatchNorm2d(4)


class Scripted(Method):
    """Step k's loss is ``weight * script[k]``, with weight starting at 1; it records what it is told."""

    needs_unlabeled = False

    def __init__(self, script: Sequence[float]) -> None:
        super().__init__(MethodConfig(name="scripted"), TinyNet, num_classes=3, ignore_index=255)
        self.student = TinyNet()
        self.student.weight = nn.Parameter(torch.ones(()))
        self.script = list(script)
        self.calls: list[Progress] = []
        self.draws: list[float] = []
        self.training_at: list[bool] = []
        self.updates: list[int] = []

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        value = self.script[len(self.calls)]
        self.calls.append(progress)
        self.draws.append(float(torch.rand((), generator=progress.generator)))
        self.training_at.append(self.student.training)
        weight: Tensor = self.student.weight  # type: ignore[assignment]
        loss = weight * value
        return StepOutput(loss, {"loss": loss.detach()}, {"pixels": torch.tensor([1, 2])})

    def after_optimizer_step(self, progress: Progress) -> None:
        self.updates.append(progress.step)


@pytest.fixture
def tiny_net() -> type[SegmentationNet]:
    return TinyNet


@pytest.fixture
def normed_net() -> type[SegmentationNet]:
    return NormedNet


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def make_batches() -> Callable[..., tuple[list[LabeledBatch], list[UnlabeledBatch]]]:
    def make(count: int, *, size: int = 2) -> tuple[list[LabeledBatch], list[UnlabeledBatch]]:
        generator = torch.Generator().manual_seed(0)

        def image() -> Tensor:
            return torch.randint(0, 256, (size, 3, 6, 6), generator=generator).to(torch.uint8)

        labeled, unlabeled = [], []
        for _ in range(count):
            mask = torch.randint(0, 3, (size, 6, 6), generator=generator).to(torch.uint8)
            labeled.append(LabeledBatch(image(), mask))
            unlabeled.append(UnlabeledBatch(image(), image(), torch.ones(size, 6, 6, dtype=torch.bool)))
        return labeled, unlabeled

    return make
