"""Cross-entropy of each pixel whose gradient is made with its value.

torch's own keeps a map of log-probabilities for the backward pass, makes one or two more there, and in half precision another
of float32. Here an image at a time is turned into probabilities, which stay in the processor's cache; what is
kept of them is the gradient itself, in the type of the logits, and the backward pass scales it in place.
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
        known = label != ignore_index
        loss, slope = _maps(logits, gradient=ctx.needs_input_grad[0])
        for row, target in enumerate(label.where(known, 0)[:, None]):
            image, probs, log_sum = _softmax(logits[row], loss.dtype)
            torch.sub(log_sum, image.gather(0, target)[0], out=loss[row])
            if slope is not None:
                slope[row] = probs.scatter_add_(0, target, probs.new_full(target.shape, -1.0))
        ctx.save_for_backward(slope, known)
        return loss.masked_fill_(~known, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slope, known = ctx.saved_tensors
        return slope.mul_(grad.where(known, 0)[:, None]), None, None


class SoftCrossEntropy(torch.autograd.Function):
    """``-sum p log q`` of each pixel. See :func:`cwbass.losses.confidence.soft_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor) -> Tensor:
        loss, slope = _maps(logits, gradient=ctx.needs_input_grad[0])
        for row, target in enumerate(probs):
            image, own, log_sum = _softmax(logits[row], loss.dtype)
            if slope is not None:
                torch.sub(own, target, out=slope[row])
            torch.sub(log_sum, image.mul_(target).sum(0), out=loss[row])
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(grad[:, None]), None


def _softmax(image: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an image less the highest of each pixel, their probabilities, and the log of the sum of their exponentials.

    The highest probability is the inverse of that sum. [C, H, W] twice, contiguous, and [H, W].
    """
    image = image.to(dtype, memory_format=torch.contiguous_format, copy=True)
    image -= image.amax(0)
    probs = image.softmax(0)
    return image, probs, probs.amax(0).log_().neg_()


def _maps(logits: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """A value of each pixel, in float32 at least, [B, H, W]; and one of each logit, where it is wanted. Neither is filled."""
    batch, _, height, width = logits.shape
    dtype = torch.float32 if logits.element_size() < 4 else logits.dtype
    values = logits.new_empty((batch, height, width), dtype=dtype)
    return values, logits.new_empty(logits.shape) if gradient else None
