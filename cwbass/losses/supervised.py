"""Cross-entropy on ground truth: what a pixel of a rare class counts in it, and whether all pixels do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwbass.losses.confidence import pixel_cross_entropy
from cwbass.pixels import look_up
from cwbass.world import ALONE, World


def balanced_class_weights(pixels: Sequence[int], power: float) -> Tensor:
    """Weight of a pixel of each class: rare classes count more, the mean over labelled pixels is 1.

    With plain cross-entropy a class of one pixel in a hundred is worth a hundredth of the loss, and few
    steps end before the network names it at all. No pseudo-label can teach what the teacher never says.

    Args:
        pixels: Labelled training pixels of each class. [K]
        power: 0 gives equal weights, 1 median-frequency balancing; in [0, 1].

    Returns:
        ``(median share / own share) ** power`` over the mean of this over all pixels; 1 for a class without
        pixels. [K] float32.

    Source:
        Median-frequency balancing: Eigen & Fergus (arXiv:1411.4734), used on CamVid by SegNet (arXiv:1511.00561).
        The exponent between none and all of it is ours.
    """
    counts = torch.tensor(pixels, dtype=torch.float64)
    seen = counts > 0
    if not bool(seen.any()):
        return torch.ones(len(pixels))
    weight = (counts[seen].median() / counts[seen]) ** power
    weight = weight * counts[seen].sum() / (weight * counts[seen]).sum()
    return torch.ones(len(pixels)).masked_scatter(seen, weight.float())


@dataclass(frozen=True, slots=True)
class HardPixels:
    """Online hard example mining: of the labelled pixels of a batch only those count that the network finds hard.

    Source:
        Shrivastava et al. (arXiv:1604.03540) for boxes. By pixels it belongs to the usual settings of Cityscapes, with a threshold
        of 0.7 and at least 100,000 pixels of a GPU's two crops of 801 pixels, some 8 %.
    """

    threshold: float  # probability of the true class, in (0, 1): pixels with at most this count
    min_share: float  # of the batch's labelled pixels, the hardest, that count in any case; in [0, 1]

    def chosen(self, loss: Tensor, known: Tensor, world: World = ALONE) -> Tensor:
        """Which pixels count.

        Args:
            loss: Cross-entropy, nats: minus the logarithm of the true class's probability. [B, H, W] float.
            known: Whether a pixel is labelled. [B, H, W] bool.
            world: Processes that hold the rest of the batch, of which all pixels are compared.

        Returns:
            [B, H, W] bool, a part of ``known``. Pixels as hard as the last that counts do, too.
        """
        hardest = world.gather(loss.detach().where(known, -1.0)).flatten().sort(descending=True).values
        least = (world.total(known.sum()) * self.min_share).ceil().long().clamp(min=1, max=hardest.numel())
        limit = hardest.index_select(0, least.view(1) - 1).clamp(max=-math.log(self.threshold))
        return known & (loss.detach() >= limit)


def supervised_cross_entropy(
    logits: Tensor,
    mask: Tensor,
    *,
    ignore_index: int,
    class_weight: Tensor | None = None,
    hard: HardPixels | None = None,
    world: World = ALONE,
) -> Tensor:
    """Weighted mean of the cross-entropy over the pixels that are labelled.

    Args:
        logits: Before softmax. [B, C, H, W] float.
        mask: Class index, or ``ignore_index``. [B, H, W] int64.
        ignore_index: Label of pixels that take no part.
        class_weight: Weight of a pixel of each class; None weighs all alike. [C] float.
        hard: Which of them count; None takes all.
        world: Processes that hold the rest of the batch; the mean of what they return is the whole batch's.

    Returns:
        Nats per labelled pixel that counts. [] float; 0, still on the graph, where no pixel is labelled
        (torch's own mean is NaN there).
    """
    loss, known = pixel_cross_entropy(logits, mask, ignore_index=ignore_index), mask != ignore_index
    if hard is not None:
        known = hard.chosen(loss, known, world)
        loss = loss * known
    if class_weight is None:
        return loss.sum() / world.share(known.sum())
    weight = look_up(class_weight, mask.where(known, 0)) * known  # [B, H, W]
    return (loss * weight).sum() / world.share(weight.sum())
