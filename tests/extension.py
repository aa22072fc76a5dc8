"""What a project may add, all in one file: a layout, a network, a method, an optimiser and a schedule, each with its line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import DataConfig, ModelConfig, NonNegative, OptimizerConfig
from cwbass.data import LAYOUTS
from cwbass.data.folder import folder
from cwbass.data.listing import DatasetFiles
from cwbass.methods import METHODS
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.models import MODELS
from cwbass.models.base import SegmentationNet
from cwbass.optimizers import OPTIMIZERS, SCHEDULES
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def inner(root: Path, config: DataConfig) -> DatasetFiles:
    """Another name of the plain layout."""
    return folder(root, config)


class NamedNet(SegmentationNet):
    """The logit of a class is what a pixel has in common with the class's name: how often it has each letter."""

    letters: Tensor  # [C, 26]

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config.mean, config.std)
        self.pixels = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, len(LETTERS), 1))
        counts = [[float(name.count(letter)) for letter in LETTERS] for name in class_names]
        self.register_buffer("letters", torch.tensor(counts), persistent=False)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.pixels(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        return torch.einsum("bdhw,cd->bchw", features[0], self.letters)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.pixels[0].parameters())


class TaggedConfig(MethodConfig):
    name: Literal["tagged"] = "tagged"
    weight: NonNegative = 0.5
    classes: list[str] = Field(min_length=1)


class Tagged(Method):
    """Labelled pixels, and what is said of whole unlabelled images: a class's greatest logit tells whether it is shown."""

    config_cls: ClassVar[type[MethodConfig]] = TaggedConfig
    needs_unlabeled: ClassVar[bool] = True

    def __init__(self, config: TaggedConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.weight = config.weight
        self.asked = [self.class_names.index(name) for name in config.classes]
        self.student = build_model()

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        assert unlabeled.tags is not None
        loss_sup = self.supervised_loss(self.student(labeled.image), labeled.mask, progress.world)
        tags = unlabeled.tags[:, self.asked]  # [B, K]
        known = tags >= 0
        scores = self.student(unlabeled.weak)[:, self.asked].amax((2, 3))
        losses = F.binary_cross_entropy_with_logits(scores, (tags == 1).to(scores.dtype), reduction="none")
        loss_tags = (losses * known).sum() / progress.world.share(known.sum())
        loss = loss_sup + self.unsup_scale * self.weight * loss_tags
        return StepOutput(
            loss, means={"loss": loss.detach(), "shown": (tags == 1).float().mean(0), "known": known.float().mean()}
        )


def nesterov(groups: list[dict[str, Any]], config: OptimizerConfig, *, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=True)


def cosine(step: int, total_steps: int, config: OptimizerConfig, *, floor: float = 0.0) -> float:
    """Half a cosine from 1 to ``floor``."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / total_steps)) / 2


LAYOUTS["inner"] = inner
MODELS["named"] = NamedNet
METHODS["tagged"] = Tagged
OPTIMIZERS["nesterov"] = nesterov
SCHEDULES["cosine"] = cosine
