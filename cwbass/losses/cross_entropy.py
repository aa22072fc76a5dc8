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

from cwbass.memory_format import new_maps_like, read_by_class


class HardCrossEntropy(torch.autograd.Function):
    """``-log q[label]`` of each pixel, 0 where it is ignored. See :func:`cwbass.losses.confidence.pixel_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
        known = label != ignore_index
        images, dim = read_by_class(logits)
        loss, slope, slopes = _maps(logits, gradient=ctx.needs_input_grad[0])
        for row, target in enumerate(label.where(known, 0)):
            image, probs, log_sum = _softmax(images[row], dim, loss.dtype)
            target = target.unsqueeze(dim)
            torch.sub(log_sum, image.gather(dim, target).squeeze(dim), out=loss[row])
            if slopes is not None:
                slopes[row] = probs.scatter_add_(dim, target, probs.new_full(target.shape, -1.0))
            del image, probs  # before those of the next image are made
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
        images, dim = read_by_class(logits)
        loss, slope, slopes = _maps(logits, gradient=ctx.needs_input_grad[0])
        for row, target in enumerate(probs.movedim(1, -1) if dim else probs):
            image, own, log_sum = _softmax(images[row], dim, loss.dtype)
            if slopes is not None:
                torch.sub(own, target, out=slopes[row])
            torch.sub(log_sum, image.mul_(target).sum(dim), out=loss[row])
            del image, own  # before those of the next image are made
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(grad[:, None]), None


def _softmax(image: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an image less the highest of each pixel, their probabilities, and the log of the sum of their exponentials.

    The highest probability is the inverse of that sum. Of the image's shape twice, contiguous, and [H, W].
    """
    image = image.to(dtype, memory_format=torch.contiguous_format, copy=True)
    image -= image.amax(dim, keepdim=True)
    probs = image.softmax(dim)
    return image, probs, probs.amax(dim).log_().neg_()


def _maps(logits: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A value of each pixel, in float32 at least, [B, H, W]; one of each logit, where it is wanted, and that as it is read.

    Nothing is filled.
    """
    batch, _, height, width = logits.shape
    dtype = torch.float32 if logits.element_size() < 4 else logits.dtype
    values = logits.new_empty((batch, height, width), dtype=dtype)
    if not gradient:
        return values, None, None
    # float16 holds no small gradient before the factor that arrives later, which has the loss scale in it.
    slope = new_maps_like(logits, torch.float32 if logits.dtype == torch.float16 else logits.dtype)
    return values, slope, read_by_class(slope)[0]
