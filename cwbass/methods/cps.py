"""Cross pseudo supervision: two networks, each learning from the other's labels (Chen et al., arXiv:2106.01226)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from cwbass.config import NonNegative
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import Area, cross_supervision, draw_odd_boxes, exchange, keep_all, report
from cwbass.models.base import SegmentationNet
from cwbass.pixels import highest
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch

WEIGHTS = {True: 1.0, False: 1.5}  # with CutMix and without, as published for PASCAL VOC


class CpsConfig(MethodConfig):
    """Numbers as published for PASCAL VOC; for Cityscapes the weight is 5 with CutMix and 6 without."""

    name: Literal["cps"] = "cps"
    cutmix: bool = Field(default=True, description="Whether unlabelled images are mixed with each other.")
    boxes: Annotated[int, Field(ge=1)] = Field(default=3, description="Boxes of an image's mix; where two overlap, neither is.")
    area: Area = Field(default=(0.25, 0.5), description="Range of the boxes' area together.")
    unsup_weight: NonNegative | None = Field(
        default=None, description="Weight of the cross supervision; null: 1 with CutMix, 1.5 without."
    )


class Cps(Method):
    """L = sum over both networks of CE(x), + w * CE(each, label of the other).

    The first network is the one that is scored and shipped. The second starts with the first one's encoder and a
    decoder of its own: two equal networks would teach each other nothing.
    """

    config_cls: ClassVar[type[MethodConfig]] = CpsConfig
    needs_unlabeled: ClassVar[bool] = True

    def __init__(self, config: CpsConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.second = build_model()
        self.weight = WEIGHTS[config.cutmix] if config.unsup_weight is None else config.unsup_weight

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        world, pair = progress.world, (self.student, self.second)
        logits_x = [net(labeled.image) for net in pair]
        if self.config.cutmix:
            with torch.no_grad():
                logits_w = [net(unlabeled.weak) for net in pair]
                labels = [highest(each)[1] for each in logits_w]
            boxes = draw_odd_boxes(unlabeled.weak, count=self.config.boxes, area=self.config.area, progress=progress)
            image, valid, *labels = exchange([unlabeled.weak, unlabeled.valid, *labels], boxes, world)
            logits = [net(image) for net in pair]
        else:
            logits = [torch.cat((own, net(unlabeled.weak))) for own, net in zip(logits_x, pair, strict=True)]
            labels = [highest(each)[1] for each in logits]
            logits_w = [each.detach()[len(labeled.image) :] for each in logits]
            valid = torch.cat((labeled.mask != self.ignore_index, unlabeled.valid))

        loss_sup = torch.stack(
            [self.supervised_loss(own, labeled.mask, world, net) for own, net in zip(logits_x, pair, strict=True)]
        ).sum()
        loss_unsup = cross_supervision(logits, labels, valid, world=world)
        loss = loss_sup + self.unsup_scale * self.weight * loss_unsup
        targets = keep_all(logits_w[0], unlabeled.valid)  # by the network that is measured on the selection slice
        return report(loss, loss_sup=loss_sup, loss_unsup=loss_unsup, sums=targets.counts(self.num_classes))

    def trainable(self) -> nn.Module:
        return nn.ModuleList([self.student, self.second])

    @torch.no_grad()
    def start_from(self, networks: Mapping[str, SegmentationNet]) -> None:
        super().start_from(networks)
        for own, first in zip(self.second.encoder_parameters(), self.student.encoder_parameters(), strict=True):
            own.copy_(first)
