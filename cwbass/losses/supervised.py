"""Cross-entropy on ground truth, and what a pixel of a rare class counts in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cwbass.losses.confidence import pixel_cross_entropy
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


def supervised_cross_entropy(
    logits: Tensor, mask: Tensor, *, ignore_index: int, class_weight: Tensor | None = None, world: World = ALONE
) -> Tensor:
    """Weighted mean of the cross-entropy over the pixels that are labelled.

    Args:
        logits: Before softmax. [B, C, H, W] float.
        mask: Class index, or ``ignore_index``. [B, H, W] int64.
        ignore_index: Label of pixels that take no part.
        class_weight: Weight of a pixel of each class; None weighs all alike. [C] float.
        world: Processes that hold the rest of the batch; the mean of what they return is the whole batch's.

    Returns:
        Nats per labelled pixel. [] float; 0, still on the graph, where no pixel is labelled
        (torch's own mean is NaN there).
    """
    loss, known = pixel_cross_entropy(logits, mask, ignore_index=ignore_index), mask != ignore_index
    if class_weight is None:
        return loss.sum() / world.share(known.sum())
    weight = class_weight[mask.where(known, 0)] * known  # [B, H, W]
    return (loss * weight).sum() / world.share(weight.sum())
