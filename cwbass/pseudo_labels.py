"""Which pixels a teacher may speak about, and how much its word counts. Pure functions.

Symbols: c confidence (top softmax probability), tau threshold, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cwbass.memory_format import new_maps_like, read_by_class
from cwbass.pixels import highest, look_up
from cwbass.types import Reliability

CONFIDENCE_BINS = 100  # of confidence_counts
_UNIT = 2.0**32


def confidence_and_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Top softmax probability and its class, with the probabilities of one image at a time in memory.

    Args:
        logits: Teacher output. [B, C, H, W] float.

    Returns:
        Confidence in [1/C, 1], [B, H, W] float32; label, [B, H, W] int64.
    """
    images, dim = read_by_class(logits)
    each = [highest(image.softmax(dim, dtype=torch.float32).movedim(dim, 0)) for image in images]
    return torch.stack([confidence for confidence, _ in each]), torch.stack([label for _, label in each])


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over classes; at no time is there a second map of that size, whatever the layout and precision of the logits.

    Args:
        logits: [B, C, H, W] float.

    Returns:
        [B, C, H, W] float32, contiguous; channels_last, where the logits are and classes are many.
    """
    probs = new_maps_like(logits, torch.float32)
    images, dim = read_by_class(logits)
    for image, out in zip(images, read_by_class(probs)[0], strict=True):
        torch.softmax(image, dim, dtype=torch.float32, out=out)
    return probs


def logistic_threshold(mean_confidence: Tensor, *, base: float, beta: float, low: float, high: float) -> Tensor:
    """The published dynamic threshold: a clamped logistic of the mean confidence.

    With the published numbers (base 0.6, beta 0.5, clamp 0.3 to 0.8) it can only lie in
    [0.300, 0.337]: it filters almost nothing (docs/method.md).

    Args:
        mean_confidence: In [0, 1]. Any shape.
        base: Supremum of the rule.
        beta: Steepness.
        low: Lower clamp.
        high: Upper clamp.

    Returns:
        Threshold, same shape.

    Source:
        CW-BASS, arXiv:2502.15152: tau = clamp(base / (1 + exp(-beta (mean c - 0.5))), low, high).
    """
    return (base * torch.sigmoid(beta * (mean_confidence - 0.5))).clamp(low, high)


def count_by_class(label: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class inside a mask; unlike ``bincount(label[where])`` it never waits for the device.

    Args:
        label: Below ``num_classes`` inside the mask. Any shape, int64.
        where: Pixels that count. Likewise, bool.
        num_classes: K.

    Returns:
        [K] int64.
    """
    return _scatter_sum(label, where, torch.ones_like(label), num_classes)


