"""MGD: a light student learns beside two heavy teachers, from pixels, regions and whole images.

Source: Qin et al., "Multi-Granularity Distillation Scheme Towards Lightweight Semi-Supervised Semantic Segmentation",
arXiv:2208.10169.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import NonNegative, Section
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import Area, cross_supervision, draw_odd_boxes, exchange, keep_all, report
from cwbass.models.features import deepest
from cwbass.pixels import highest
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch
from cwbass.world import World

REGIONS = 7  # a side


class HeavyConfig(Section):
    """A teacher: the run's architecture with another encoder."""

    encoder: str = Field(description="Any encoder of smp, or of timm as tu-<name>.")
    weights: str | None = Field(default=None, description="Its weights: null, imagenet, a local file or an s3:// URI.")


class MgdConfig(MethodConfig):
    """Numbers as published for a ResNet-18 on PASCAL VOC; there the wide teacher is a wider ResNet-34."""

    name: Literal["mgd"] = "mgd"
    deep: HeavyConfig = HeavyConfig(encoder="resnet101")
    wide: HeavyConfig = HeavyConfig(encoder="tu-wide_resnet50_2")
    boxes: Annotated[int, Field(ge=1)] = Field(default=3, description="Boxes of an image's mix; where two overlap, neither is.")
    area: Area = Field(default=(0.25, 0.5), description="Range of the boxes' area together.")
    unsup_weight: NonNegative = Field(default=1.0, description="Weight of the cross supervision of the student and each teacher.")
    image_weight: NonNegative = Field(
        default=0.002, description="Weight of the distance to the deep teacher's logits of whole images."
    )
    region_weight: NonNegative = Field(default=100.0, description="Weight of the distance to the wide teacher's regions.")


class Mgd(Method):
    """L = sum of CE(x) of all three + w * cross supervision with each teacher + 0.002 image + 100 region distance.

    Only the student is scored and shipped. It starts from the warm-up; the teachers from their encoders' weights.
    """

    config_cls: ClassVar[type[MethodConfig]] = MgdConfig
    needs_unlabeled: ClassVar[bool] = True

    def __init__(self, config: MgdConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.deep = build_model(key="method.deep", **config.deep.model_dump())
        self.wide = build_model(key="method.wide", **config.wide.model_dump())

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        config, world, nets = self.config, progress.world, (self.student, self.deep, self.wide)
        with torch.no_grad():
            logits_w = [net(unlabeled.weak) for net in nets]
            targets = keep_all(logits_w[0], unlabeled.valid)  # by the network that is measured on the selection slice
            labels_w = [highest(each)[1] for each in logits_w]
        boxes = draw_odd_boxes(unlabeled.weak, count=config.boxes, area=config.area, progress=progress)
        mixed, shown, *labels_u = exchange([unlabeled.weak, unlabeled.valid, *labels_w], boxes, world)
        valid = torch.cat((labeled.mask != self.ignore_index, shown))

        logits, maps, labels = [], [], []
        for net, label_u in zip(nets, labels_u, strict=True):
            features = [net.feature_maps(image) for image in (labeled.image, mixed)]
            logits_x, logits_u = (net.decode(each) for each in features)
            logits.append(torch.cat((logits_x, logits_u)))
            maps.append(torch.cat([deepest(each) for each in features]))
            labels.append(torch.cat((highest(logits_x)[1], label_u)))

        x = len(labeled.image)
        sup = [self.supervised_loss(each[:x], labeled.mask, world, net) for each, net in zip(logits, nets, strict=True)]
        pixel = [
            cross_supervision([logits[0][part], logits[k][part]], [labels[0][part], labels[k][part]], valid[part], world=world)
            for k in (1, 2)
            for part in (slice(x), slice(x, None))  # labelled and mixed images have a mean each
        ]
        image = image_distance(logits[0], logits[1].detach(), valid, world=world)
        region = region_distance(maps[0], maps[2].detach(), valid, world=world)
        loss_sup = torch.stack(sup).sum()
        loss_unsup = config.unsup_weight * torch.stack(pixel).sum() + config.image_weight * image + config.region_weight * region
        loss = loss_sup + self.unsup_scale * loss_unsup
        return report(loss, loss_sup=loss_sup, loss_unsup=loss_unsup, sums=targets.counts(self.num_classes))

    def trainable(self) -> nn.Module:
        return nn.ModuleList([self.student, self.deep, self.wide])


def image_distance(logits: Tensor, taught: Tensor, valid: Tensor, *, world: World) -> Tensor:
    """L1 distance of two networks' logits, averaged over each image first.

    Args:
        logits: Of the one that learns. [B, C, H, W] float.
        taught: Of the other. [B, C, H, W] float.
        valid: Pixels that take part. [B, H, W] bool.
        world: Processes that hold the rest of the batch.

    Returns:
        Summed over classes, mean over images with valid pixels. [] float; 0, still on the graph, where there are none.
    """
    pixels = valid.sum((1, 2))  # [B]
    difference = ((logits - taught).float() * valid[:, None]).sum((2, 3)) / pixels.clamp(min=1)[:, None]  # [B, C]
    return difference.abs().sum() / world.share((pixels > 0).sum())


def region_distance(features: Tensor, taught: Tensor, valid: Tensor, *, world: World) -> Tensor:
    """Mean squared difference of how alike the regions of an image are to two networks.

    Args:
        features: Of the one that learns. [B, D, h, w] float.
        taught: Of the other, of any other size. [B, D', h', w'] float.
        valid: Pixels that take part; a region does where most of its pixels do. [B, H, W] bool.
        world: Processes that hold the rest of the batch.

    Returns:
        Over pairs of regions that take part. [] float in [0, 4]; 0, still on the graph, where there are none.
    """
    shown = F.adaptive_avg_pool2d(valid[:, None].float(), REGIONS).flatten(1) > 0.5  # [B, 49]
    pairs = shown[:, :, None] & shown[:, None]
    difference = (similarity(features) - similarity(taught)).square()  # [B, 49, 49]
    return (difference * pairs).sum() / world.share(pairs.sum())


def similarity(features: Tensor) -> Tensor:
    """Cosine of each pair of an image's 7 x 7 regions. [B, D, h, w] float -> [B, 49, 49]."""
    with torch.autocast(features.device.type, enabled=False):  # cosines that differ by a hundredth are what is compared
        features = features if features.dtype == torch.float64 else features.float()
        regions = F.normalize(F.adaptive_avg_pool2d(features, REGIONS).flatten(2), dim=1)  # [B, D, 49]
        return regions.transpose(1, 2) @ regions
