"""Cross-entropy on ground truth."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def supervised_cross_entropy(logits: Tensor, mask: Tensor, *, ignore_index: int, count: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the pixels that are labelled.

    Args:
        logits: Before softmax. [B, C, H, W] float.
        mask: Class index, or ``ignore_index``. [B, H, W] int64.
        ignore_index: Label of pixels that take no part.
        count: What the sum is divided by, above 0; None divides by the number of labelled pixels. [].

    Returns:
        Nats per labelled pixel. [] float; 0, still on the graph, where no pixel is labelled
        (torch's own mean is NaN there).
    """
    loss = F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="sum")
    return loss / ((mask != ignore_index).sum().clamp(min=1) if count is None else count)
