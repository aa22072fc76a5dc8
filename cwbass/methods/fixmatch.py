"""FixMatch for segmentation: the student's sure labels on a weak view teach it on a strong one.

Source: Sohn et al., arXiv:2001.07685; for segmentation with CutMix as the baseline of UniMatch
(arXiv:2208.09910). There is no teacher: labels are the student's own.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from cwbass.config import Fraction, NonNegative
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import consistency_loss, cutmix, draw_cutmix, report
from cwbass.methods.selection import Selection, SelectionConfig
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch


class FixMatchConfig(MethodConfig):
    """Numbers as published for PASCAL VOC with UniMatch; for Cityscapes tau is 0 there."""

    name: Literal["fixmatch"] = "fixmatch"
    threshold: SelectionConfig = SelectionConfig()
    cutmix: Fraction = Field(default=0.5, description="Probability of CutMix for an unlabelled image.")
    unsup_weight: NonNegative = Field(default=1.0, description="Weight of the unlabelled loss.")


class FixMatch(Method):
    """L = (CE(x) + w * CE(strong, label of weak, where sure)) / 2."""

    config_cls: ClassVar[type[MethodConfig]] = FixMatchConfig
    needs_unlabeled: ClassVar[bool] = True

    def __init__(self, config: FixMatchConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.selection = Selection(config.threshold, self.num_classes)

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        world = progress.world
        logits = self.student(torch.cat((labeled.image, unlabeled.weak)))
        logits_x, logits_w = logits[: len(labeled.image)], logits[len(labeled.image) :].detach()
        targets = self.selection(logits_w, unlabeled.valid, world)
        boxes = draw_cutmix(unlabeled.strong, probability=self.config.cutmix, progress=progress)
        strong, targets_s = cutmix(unlabeled.strong, targets, boxes, world)

        loss_sup = self.supervised_loss(logits_x, labeled.mask, world)
        loss_unsup = consistency_loss(self.student(strong), targets_s, world=world)
        return report(
            (loss_sup + self.unsup_scale * self.config.unsup_weight * loss_unsup) / 2,
            loss_sup=loss_sup,
            loss_unsup=loss_unsup,
            sums=targets.counts(self.num_classes),
            threshold=self.selection.threshold(),
        )
