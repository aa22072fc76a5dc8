"""Supervised-only training: the baseline, and the warm-up of every other method."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from cwbass.config import EmaDecay
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.models.ema import decay_of_run, follow_, make_ema_teacher
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch


class SupervisedConfig(MethodConfig):
    """Cross-entropy on labelled images, with an average of the weights beside them."""

    name: Literal["supervised"] = "supervised"
    ema_decay: EmaDecay = Field(
        default="auto",
        description="Decay of the averaged weights that become the first teacher. auto: min(0.99, 1 - 6 / steps), of all steps.",
    )


class Supervised(Method):
    """Labelled images only. Nothing in its loss looks at the average it keeps."""

    config_cls: ClassVar[type[MethodConfig]] = SupervisedConfig
    needs_unlabeled: ClassVar[bool] = False
    ships: ClassVar[tuple[str, ...]] = ("student", "teacher")

    def __init__(self, config: SupervisedConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.teacher = make_ema_teacher(self.student)

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        loss = self.supervised_loss(self.student(labeled.image), labeled.mask, progress.world)
        return StepOutput(loss, means={"loss": loss.detach(), "loss_sup": loss.detach()})

    def after_optimizer_step(self, progress: Progress) -> None:
        follow_(
            self.teacher, self.student, updates=progress.step, decay=decay_of_run(self.config.ema_decay, progress.total_steps)
        )
