"""Cross-entropy of each pixel, from the logits alone.

torch's own keeps a map of log-probabilities for the backward pass, makes another for its gradient, and in half precision a third
of float32. Here an image at a time is turned into probabilities, which stay in the processor's cache, and the backward
pass does so again: what is kept is the logits and the target, which are there anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class HardCrossEntropy(torch.autograd.Function):
    """``-log q[label]`` of each pixel, 0 where it is ignored. See :func:`cwbass.losses.confidence.pixel_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
        ctx.save_for_backward(logits, label)
        ctx.ignore_index = ignore_index
        known = label != ignore_index
        loss = _empty_map(logits)
        for image, target, out in zip(logits, label.where(known, 0), loss, strict=True):
            torch.gather(image.log_softmax(0, dtype=loss.dtype), 0, target[None], out=out[None])
        return loss.neg_().masked_fill_(~known, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, label = ctx.saved_tensors
        known = label != ctx.ignore_index
        grad, target = grad.where(known, 0)[:, None], label.where(known, 0)[:, None]  # [B, 1, H, W]
        grad_logits = torch.empty_like(logits)
        for image, index, share, out in zip(logits, target, grad, grad_logits, strict=True):
            probs = image.softmax(0, dtype=grad.dtype)
            torch.mul(probs.scatter_add_(0, index, probs.new_tensor(-1.0).expand_as(index)), share, out=out)
        return grad_logits, None, None


class SoftCrossEntropy(torch.autograd.Function):
    """``-sum p log q`` of each pixel. See :func:`cwbass.losses.confidence.soft_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor) -> Tensor:
        ctx.save_for_backward(logits, probs)
        loss = _empty_map(logits)
        for image, target, out in zip(logits, probs, loss, strict=True):
            torch.sum(image.log_softmax(0, dtype=loss.dtype).mul_(target), 0, out=out)
        return loss.neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, probs = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for image, target, share, out in zip(logits, probs, grad[:, None], grad_logits, strict=True):
            torch.mul(image.softmax(0, dtype=grad.dtype).sub_(target), share, out=out)
        return grad_logits, None


def _empty_map(logits: Tensor) -> Tensor:
    """A value of each pixel, in float32 at least. [B, C, H, W] -> [B, H, W]."""
    dtype = torch.float32 if logits.element_size() < 4 else logits.dtype
    return logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=dtype)
