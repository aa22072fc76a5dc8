"""Object boundaries of a label map: where the Sobel pair answers on a one-hot plane.

The published code builds one plane a class and filters each. But a plane of class k answers to
Gx at a pixel exactly where the three labels left of it, weighted (1, 2, 1), hold k as often as
the three right of it; so *some* class answers where the two weighted multisets differ, and that
takes a handful of integer comparisons whatever the number of classes. Source: the Sobel pair of
CW-BASS, arXiv:2502.15152; the reduction is ours and tested against the one-hot form.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Frame = Literal["zero", "replicate"]
_OUTSIDE = -1  # label beyond the image: no class's plane is set there


def boundary_mask(label: Tensor, *, frame: Frame, width: int = 1, valid: Tensor | None = None) -> Tensor:
    """Pixels where any class's one-hot plane has a non-zero Sobel gradient.

    Args:
        label: Class of each pixel. [B, H, W] integer, >= 0.
        frame: What lies beyond the image: ``zero`` (the published code: the frame of every
            image is a boundary) or ``replicate`` (it is not).
        width: Pixels that the boundary reaches on each side, >= 1; 1 is the Sobel answer itself.
        valid: Pixels that count. A pixel that sees an invalid one is no boundary: the border of
            padding or of an ignored region is not an object's. [B, H, W] bool.

    Returns:
        [B, H, W] bool.
    """
    label = label.to(torch.int16)[:, None]
    padded = F.pad(label, (1, 1, 1, 1), value=_OUTSIDE) if frame == "zero" else _replicate(label)
    padded = padded[:, 0]  # [B, H + 2, W + 2]
    left, right = _columns(padded)
    top, bottom = _columns(padded.transpose(1, 2))
    edge = _multisets_differ(left, right) | _multisets_differ(top, bottom).transpose(1, 2)
    reach = 1
    if width > 1:
        edge = _dilate(edge, width - 1)
        reach = width
    if valid is not None:
        edge = edge & ~_dilate(~valid, reach)
    return edge


def boundary_mean(
    pixel_loss: Tensor, boundary: Tensor, confidence: Tensor | None = None, *, gamma: float = 1.0, count: Tensor | None = None
) -> Tensor:
    """Mean pixel loss over the boundary, weighted by confidence where it is given.

    Args:
        pixel_loss: Loss of each pixel. [B, H, W] float.
        boundary: Pixels that take part. [B, H, W] bool.
        confidence: Teacher's confidence; None weighs all alike, as published. [B, H, W] float.
        gamma: Exponent of the confidence.
        count: What the sum is divided by, above 0; None divides by the number of boundary pixels. [].

    Returns:
        [] float; 0, still on the graph, without a boundary.

    Source:
        CW-BASS, arXiv:2502.15152: L_b = sum(CE * E * V) / max(1, sum(E * V)).
    """
    weighted = pixel_loss * boundary
    if confidence is not None:
        weighted = weighted * confidence.pow(gamma)
    return weighted.sum() / (boundary.sum().clamp(min=1) if count is None else count)


def _replicate(label: Tensor) -> Tensor:
    # F.pad replicates floats only.
    label = torch.cat((label[..., :1], label, label[..., -1:]), dim=-1)
    return torch.cat((label[..., :1, :], label, label[..., -1:, :]), dim=-2)


def _columns(padded: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The three labels left of each pixel, and the three right of it."""
    return (
        (padded[:, :-2, :-2], padded[:, 1:-1, :-2], padded[:, 2:, :-2]),
        (padded[:, :-2, 2:], padded[:, 1:-1, 2:], padded[:, 2:, 2:]),
    )


def _multisets_differ(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Whether {a, b, b, c} and {d, e, e, f} differ as multisets."""
    (a, b, c), (d, e, f) = one, other
    straight = (a == d) & (c == f)
    crossed = (a == f) & (c == d)
    same_centre = (b == e) & (straight | crossed)
    # {a, a, b, b} equals {d, d, e, e} with the roles of centre and ends exchanged.
    exchanged = (a == c) & (d == f) & (b == d) & (a == e)
    return ~(same_centre | exchanged)


def _dilate(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask[:, None].to(torch.float32), 2 * by + 1, stride=1, padding=by)[:, 0] > 0
