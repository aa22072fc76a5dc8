"""UniMatch V2: an average of the student labels; two strong views share the feature channels between them.

Source: Yang et al., "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", arXiv:2410.10777.
Published with DINOv2 and a DPT decoder (``model.arch: dpt``, ``model.encoder: tu-vit_small_patch14_dinov2``);
nothing in it asks for them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from cwbass.config import Fraction, NonNegative
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import consistency_loss, cutmix, draw_cutmix, report
from cwbass.methods.selection import Selection, SelectionConfig
from cwbass.models.ema import follow_, make_ema_teacher
from cwbass.models.features import complementary_channels, join_features, rows_of
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch


class UniMatchV2Config(MethodConfig):
    """Numbers as published."""

    name: Literal["unimatch_v2"] = "unimatch_v2"
    threshold: SelectionConfig = SelectionConfig()
    cutmix: Fraction = Field(default=0.5, description="Probability of CutMix for an unlabelled image, in each strong view.")
    unsup_weight: NonNegative = Field(default=1.0, description="Weight of the mean of the two views' losses.")
    undivided: Fraction = Field(default=0.5, description="Share of images whose two views keep all feature channels.")
    ema_decay: Fraction = Field(default=0.996, description="Share of itself that the teacher keeps at a step, after a ramp.")


class UniMatchV2(Method):
    """L = (CE(x) + (L_s1 + L_s2) / 2) / 2."""

    config_cls: ClassVar[type[MethodConfig]] = UniMatchV2Config
    needs_unlabeled: ClassVar[bool] = True
    ships: ClassVar[tuple[str, ...]] = ("student", "teacher")
    strong_views: ClassVar[int] = 2

    def __init__(self, config: UniMatchV2Config, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.teacher = make_ema_teacher(self.student)
        self.selection = Selection(config.threshold, self.num_classes)

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        assert unlabeled.strong2 is not None
        config, student, world = self.config, self.student, progress.world
        with torch.no_grad():
            targets = self.selection(self.teacher(unlabeled.weak), unlabeled.valid, world)
        mixed = []
        for view in (unlabeled.strong, unlabeled.strong2):
            boxes = draw_cutmix(view, probability=config.cutmix, progress=progress)
            mixed.append(cutmix(view, targets, boxes, world))

        loss_sup = self.supervised_loss(student(labeled.image), labeled.mask, world)
        features = student.feature_maps(torch.cat([image for image, _ in mixed]))
        half = len(unlabeled.weak)
        halves = complementary_channels(
            rows_of(features, 0, half), rows_of(features, half), share=config.undivided, progress=progress
        )
        logits_s = student.decode(join_features(*halves)).chunk(2)
        losses = [
            consistency_loss(logits, targets_s, world=world) for logits, (_, targets_s) in zip(logits_s, mixed, strict=True)
        ]
        loss_unsup = (losses[0] + losses[1]) / 2
        return report(
            (loss_sup + self.unsup_scale * config.unsup_weight * loss_unsup) / 2,
            loss_sup=loss_sup,
            loss_unsup=loss_unsup,
            sums=targets.counts(self.num_classes),
            threshold=self.selection.threshold(),
        )

    def after_optimizer_step(self, progress: Progress) -> None:
        follow_(self.teacher, self.student, updates=progress.step, decay=self.config.ema_decay)
