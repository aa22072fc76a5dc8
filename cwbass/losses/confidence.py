"""The confidence-weighted loss of CW-BASS."""

from __future__ import annotations

from torch import Tensor

from cwbass.losses.cross_entropy import HardCrossEntropy, SoftCrossEntropy


def pixel_cross_entropy(logits: Tensor, label: Tensor, *, ignore_index: int) -> Tensor:
    """Cross-entropy of each pixel, 0 where ignored; both unlabelled terms weigh this one map. Its graph takes one backward pass.

    Args:
        logits: Student output before softmax. [B, C, H, W] float.
        label: Class, or ``ignore_index``. [B, H, W] int64.
        ignore_index: Label of pixels that take no part.

    Returns:
        Nats. [B, H, W] float.
    """
    loss: Tensor = HardCrossEntropy.apply(logits, label, ignore_index)
    return loss


def soft_cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """Cross-entropy of each pixel with a distribution over classes.

    Where the two agree its gradient is zero, so that a pixel of which the teacher is not sure pulls to no class. Its graph takes
    one backward pass.

    Args:
        logits: Student output before softmax. [B, C, H, W] float.
        probs: Teacher's probabilities; each pixel sums to 1. [B, C, H, W] float.

    Returns:
        Nats. [B, H, W] float.
    """
    loss: Tensor = SoftCrossEntropy.apply(logits, probs)
    return loss


def confidence_weighted_mean(
    pixel_loss: Tensor, confidence: Tensor, kept: Tensor, *, gamma: float, count: Tensor | None = None
) -> Tensor:
    """Pixel losses weighted by ``confidence ** gamma``.

    Args:
        pixel_loss: Loss of each pixel. [B, H, W] float.
        confidence: Teacher's confidence in its label, in [0, 1]. [B, H, W] float.
        kept: Pixels that take part. [B, H, W] bool.
        gamma: Exponent, >= 0; 0 weighs all kept pixels alike.
        count: What the sum is divided by, above 0; None divides by the number of kept pixels.
            Dividing by all valid pixels instead lets a strict threshold lower the term's voice. [].

    Returns:
        [] float; 0, still on the graph, where nothing is kept.

    Source:
        CW-BASS, arXiv:2502.15152: L_cw = sum(c^gamma * CE * V) / max(1, sum V).
    """
    weight = confidence.pow(gamma) * kept
    return (weight * pixel_loss).sum() / (kept.sum().clamp(min=1) if count is None else count)
