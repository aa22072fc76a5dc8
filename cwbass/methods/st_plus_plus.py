"""ST++: train on labels, label the rest offline, steady images first, and train anew (Yang et al., arXiv:2106.05095).

The first stage, here, is supervised training to the end of the schedule. ``steps.second_stage`` then ranks, labels and
trains twice more, with :class:`OfflineStPlusPlus`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cwbass.config import Positive
from cwbass.losses.confidence import pixel_cross_entropy
from cwbass.methods.base import BuildModel, Method, MethodConfig, Retraining
from cwbass.methods.consistency import NO_LABEL, Targets, report
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch
from cwbass.world import World


class StPlusPlusConfig(MethodConfig):
    """Numbers as published."""

    name: Literal["st_plus_plus"] = "st_plus_plus"
    retrain_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Steps of each of the two retrainings; null: as many as train.steps, warm-up included."
    )
    reliable: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of the unlabelled images labelled first."
    )
    flip: bool = Field(default=True, description="Whether labels are the mean over the image and its mirror image.")
    scales: list[Positive] = Field(
        default=[0.5, 0.75, 1.0, 1.5, 2.0], min_length=1, description="Input scales over which labels are averaged."
    )

    @property
    def retraining(self) -> Retraining | None:
        steps, scales = self.retrain_steps, tuple(self.scales)
        return Retraining("method.name: st_plus_plus", "use another method", steps, self.reliable, self.flip, scales)


class StPlusPlus(Method):
    """The first stage: L = CE(x). There is no teacher and no average."""

    config_cls: ClassVar[type[MethodConfig]] = StPlusPlusConfig
    needs_unlabeled: ClassVar[bool] = False

    def __init__(self, config: StPlusPlusConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.student = build_model()

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        loss = self.supervised_loss(self.student(labeled.image), labeled.mask, progress.world)
        return StepOutput(loss, means={"loss": loss.detach(), "loss_sup": loss.detach()})


class OfflineStPlusPlus(StPlusPlus):
    """A retraining: L = CE over the pixels of labelled images and of strong views with their offline labels, all alike."""

    needs_unlabeled: ClassVar[bool] = True

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        assert unlabeled.pseudo_label is not None
        assert unlabeled.confidence is not None
        world, valid = progress.world, unlabeled.valid
        label = unlabeled.pseudo_label.where(valid, 0).long()  # padding holds ignore_index, which indexes nothing
        logits = self.student(torch.cat((labeled.image, unlabeled.strong)))
        logits_x, logits_u = logits[: len(labeled.image)], logits[len(labeled.image) :]
        loss_sup = self.supervised_loss(logits_x, labeled.mask, world)
        loss_unsup = (pixel_cross_entropy(logits_u, label, ignore_index=NO_LABEL) * valid).sum() / world.share(valid.sum())
        share = labeled_share(labeled.mask != self.ignore_index, valid, world)
        targets = Targets(label, unlabeled.confidence / 255, valid.float(), valid)
        return report(
            share * loss_sup + (1 - share) * loss_unsup,
            loss_sup=loss_sup,
            loss_unsup=loss_unsup,
            sums=targets.counts(self.num_classes),
        )


def labeled_share(known: Tensor, valid: Tensor, world: World) -> Tensor:
    """Which part of all pixels that teach is labelled, so that means of the two kinds make the mean of all.

    Args:
        known: Labelled pixels. [B, H, W] bool.
        valid: Pixels of unlabelled images that are no padding. [B, H, W] bool.
        world: Processes that hold the rest of the batch.

    Returns:
        [] float in [0, 1].
    """
    labeled, unlabeled = world.total(known.sum()).double(), world.total(valid.sum()).double()
    return (labeled / (labeled + unlabeled).clamp(min=1)).float()
