"""DSSN: pairs of strong views and of perturbed features agree with each other, and with labels chosen by class.

Source: Tian et al., "Improving Semi-Supervised Semantic Segmentation with Dual-Level Siamese Structure Network",
arXiv:2307.13938.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cwbass.config import Fraction, NonNegative
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import Targets, consistency_loss, cutmix, draw_cutmix, report
from cwbass.models.ema import follow_, make_ema_teacher
from cwbass.models.features import drop_channels, join_features, rows_of
from cwbass.pseudo_labels import class_aware_thresholds, confidence_and_label
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch
from cwbass.world import World


class DssnConfig(MethodConfig):
    """Numbers as published for PASCAL VOC; for Cityscapes nothing is rejected there."""

    name: Literal["dssn"] = "dssn"
    rule: Literal["class_aware", "all"] = Field(
        default="class_aware",
        description="class_aware: of each class in each image, labels nearly as sure as its surest pixel. all: every label.",
    )
    scale: Fraction = Field(default=0.96, description="class_aware: a label needs this share of the highest confidence.")
    floor: Fraction = Field(
        default=0.92, description="class_aware: where none is surer than this, only the surest pixel is kept."
    )
    cutmix: Fraction = Field(default=0.5, description="Probability of CutMix for an unlabelled image, in both views at once.")
    view_weight: NonNegative = Field(default=0.25, description="Weight of the loss of each strong view and each perturbation.")
    pair_weight: NonNegative = Field(default=0.01, description="Weight of the distance within each pair.")
    feature_drop: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.5, description="Share of feature channels left out.")
    ema_decay: Fraction = Field(default=0.996, description="Share of itself that the teacher keeps at a step, after a ramp.")


class Dssn(Method):
    """L = (CE(x) + 0.25 (L_s1 + L_s2 + L_f1 + L_f2) + 0.01 (D(s1, s2) + D(f1, f2))) / 2."""

    config_cls: ClassVar[type[MethodConfig]] = DssnConfig
    needs_unlabeled: ClassVar[bool] = True
    ships: ClassVar[tuple[str, ...]] = ("student", "teacher")
    strong_views: ClassVar[int] = 2

    def __init__(self, config: DssnConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.teacher = make_ema_teacher(self.student)

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        assert unlabeled.strong2 is not None
        config, student, world = self.config, self.student, progress.world
        with torch.no_grad():
            targets = self._targets(self.teacher(unlabeled.weak), unlabeled.valid)
        # One box for both views: they must show the same to agree on it.
        boxes = draw_cutmix(unlabeled.strong, probability=config.cutmix, progress=progress)
        first, targets_s = cutmix(unlabeled.strong, targets, boxes, world)
        second, _ = cutmix(unlabeled.strong2, targets, boxes, world)

        sizes = [len(labeled.image), *[len(unlabeled.weak)] * 3]
        clean = student.feature_maps(torch.cat((labeled.image, unlabeled.weak)))
        weak = rows_of(clean, sizes[0])
        dropped = [drop_channels(weak, rate=config.feature_drop, progress=progress) for _ in range(2)]
        logits_x, logits_w, *features = torch.split(student.decode(join_features(clean, *dropped)), sizes)
        with torch.no_grad():
            own = self._targets(logits_w, unlabeled.valid)
        views = student(torch.cat((first, second))).chunk(2)

        loss_sup = self.supervised_loss(logits_x, labeled.mask, world)
        losses = [consistency_loss(logits, targets_s, world=world) for logits in views]
        losses += [consistency_loss(logits, own, world=world) for logits in features]
        pairs = pair_distance(views[0], views[1], targets_s.valid, world=world)
        pairs = pairs + pair_distance(features[0], features[1], own.valid, world=world)
        loss_unsup = config.view_weight * torch.stack(losses).sum() + config.pair_weight * pairs
        loss = (loss_sup + self.unsup_scale * loss_unsup) / 2
        return report(loss, loss_sup=loss_sup, loss_unsup=loss_unsup, sums=targets.counts(self.num_classes))

    def after_optimizer_step(self, progress: Progress) -> None:
        follow_(self.teacher, self.student, updates=progress.step, decay=self.config.ema_decay)

    def _targets(self, logits: Tensor, valid: Tensor) -> Targets:
        confidence, label = confidence_and_label(logits)
        return Targets(label, confidence, self._kept(confidence, label, valid).to(confidence.dtype), valid)

    def keeps(self, confidence: Tensor, label: Tensor, threshold: Tensor | None) -> Tensor:
        return self._kept(confidence, label, torch.ones_like(label, dtype=torch.bool))

    def _kept(self, confidence: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        config = self.config
        if config.rule != "class_aware":
            return valid
        tau = class_aware_thresholds(confidence, label, valid, self.num_classes, scale=config.scale, floor=config.floor)
        return valid & (confidence >= tau.gather(1, label.flatten(1)).view_as(confidence))


def pair_distance(one: Tensor, other: Tensor, valid: Tensor, *, world: World) -> Tensor:
    """Mean squared difference of two networks' logits, each pixel's brought to mean 0 and deviation 1 over its classes.

    Args:
        one: [B, C, H, W] float.
        other: Of the same pixels. [B, C, H, W] float.
        valid: Pixels that take part. [B, H, W] bool.
        world: Processes that hold the rest of the batch.

    Returns:
        [] float in [0, 4]; 0, still on the graph, where no pixel takes part.
    """
    distance = (_standard(one) - _standard(other)).square().mean(1)  # [B, H, W]
    return (distance * valid).sum() / world.share(valid.sum())


def _standard(logits: Tensor) -> Tensor:
    if logits.dtype != torch.float64:
        logits = logits.float()
    centred = logits - logits.mean(1, keepdim=True)
    # The small number is inside the root: equal logits have a gradient too.
    return centred * (centred.square().mean(1, keepdim=True) + 1e-6).rsqrt()
