"""What methods share that let a network's own labels teach it on another view.

Labels are said of the pixels of a weak view; they move with the pixels through CutMix; and each counts
in the loss what it was found to be worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor

from cwbass.config import Fraction, in_order
from cwbass.data.cutmix import Box, draw_boxes, mix_, partner
from cwbass.losses.confidence import pixel_cross_entropy
from cwbass.pseudo_labels import confidence_and_label, confidence_counts, count_by_class, sum_by_class
from cwbass.types import Progress, StepOutput, sent
from cwbass.world import World

BOX_AREA = (0.02, 0.4)  # of the image; FixMatch and UniMatch as published for segmentation
Area = Annotated[tuple[Fraction, Fraction], AfterValidator(in_order)]
NO_LABEL = -100  # a network gives no such label, so that none is ignored


@dataclass(frozen=True, slots=True)
class Targets:
    """What is said of the pixels of a batch, and how much it counts."""

    label: Tensor  # [B, H, W] int64
    confidence: Tensor  # [B, H, W] float32, in the label
    weight: Tensor  # [B, H, W] float32, 0 where rejected or not valid
    valid: Tensor  # [B, H, W] bool, shows an image and not padding

    @property
    def parts(self) -> list[Tensor]:
        """All there is."""
        return [self.label, self.confidence, self.weight, self.valid]

    def counts(self, num_classes: int) -> dict[str, Tensor]:
        """For the record: what :func:`seen_counts` says, and the pixels kept by class, [K]."""
        seen = seen_counts(self.confidence, self.label, self.valid, num_classes)
        return {**seen, "kept": count_by_class(self.label, self.weight > 0, num_classes)}


def seen_counts(confidence: Tensor, label: Tensor, valid: Tensor, num_classes: int) -> dict[str, Tensor]:
    """For the record: pixels seen by class, and their confidence, [K] each; its histogram, [K, N].

    Args:
        confidence: In the label. [B, H, W] float.
        label: [B, H, W] int64.
        valid: Pixels that show an image. [B, H, W] bool.
        num_classes: K.
    """
    histogram = confidence_counts(confidence, label, valid, num_classes)
    return {
        "seen": histogram.sum(1),
        "confidence": sum_by_class(confidence, label, valid, num_classes),
        "confidence_counts": histogram,
    }


@torch.no_grad()
def keep_all(logits: Tensor, valid: Tensor) -> Targets:
    """Every label of a network on valid pixels: the targets of a method that rejects none.

    Args:
        logits: [B, C, H, W] float.
        valid: Pixels that show an image. [B, H, W] bool.
    """
    confidence, label = confidence_and_label(logits)
    return Targets(label, confidence, valid.to(confidence.dtype), valid)


def draw_cutmix(image: Tensor, *, probability: float, progress: Progress) -> list[Box | None]:
    """A box for each image, drawn for the whole batch: this process's. [B, 3, H, W] -> [B]."""
    batch, (height, width) = image.shape[0] * progress.world.size, image.shape[-2:]
    boxes = draw_boxes(batch, height, width, probability=probability, area=BOX_AREA, generator=progress.generator)
    return boxes[progress.world.part(batch)]


def draw_odd_boxes(image: Tensor, *, count: int, area: tuple[float, float], progress: Progress) -> Tensor:
    """Where each image's partner is seen: inside an odd number of boxes. [B, 3, H, W] -> [B, H, W] bool.

    Args:
        image: This process's.
        count: Boxes of an image.
        area: Range of the area of all of them together, as a share of the image.
        progress: Generator and processes; boxes are drawn for the whole batch.

    Source:
        CutMix of CPS, arXiv:2106.01226: three boxes of a quarter to a half of the image.
    """
    batch, height, width = image.shape[0] * progress.world.size, image.shape[-2], image.shape[-1]
    each = (area[0] / count, area[1] / count)
    inside = torch.zeros(batch, height, width, dtype=torch.bool)
    for _ in range(count):
        boxes = draw_boxes(batch, height, width, probability=1.0, area=each, generator=progress.generator)
        for own, box in zip(inside, boxes, strict=True):
            if box is not None:
                own[box].logical_not_()
    return sent(progress.world.own(inside), image)


def exchange(maps: Sequence[Tensor], inside: Tensor, world: World) -> list[Tensor]:
    """What there is of images, each image its partner inside the mask.

    Args:
        maps: [B, H, W] or [B, C, H, W] each.
        inside: From :func:`draw_odd_boxes`. [B, H, W] bool.
        world: All processes; partners may lie in another.
    """
    return [torch.where(inside[:, None] if each.dim() == 4 else inside, partner(each, world), each) for each in maps]


def cutmix(image: Tensor, targets: Targets, boxes: Sequence[Box | None], world: World) -> tuple[Tensor, Targets]:
    """Each image with a part of its partner pasted in, and the targets of what is seen then.

    Args:
        image: [B, 3, H, W] uint8.
        targets: Of the whole images.
        boxes: What is pasted, from :func:`draw_cutmix`.
        world: All processes; partners may lie in another.
    """
    image, targets = image.clone(), Targets(*(part.clone() for part in targets.parts))
    mix_([image, *targets.parts], boxes, {}, world)
    return image, targets


def consistency_loss(logits: Tensor, targets: Targets, *, world: World) -> Tensor:
    """Cross-entropy with the labels, each pixel as loud as its weight, over all valid pixels.

    Args:
        logits: Of the view that learns. [B, C, H, W] float.
        targets: Of the same pixels.
        world: Processes that hold the rest of the batch.

    Returns:
        sum(weight * CE) / number of valid pixels, in nats. [] float; 0, still on the graph, where nothing is valid.

    Source:
        FixMatch, arXiv:2001.07685, equation 4: rejected pixels lower the term's voice.
    """
    pixel_loss = pixel_cross_entropy(logits, targets.label, ignore_index=NO_LABEL)
    return (pixel_loss * targets.weight).sum() / world.share(targets.valid.sum())


def cross_supervision(logits: list[Tensor], labels: list[Tensor], valid: Tensor, *, world: World) -> Tensor:
    """Cross-entropy of each of two networks with the other's labels, over valid pixels.

    Args:
        logits: Of both. [B, C, H, W] float each.
        labels: Of both, in the same order. [B, H, W] int64 each.
        valid: Pixels that take part. [B, H, W] bool.
        world: Processes that hold the rest of the batch.

    Returns:
        Sum of the two means, in nats. [] float; 0, still on the graph, where no pixel takes part.
    """
    (first, second), (of_first, of_second) = logits, labels
    cost = partial(pixel_cross_entropy, ignore_index=NO_LABEL)
    pixel_loss = cost(first, of_second) + cost(second, of_first)
    return (pixel_loss * valid).sum() / world.share(valid.sum())


def report(
    loss: Tensor,
    *,
    loss_sup: Tensor,
    loss_unsup: Tensor,
    sums: Mapping[str, Tensor] | None = None,
    threshold: Tensor | None = None,
) -> StepOutput:
    """A step's output.

    Args:
        loss: On the graph.
        loss_sup: Its part on labels.
        loss_unsup: Its part on what the network says itself.
        sums: From :meth:`Targets.counts`, before anything is mixed.
        threshold: tau, [] or [K]; None where there is none that a curve could be read at.
    """
    means = {"loss": loss.detach(), "loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach()}
    if threshold is not None:
        means["threshold"] = threshold
    return StepOutput(loss, means=means, sums=sums or {})
