"""CorrMatch: which places of an image resemble each other decides where labels spread.

Source: Sun et al., "CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation",
arXiv:2306.04300. Written from its formulas; where they leave a choice, docs/methods.md names ours.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import Fraction, NonNegative
from cwbass.data.cutmix import mix_
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.consistency import Targets, consistency_loss, cutmix, draw_cutmix, report
from cwbass.models.base import SegmentationNet
from cwbass.models.features import deepest, drop_channels, join_features, rows_of
from cwbass.pseudo_labels import confidence_and_label, probabilities
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch, sent
from cwbass.world import World


class CorrMatchConfig(MethodConfig):
    """Numbers as published for PASCAL VOC; for Cityscapes the threshold is 0 and stays there (tau 0, momentum 1)."""

    name: Literal["corrmatch"] = "corrmatch"
    tau: Fraction = Field(default=0.85, description="The threshold at the start.")
    momentum: Fraction = Field(default=0.999, description="Share of itself that the threshold keeps at a step.")
    regions: Annotated[int, Field(ge=0)] = Field(default=128, description="Places of each image from which a region is drawn.")
    cutmix: Fraction = Field(default=0.5, description="Probability of CutMix for an unlabelled image.")
    label_weight: NonNegative = Field(default=0.5, description="Weight of the labels' loss, and of it through the correlation.")
    view_weight: NonNegative = Field(
        default=0.25, description="Weight of the strong view's loss on labels, and on probabilities."
    )
    feature_weight: NonNegative = Field(default=0.25, description="Weight of the loss of perturbed features.")
    correlation_weight: NonNegative = Field(
        default=0.125, description="Weight of the loss through the correlation, weak and strong view each."
    )
    feature_drop: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.5, description="Share of feature channels left out.")


class CorrMatch(Method):
    """L = (0.5 (CE(x) + CE(corr x)) + 0.25 (L_s + L_KL + L_fp) + 0.125 (L_corr_s + L_corr_w)) / 2."""

    config_cls: ClassVar[type[MethodConfig]] = CorrMatchConfig
    needs_unlabeled: ClassVar[bool] = True

    tau: Tensor  # [] float, the threshold of all classes

    def __init__(self, config: CorrMatchConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.config = config
        self.student = build_model()
        self.correlation = Correlation(_channels(self.student), self.num_classes)
        self.register_buffer("tau", torch.tensor(config.tau))

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        config, student, world = self.config, self.student, progress.world
        x, u = len(labeled.image), len(unlabeled.weak)

        clean = student.feature_maps(torch.cat((labeled.image, unlabeled.weak)))
        perturbed = drop_channels(rows_of(clean, x), rate=config.feature_drop, progress=progress)
        logits, logits_fp = torch.split(student.decode(join_features(clean, perturbed)), [x + u, u])
        alike, size = self.correlation(deepest(clean))
        spread_x, spread_w = torch.split(propagate(logits, alike, size), [x, u])

        with torch.no_grad():
            sure = self._sure(logits[x:], unlabeled.valid, world)
            targets = grow(sure, alike[x:], size, self.tau, self._places(alike[x:], progress), num_classes=self.num_classes)
            boxes = draw_cutmix(unlabeled.strong, probability=config.cutmix, progress=progress)
            strong, targets_s = cutmix(unlabeled.strong, targets, boxes, world)
            probs = probabilities(logits[x:])
            mix_([probs], boxes, {}, world)

        features = student.feature_maps(strong)
        logits_s = student.decode(features)
        spread_s = propagate(logits_s, *self.correlation(deepest(features)))

        loss_sup = self.supervised_loss(logits[:x], labeled.mask, world)
        loss_spread = self.supervised_loss(spread_x, labeled.mask, world)
        loss_view = consistency_loss(logits_s, targets_s, world=world) + divergence(logits_s, probs, targets_s, world=world)
        loss_features = consistency_loss(logits_fp, targets, world=world)
        loss_correlation = consistency_loss(spread_s, targets_s, world=world) + consistency_loss(spread_w, targets, world=world)
        loss_unsup = (
            config.view_weight * loss_view + config.feature_weight * loss_features + config.correlation_weight * loss_correlation
        )
        return report(
            (config.label_weight * (loss_sup + loss_spread) + self.unsup_scale * loss_unsup) / 2,
            loss_sup=loss_sup,
            loss_unsup=loss_unsup,
            sums=targets.counts(self.num_classes),
            threshold=self.tau.clone(),
        )

    def trainable(self) -> nn.Module:
        return nn.ModuleList([self.student, self.correlation])

    def _sure(self, logits: Tensor, valid: Tensor, world: World) -> Targets:
        """Labels of confidence tau or more; tau follows the mean, over the classes that are named, of their surest pixel."""
        confidence, label = confidence_and_label(logits)
        top = confidence.new_zeros(self.num_classes)
        top.scatter_reduce_(0, label.flatten(), (confidence * valid).flatten(), "amax")
        top = world.gather(top[None]).amax(0)  # [K]
        named = top > 0
        step = (1 - self.config.momentum) * named.any()
        self.tau += step * (top.sum() / named.sum().clamp(min=1) - self.tau)
        return Targets(label, confidence, ((confidence >= self.tau) & valid).to(confidence.dtype), valid)

    def _places(self, alike: Tensor, progress: Progress) -> Tensor:
        """Places of each image, drawn for the whole batch. [B, R] int64."""
        shape = (alike.shape[0] * progress.world.size, self.config.regions)
        return sent(progress.world.own(torch.randint(alike.shape[1], shape, generator=progress.generator)), alike)


class Correlation(nn.Module):
    """How much each place of a feature map attends to each other.

    Args:
        channels: Of the map.
        width: Of the two projections; as published, the number of classes.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, width, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """softmax(one . other / sqrt(width)), and the map's size. [B, D, h, w] -> [B, h * w, h * w], each row sums to 1."""
        one, other = self.one(features).flatten(2), self.other(features).flatten(2)  # [B, width, n]
        return (one.transpose(1, 2) @ other / one.shape[1] ** 0.5).softmax(-1), (features.shape[2], features.shape[3])


