"""UniMatch: two strong views and a perturbation of features learn from the student's labels on a weak view.

Source: Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation",
arXiv:2208.09910.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from cwbass.config import Fraction, NonNegative
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import consistency_loss, cutmix, draw_cutmix, report
from cwbass.methods.selection import Selection, SelectionConfig
from cwbass.models.features import drop_channels, join_features, rows_of
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch


class UniMatchConfig(MethodConfig):
    """Numbers as published for PASCAL VOC; for Cityscapes tau is 0 there."""

    name: Literal["unimatch"] = "unimatch"
    threshold: SelectionConfig = SelectionConfig()
    cutmix: Fraction = Field(default=0.5, description="Probability of CutMix for an unlabelled image, in each strong view.")
    view_weight: NonNegative = Field(default=0.25, description="Weight of each of the two strong views' losses.")
    feature_weight: NonNegative = Field(default=0.5, description="Weight of the loss of perturbed features.")
    feature_drop: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.5, description="Share of feature channels left out.")


class UniMatch(Method):
    """L = (CE(x) + 0.25 L_s1 + 0.25 L_s2 + 0.5 L_fp) / 2."""

    config_cls: ClassVar[type[MethodConfig]] = UniMatchConfig
    needs_unlabeled: ClassVar[bool] = True
    strong_views: ClassVar[int] = 2

    def __init__(self, config: UniMatchConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.selection = Selection(config.threshold, self.num_classes)

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        assert unlabeled.strong2 is not None
        config, student, world = self.config, self.student, progress.world
        sizes = [len(labeled.image), len(unlabeled.weak), len(unlabeled.weak)]

        clean = student.feature_maps(torch.cat((labeled.image, unlabeled.weak)))
        perturbed = drop_channels(rows_of(clean, sizes[0]), rate=config.feature_drop, progress=progress)
        logits_x, logits_w, logits_fp = torch.split(student.decode(join_features(clean, perturbed)), sizes)
        targets = self.selection(logits_w.detach(), unlabeled.valid, world)

        mixed = []
        for view in (unlabeled.strong, unlabeled.strong2):
            boxes = draw_cutmix(view, probability=config.cutmix, progress=progress)
            mixed.append(cutmix(view, targets, boxes, world))
        logits_s = student(torch.cat([image for image, _ in mixed])).chunk(2)

        loss_sup = self.supervised_loss(logits_x, labeled.mask, world)
        losses = [
            consistency_loss(logits, targets_s, world=world) for logits, (_, targets_s) in zip(logits_s, mixed, strict=True)
        ]
        loss_features = consistency_loss(logits_fp, targets, world=world)
        loss_unsup = config.view_weight * (losses[0] + losses[1]) + config.feature_weight * loss_features
        return report(
            (loss_sup + self.unsup_scale * loss_unsup) / 2,
            loss_sup=loss_sup,
            loss_unsup=loss_unsup,
            sums=targets.counts(self.num_classes),
            threshold=self.selection.threshold(),
        )