def sum_by_class(values: Tensor, label: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Sum of values in [0, 1] over the pixels of each class inside a mask.

    They are added as whole numbers of 2^-32: added one by one, float32 stops counting at 2^24 pixels and is biased long
    before, and sums of floats depend on an order that GPUs do not keep.

    Args:
        values: Any shape, float.
        label: Likewise, int64.
        where: Pixels that count. Likewise, bool.
        num_classes: K.

    Returns:
        [K] float64.
    """
    whole = (values.double() * _UNIT).round_().long()
    return _scatter_sum(label, where, whole, num_classes).double() / _UNIT


def confidence_counts(confidence: Tensor, label: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Histogram of confidences, by class: bin i of N holds [i/N, (i+1)/N), the last bin includes 1.

    A row's sum is what :func:`count_by_class` gives: whoever wants both counts once.

    Args:
        confidence: In [0, 1]. Any shape, float.
        label: Below ``num_classes`` inside the mask. Likewise, int64.
        where: Pixels that count. Likewise, bool.
        num_classes: K.

    Returns:
        [K, CONFIDENCE_BINS] int64.
    """
    fine = (confidence * CONFIDENCE_BINS).long().clamp_(0, CONFIDENCE_BINS - 1)  # NaN becomes the lowest number
    counts = count_by_class(fine.add_(label, alpha=CONFIDENCE_BINS), where, num_classes * CONFIDENCE_BINS)
    return counts.view(num_classes, CONFIDENCE_BINS)


def _scatter_sum(index: Tensor, where: Tensor, values: Tensor, size: int) -> Tensor:
    """Sum of whole numbers by index; those outside the mask go to a bin of their own, which is dropped."""
    sums = values.new_zeros(size + 1)
    return sums.scatter_add_(0, index.where(where, size).flatten(), values.flatten())[:size]


def adaptive_floor(class_confidence: Tensor, mean_confidence: Tensor, *, scale: float) -> Tensor:
    """Self-adaptive floor: classes the teacher is less sure of get a lower threshold.

    Args:
        class_confidence: Running mean confidence of each class. [K] float.
        mean_confidence: Running mean confidence of all pixels. [] float.
        scale: s, in [0, 1].

    Returns:
        [K] float.

    Source:
        CW-BASS v2, arXiv:2608.12773: tau_k = s * mean c * mu_k / max_j mu_j.
    """
    return scale * mean_confidence * class_confidence / class_confidence.max().clamp(min=1e-6)


def self_adaptive_thresholds(class_probs: Tensor, mean_confidence: Tensor) -> Tensor:
    """A class that is said seldom gets a lower threshold; the most frequent one gets the mean confidence.

    Args:
        class_probs: Running mean of the probability of each class. [K] float.
        mean_confidence: Running mean confidence of all pixels. [] float.

    Returns:
        [K] float.

    Source:
        FreeMatch, arXiv:2205.07246: tau_k = p_k / max_j p_j * tau.
    """
    return mean_confidence * class_probs / class_probs.max().clamp(min=1e-6)


def soft_weight(confidence: Tensor, mean: Tensor, variance: Tensor, *, spread: float) -> Tensor:
    """What a label counts: 1 from the mean confidence on, less below, as a normal distribution falls off.

    Args:
        confidence: In [0, 1]. Any shape, float.
        mean: Running mean of the confidence, mu. [] float.
        variance: Running variance of it, sigma squared. [] float.
        spread: Factor on sigma, > 0.

    Returns:
        exp(-min(c - mu, 0)^2 / (2 (spread * sigma)^2)), in [0, 1]; the confidence's shape.

    Source:
        SoftMatch, arXiv:2301.10921.
    """
    below = (confidence - mean).clamp(max=0)
    return torch.exp(-below.square() / (2 * spread**2 * variance).clamp(min=1e-12)).to(confidence.dtype)


def class_aware_thresholds(
    confidence: Tensor, label: Tensor, valid: Tensor, num_classes: int, *, scale: float, floor: float
) -> Tensor:
    """A threshold for each class in each image, from the highest confidence in it there.

    Args:
        confidence: [B, H, W] float.
        label: [B, H, W] int64.
        valid: Pixels that count. [B, H, W] bool.
        num_classes: K.
        scale: Factor on the highest confidence where that exceeds ``floor``.
        floor: Below, the highest confidence itself is the threshold: one pixel speaks for the class.

    Returns:
        [B, K] float; 0 for a class that the image does not show.

    Source:
        DSSN, arXiv:2307.13938, class-aware pseudo-label generation.
    """
    top = confidence.new_zeros(label.shape[0], num_classes)
    top.scatter_reduce_(1, label.flatten(1), (confidence * valid).flatten(1), "amax")
    return torch.where(top > floor, scale * top, top)


def precision_curve(reliability: Reliability, *, prior: float) -> Tensor:
    """Precision of what is kept at each threshold, shrunk to that of all classes together.

    Rare classes have few pixels in the slice; ``prior`` pseudo-pixels that are right as often
    as those of all classes at the same threshold keep their curve from jumping.

    Args:
        reliability: Counts on the selection slice.
        prior: Weight of the pooled precision, in pixels.

    Returns:
        Precision at thresholds n/N, n = 0..N-1, for each class. [K, N] float.
    """
    correct, total = at_or_above(reliability.correct), at_or_above(reliability.total)  # [K, N]
    pooled = correct.sum(0) / total.sum(0).clamp(min=1)
    return (correct + prior * pooled) / (total + prior)


def at_or_above(counts: Tensor) -> Tensor:
    """How many there are in each bin and all higher ones. [..., N] -> [..., N]."""
    return counts.flip(-1).cumsum(-1).flip(-1)


def thresholds_for_precision(reliability: Reliability, *, target: float, low: float, high: float, prior: float) -> Tensor:
    """The lowest threshold at which each class's kept labels are right as often as asked.

    Args:
        reliability: Counts on the selection slice, by predicted class and confidence.
        target: Precision asked of retained labels, in [0, 1].
        low: Lowest threshold given, even where less would do.
        high: Threshold of a class that reaches the target nowhere.
        prior: See :func:`precision_curve`.

    Returns:
        [K] float in [low, high].
    """
    curve = precision_curve(reliability, prior=prior)  # [K, N]
    bins = curve.shape[-1]
    reached = curve >= target
    # argmax gives the first threshold that reaches the target.
    first = reached.to(torch.uint8).argmax(-1).to(curve.dtype) / bins
    return torch.where(reached.any(-1), first, torch.full_like(first, high)).clamp(low, high)


def threshold_map(threshold: Tensor, label: Tensor) -> Tensor:
    """tau of each pixel: the same for all, or that of its label. [] or [K] -> [] or label's shape."""
    return look_up(threshold, label) if threshold.dim() else threshold


def retained(reliability: Reliability, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """How many labels of the selection slice are kept at a threshold, and how many of these are right.

    Args:
        reliability: Counts by predicted class and confidence.
        threshold: tau, for all classes or for each. [] or [K] float; rounded up to a bin's edge.

    Returns:
        Pixels of each class that are kept and right, and all that are kept. [K] float64 each.
    """
    classes, bins = reliability.total.shape
    # Half of the edges n/N lie above n/N in float32; that hair must not cost a bin.
    first = (threshold.expand(classes) * bins - 1e-3).ceil()[:, None]  # [K, 1]
    kept = torch.arange(bins)[None] >= first  # [K, N]
    return (reliability.correct * kept).sum(-1), (reliability.total * kept).sum(-1)


def decay_factor(rule: str, *, factor: float, fraction: float) -> float:
    """What confidence is multiplied by at a moment of training.

    Args:
        rule: ``none`` (1), ``constant`` (the published code: ``factor`` from first step to
            last) or ``progressive`` (ours: falls in a straight line from 1 to ``factor``, so
            that the labels have the last word).
        factor: In [0, 1].
        fraction: Share of the stage that is done, in [0, 1].

    Returns:
        In [factor, 1].
    """
    if rule == "none":
        return 1.0
    if rule == "constant":
        return factor
    return 1.0 - (1.0 - factor) * fraction