def propagate(logits: Tensor, alike: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits of each place as the mean of those it attends to; what is learned is where to look, and not to be a mean.

    Args:
        logits: They get no gradient. [B, C, H, W] float.
        alike: From :class:`Correlation`. [B, h * w, h * w] float.
        size: h, w.

    Returns:
        At the logits' own size. [B, C, H, W] float.
    """
    small = F.interpolate(logits.detach(), size, mode="bilinear", align_corners=False).flatten(2)  # [B, C, n]
    spread = (small @ alike.transpose(1, 2).to(small.dtype)).view(*small.shape[:2], *size)
    return F.interpolate(spread, logits.shape[-2:], mode="bilinear", align_corners=False)


def divergence(logits: Tensor, probs: Tensor, targets: Targets, *, world: World) -> Tensor:
    """Kullback-Leibler divergence of the logits' probabilities from given ones, where labels count, over valid pixels.

    Args:
        logits: Of the view that learns. [B, C, H, W] float.
        probs: What it should say. [B, C, H, W] float.
        targets: Whose weight says where.
        world: Processes that hold the rest of the batch.

    Returns:
        In nats. [] float; 0, still on the graph, where nothing is valid.
    """
    pixel_loss = F.kl_div(logits.log_softmax(1, dtype=torch.float32), probs, reduction="none").sum(1)  # [B, H, W]
    return (pixel_loss * targets.weight).sum() / world.share(targets.valid.sum())


def grow(targets: Targets, alike: Tensor, size: tuple[int, int], tau: Tensor, places: Tensor, *, num_classes: int) -> Targets:
    """Let a region that is sure of one class have it everywhere.

    A place's region is where its row of the correlation, brought to [0, 1], exceeds a half. It takes its most frequent
    label if both the share of sure pixels and the share of that label in it exceed tau; where several regions do, the
    one with the greatest share of its label wins.

    Args:
        targets: Labels, and which are sure. [B, H, W] each.
        alike: From :class:`Correlation`. [B, h * w, h * w] float.
        size: h, w.
        tau: [] float.
        places: Where regions are drawn from, as indices of the map. [B, R] int64.
        num_classes: K.

    Returns:
        Targets with the labels and the weight 1 of the regions.
    """
    if places.shape[1] == 0:
        return targets
    small = [F.interpolate(each[:, None].float(), size).flatten(1) for each in (targets.label, targets.weight, targets.valid)]
    label, sure, valid = small[0].long(), small[1] > 0, small[2] > 0  # [B, n] each
    rows = alike.gather(1, places[..., None].expand(-1, -1, alike.shape[2]))  # [B, R, n]
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    region = (rows - low > (high - low) / 2) & valid[:, None]
    area = region.sum(-1).clamp(min=1)  # [B, R]
    votes = torch.zeros(*region.shape[:2], num_classes, device=rows.device)  # [B, R, K]; bfloat16 stops counting at 256
    votes.scatter_add_(2, label[:, None].expand_as(region), region.float())  # no product: autocast would round it
    share, winner = (votes / area[..., None]).max(-1)
    accepted = ((region & sure[:, None]).sum(-1) / area > tau) & (share > tau)
    best, index = (region * (accepted * share)[..., None]).max(1)  # [B, n]
    taken = [(best > 0).float(), winner.gather(1, index).float()]
    where, new = (F.interpolate(each.view(-1, 1, *size), targets.label.shape[-2:])[:, 0] for each in taken)
    inside = (where > 0) & targets.valid
    return Targets(
        torch.where(inside, new.long(), targets.label),
        targets.confidence,
        torch.where(inside, 1.0, targets.weight),
        targets.valid,
    )


@torch.no_grad()
def _channels(net: SegmentationNet) -> int:
    """Channels of the deepest map."""
    training = net.training
    net.eval()
    image = torch.zeros(1, 3, 64, 64, device=next(net.parameters()).device)
    channels = deepest(net.feature_maps(image)).shape[1]
    net.train(training)
    return channels
