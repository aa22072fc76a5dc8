"""Mean Teacher: the student's probabilities follow those of its own running average (arXiv:1703.01780)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cwbass.config import Fraction, NonNegative
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import keep_all, report
from cwbass.models.ema import follow_, make_ema_teacher
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch
from cwbass.world import World


class MeanTeacherConfig(MethodConfig):
    """Numbers as in the segmentation baseline of CPS (arXiv:2106.01226)."""

    name: Literal["mean_teacher"] = "mean_teacher"
    unsup_weight: NonNegative = Field(default=100.0, description="Weight of the squared difference.")
    ema_decay: Fraction = Field(default=0.99, description="Share of itself that the teacher keeps at a step.")
    views: Literal["same", "strong"] = Field(
        default="strong", description="What the student sees of unlabelled images: the teacher's view, or a strong one."
    )


class MeanTeacher(Method):
    """L = CE(x) + w * mean (p_student - p_teacher)^2 over labelled and unlabelled pixels."""

    config_cls: ClassVar[type[MethodConfig]] = MeanTeacherConfig
    needs_unlabeled: ClassVar[bool] = True
    ships: ClassVar[tuple[str, ...]] = ("student", "teacher")

    def __init__(self, config: MeanTeacherConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.teacher = make_ema_teacher(self.student)

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        strong = unlabeled.strong if self.config.views == "strong" else unlabeled.weak
        logits_x, logits_u = self.student(labeled.image), self.student(strong)
        with torch.no_grad():
            taught = torch.cat((self.teacher(labeled.image), self.teacher(unlabeled.weak)))
        valid = torch.cat((labeled.mask != self.ignore_index, unlabeled.valid))
        loss_sup = self.supervised_loss(logits_x, labeled.mask, progress.world)
        loss_unsup = probability_distance(torch.cat((logits_x, logits_u)), taught, valid, world=progress.world)
        loss = loss_sup + self.unsup_scale * self.config.unsup_weight * loss_unsup
        targets = keep_all(taught[len(labeled.image) :], unlabeled.valid)
        return report(loss, loss_sup=loss_sup, loss_unsup=loss_unsup, sums=targets.counts(self.num_classes))

    def after_optimizer_step(self, progress: Progress) -> None:
        follow_(self.teacher, self.student, updates=progress.step, decay=self.config.ema_decay)


def probability_distance(logits: Tensor, taught: Tensor, valid: Tensor, *, world: World) -> Tensor:
    """Mean squared difference of two networks' probabilities, over classes and valid pixels.

    Args:
        logits: Of the one that learns. [B, C, H, W] float.
        taught: Of the other. [B, C, H, W] float.
        valid: Pixels that take part. [B, H, W] bool.
        world: Processes that hold the rest of the batch.

    Returns:
        [] float in [0, 1]; 0, still on the graph, where no pixel takes part.
    """
    distance = (logits.softmax(1, dtype=torch.float32) - taught.softmax(1, dtype=torch.float32)).square().mean(1)  # [B, H, W]
    return (distance * valid).sum() / world.share(valid.sum())
