"""The seam every method of training fits into: a loss for each batch, and which networks there are.

A method never sees a loader, an optimiser, a path or a logger. Being an ``nn.Module``, its
``state_dict`` holds its networks and its threshold state, so a checkpoint of it is whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cwbass.config import EvalConfig, Section
from cwbass.losses import LabeledLoss
from cwbass.losses.supervised import HardPixels, supervised_cross_entropy
from cwbass.models.base import SegmentationNet
from cwbass.pseudo_labels import threshold_map
from cwbass.types import LabeledBatch, Progress, Reliability, StepOutput, UnlabeledBatch
from cwbass.world import World

FIRST_STAGE_STEPS = 3  # after the warm-up, at least: a second stage looks at its thirds


@dataclass(frozen=True, slots=True)
class Retraining:
    """How a second stage labels unlabelled images and trains anew on them (see ``steps.second_stage``)."""

    key: str  # the section that asks for it, for errors
    instead: str  # what to do where it cannot be had, for errors
    steps: int | None  # of each of its two trainings; None: as many as the run before
    reliable: float  # share of the unlabelled images labelled first, in (0, 1)
    flip: bool  # labels are the mean over the image and its mirror image
    scales: tuple[float, ...] | None = None  # and over these sizes; None: those of ``eval``

    def prediction(self, config: EvalConfig) -> EvalConfig:
        """How labels are predicted, where ``config`` says how images are."""
        scales = config.scales if self.scales is None else list(self.scales)
        return config.model_copy(update={"flip": self.flip, "scales": scales})


class MethodConfig(Section):
    """A method's own section of params.yaml; subclasses add their numbers."""

    name: str
    # For `cwbass ablate`: terms of the method, and what switches each off below `method`, as in {"cutmix": ["cutmix=0.0"]}.
    terms_off: ClassVar[Mapping[str, Sequence[str]]] = {}

    @property
    def retraining(self) -> Retraining | None:
        """The second stage, where the method has one; its name must then stand in ``OFFLINE`` too."""
        return None


class BuildModel(Protocol):
    """Makes a network; each call gives fresh weights."""

    def __call__(self, *, key: str = "model", **other: Any) -> SegmentationNet:
        """The run's network; or another, with these keys of ``model`` changed, from the weights that it names.

        ``key`` is the section that asks for it, for errors.
        """


class Method(nn.Module, ABC):
    """How one step turns a batch into a loss.

    Args:
        config: The method's section.
        build_model: Makes a network; called alike, it gives fresh, identically configured weights.
        num_classes: C.
        ignore_index: Mask value that takes no part.
        class_weight: What a labelled pixel of each class counts; None counts all alike. [C] float.
        hard: Which labelled pixels count; None counts all.
        labeled_loss: On labelled images; see ``losses.LABELED_LOSSES``.
        class_names: In the order of the logits, for a method that reads them. [C].
        num_labeled: Labelled images of the split, for a method that remembers something of each.
        num_unlabeled: Unlabelled ones, likewise.
    """

    config_cls: ClassVar[type[MethodConfig]]
    needs_unlabeled: ClassVar[bool]
    ships: ClassVar[tuple[str, ...]] = ("student",)  # attributes that are networks to be scored and shipped, preferred one last
    strong_views: ClassVar[int] = 1  # of each unlabelled crop: 1, or 2 for UnlabeledBatch.strong2
    wants_places: ClassVar[bool] = False  # whether batches say which part of which image their crops show: LabeledBatch.place

    student: SegmentationNet
    unsup_scale: float = 1.0  # factor on the weight of a loss on unlabelled images; the collapse guard lowers it

    class_weight: Tensor

    def __init__(
        self,
        config: MethodConfig,
        build_model: BuildModel,
        *,
        num_classes: int,
        ignore_index: int,
        class_weight: Tensor | None = None,
        hard: HardPixels | None = None,
        labeled_loss: LabeledLoss = supervised_cross_entropy,
        class_names: Sequence[str] = (),
        num_labeled: int = 0,
        num_unlabeled: int = 0,
    ) -> None:
        super().__init__()
        self.hard, self.labeled_loss = hard, labeled_loss
        self.num_classes, self.ignore_index, self.class_names = num_classes, ignore_index, tuple(class_names)
        self.num_labeled, self.num_unlabeled = num_labeled, num_unlabeled
        # It follows from the split and the parameters, so no checkpoint needs to carry it.
        self.register_buffer("class_weight", torch.ones(num_classes) if class_weight is None else class_weight, persistent=False)

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        """A step, as the loop takes it: ``training_step``, in which auxiliary heads learn too."""
        moved = self.trainable()
        for network in [moved] if isinstance(moved, SegmentationNet) else moved.children():
            if isinstance(network, SegmentationNet):
                network.begin_step()
        return self.training_step(labeled, unlabeled, progress)

    @abstractmethod
    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        """Loss of one batch, on the graph, with what the epoch's record needs.

        The first batch that goes through a network with a gradient begins with the labelled images.
        """

    def supervised_loss(self, logits: Tensor, mask: Tensor, world: World, network: SegmentationNet | None = None) -> Tensor:
        """The loss that the parameters name, rare classes and hard pixels as they ask; see ``supervised_cross_entropy``.

        Args:
            logits: Of the labelled images. [B, C, H, W] float.
            mask: [B, H, W] integer.
            world: Processes that hold the rest of the batch.
            network: What the logits are of, whose auxiliary heads then learn too; None: the student.

        Returns:
            That of each auxiliary head is added with its weight. [] float, cross-entropy in nats.
        """
        network = self.student if network is None else network
        loss = self._labeled_loss(logits, mask, world)
        for own in network.auxiliary_of_labeled(len(mask)):
            loss = loss + network.auxiliary_weight * self._labeled_loss(own, mask, world)
        return loss

    def _labeled_loss(self, logits: Tensor, mask: Tensor, world: World) -> Tensor:
        return self.labeled_loss(
            logits, mask.long(), ignore_index=self.ignore_index, class_weight=self.class_weight, hard=self.hard, world=world
        )

    def networks(self) -> dict[str, SegmentationNet]:
        """The networks that can be scored and shipped, preferred one last."""
        return {name: getattr(self, name) for name in self.ships}

    def trainable(self) -> nn.Module:
        """What the optimiser moves: the student, or a ``ModuleList`` that begins with it."""
        return self.student

    def after_optimizer_step(self, progress: Progress) -> None:
        """Update what follows the student (an EMA teacher)."""

    def keeps(self, confidence: Tensor, label: Tensor, threshold: Tensor | None) -> Tensor:
        """Which of its network's labels would teach, for the record: those of confidence tau or more; another rule says so here.

        Args:
            confidence: Of whole images. [B, H, W] float.
            label: Likewise. [B, H, W] int64.
            threshold: Mean of the tau that an epoch's steps reported, [] or [K]; None where they report none.

        Returns:
            [B, H, W] bool; all, where there is no threshold.
        """
        return confidence >= (0.0 if threshold is None else threshold_map(threshold, label))

    def start_from(self, networks: Mapping[str, SegmentationNet]) -> None:
        """Take over the weights of a warm-up: its ``student``, and its ``teacher`` where both have one."""
        for name, own in self.networks().items():
            own.load_state_dict(networks.get(name, networks["student"]).state_dict())

    def calibrate_labels(self, reliability: Reliability | None) -> None:
        """Learn from how often the network that made offline labels is right on the selection slice."""

    def calibrate(self, reliability: Reliability | None) -> None:
        """Learn from the selection slice, once per epoch; None where there is no slice."""
