"""The seam every method of training fits into: three functions, no shared behaviour.

A method never sees a loader, an optimiser, a path or a logger. Being an ``nn.Module``, its
``state_dict`` holds its networks and its threshold state, so a checkpoint of it is whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from cwbass.config import Section
from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, Reliability, StepOutput, UnlabeledBatch


class MethodConfig(Section):
    """A method's own section of params.yaml; subclasses add their numbers."""

    name: str


class Method(nn.Module, ABC):
    """How one step turns a batch into a loss.

    Args:
        config: The method's section.
        build_model: Makes a network; each call gives fresh, identically configured weights.
        num_classes: C.
        ignore_index: Mask value that takes no part.
        class_weight: What a labelled pixel of each class counts; None counts all alike. [C] float.
    """

    config_cls: ClassVar[type[MethodConfig]]
    needs_unlabeled: ClassVar[bool]

    student: SegmentationNet
    unsup_scale: float = 1.0  # factor on the weight of a loss on unlabelled images; the collapse guard lowers it

    class_weight: Tensor

    def __init__(
        self,
        config: MethodConfig,
        build_model: Callable[[], SegmentationNet],
        *,
        num_classes: int,
        ignore_index: int,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        # It follows from the split and the parameters, so no checkpoint needs to carry it.
        self.register_buffer("class_weight", torch.ones(num_classes) if class_weight is None else class_weight, persistent=False)

    @abstractmethod
    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        """Loss of one batch, on the graph, with what the epoch's record needs."""

    @abstractmethod
    def networks(self) -> dict[str, SegmentationNet]:
        """The networks that can be scored and shipped, preferred one last: ``student``, ``teacher``."""

    def after_optimizer_step(self, progress: Progress) -> None:
        """Update what follows the student (an EMA teacher)."""

    def start_from(self, networks: Mapping[str, SegmentationNet]) -> None:
        """Take over the weights of a warm-up: its ``student``, and its ``teacher`` where both have one."""
        for name, own in self.networks().items():
            own.load_state_dict(networks.get(name, networks["student"]).state_dict())

    def calibrate(self, reliability: Reliability | None) -> None:
        """Learn from the selection slice, once per epoch; None where there is no slice."""
