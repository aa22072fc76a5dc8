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
    edge = _sobel_answers(padded[:, 0])
    if width > 1:
        edge = _dilate(edge, width - 1)
    if valid is not None:
        edge = edge & ~_dilate(~valid, width)
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


def _sobel_answers(padded: Tensor) -> Tensor:
    """Where two weighted multisets of the eight neighbours differ: left and right, or above and below.

    {a, b, b, c} and {d, e, e, f} are equal where the centres b and e are, and the ends in one order or the other; or where
    both ends are equal on each side, and centre and ends of the sides change places.

    [B, H + 2, W + 2] -> [B, H, W] bool.
    """
    rows, columns = padded[:, :, :-2] == padded[:, :, 2:], padded[:, :-2] == padded[:, 2:]  # of equal ends, two apart
    left, middle, right = (padded[:, :, start : start + padded.shape[2] - 2] for start in range(3))
    (nw, w, sw), (n, s), (ne, e, se) = (
        (left[:, :-2], left[:, 1:-1], left[:, 2:]),
        (middle[:, :-2], middle[:, 2:]),
        (right[:, :-2], right[:, 1:-1], right[:, 2:]),
    )
    crossed = (nw == se) & (sw == ne)
    straight_rows = rows[:, :-2] & rows[:, 2:]  # nw == ne and sw == se
    straight_columns = columns[:, :, :-2] & columns[:, :, 2:]  # nw == sw and ne == se
    sides = (rows[:, 1:-1] & (straight_rows | crossed)) | (straight_columns & (w == ne) & (nw == e))
    levels = (columns[:, :, 1:-1] & (straight_columns | crossed)) | (straight_rows & (n == sw) & (nw == s))
    return ~(sides & levels)


def _dilate(mask: Tensor, by: int) -> Tensor:
    """True where any pixel of the square around one is. [B, H, W] bool."""
    for axis in (1, 2):
        mask = F.pad(mask, (0, 0, by, by) if axis == 1 else (by, by, 0, 0))
        size = mask.shape[axis] - 2 * by
        shifts = [mask.narrow(axis, shift, size) for shift in range(2 * by + 1)]
        mask = shifts[0] | shifts[1]
        for shift in shifts[2:]:
            mask |= shift
    return mask
