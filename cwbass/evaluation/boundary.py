"""Counts behind Boundary IoU and boundary F1, for all classes at once.

A code map is [H, W] uint8: class + 1, and 0 where the pixel is ignored. Truth and prediction are
0 at the same pixels. Nothing here makes a plane per class, so the cost does not grow with C.

What is no boundary: the frame of the image, and the border of an ignored region. Annotators also
use ignored pixels to hide where one class ends and the next begins (PASCAL VOC draws about five
around every object, and most of its masks have no other contour). Contours are therefore drawn
after such gaps are closed from both sides: an ignored patch inside one class closes without a
trace, and a gap wider than twice ``GAP`` hides its contour for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

GAP = 5  # pixels that each side of an ignored gap may grow
_STRIP = 1 << 18  # pixels that contours are compared in at once: few enough for a core's cache


def band_width(height: int, width: int) -> int:
    """Width of the band of Boundary IoU: 2 % of the image's diagonal, at least 1 pixel."""
    return max(1, round(0.02 * hypot(height, width)))


def band(codes: Tensor, width: int) -> Tensor:
    """The pixels of each class that have another class within ``width`` pixels (Chebyshev distance).

    Args:
        codes: Code maps. [..., H, W] uint8.
        width: Of the band inside each class, pixels, >= 1.

    Returns:
        Code maps that are 0 outside the bands too. [..., H, W] uint8.
    """
    highest = _window(codes, width, torch.maximum, fill=0)
    # One less makes 0 wrap to 255, so that an ignored pixel is never the lowest either.
    lowest = _window(codes - 1, width, torch.minimum, fill=255)
    return codes * (highest - 1 != lowest).view(torch.uint8)


def contour(codes: Tensor) -> Tensor:
    """The pixels of each class that touch another class with one of their four sides.

    Args:
        codes: Code maps. [..., H, W] uint8.

    Returns:
        Code maps that are 0 off the contours too. [..., H, W] uint8.
    """
    padded = F.pad(codes, (1, 1, 1, 1))
    below = padded - 1  # as in band
    highest, lowest = codes.clone(), below[..., 1:-1, 1:-1].clone()
    middle = slice(1, -1)
    for y, x in ((slice(-2), middle), (slice(2, None), middle), (middle, slice(-2)), (middle, slice(2, None))):
        torch.maximum(highest, padded[..., y, x], out=highest)
        torch.minimum(lowest, below[..., y, x], out=lowest)
    return codes * (highest - 1 != lowest).view(torch.uint8)


def close_gaps(codes: Tensor) -> Tensor:
    """Grow every class into the ignored pixels within ``GAP`` of it (Chebyshev distance). [..., H, W] uint8 -> same."""
    if codes.min() > 0:
        return codes
    for _ in range(GAP):
        grown = _window(codes, 1, torch.maximum, fill=0)
        # Grow where the code is 0, and nowhere else; to compare bytes with a number takes torch ten times as long.
        codes = codes.clamp(max=1).neg_().add_(1).mul_(grown).add_(codes)
    return codes


def near_boundaries(mask: Tensor, width: int, ignore_index: int) -> Tensor:
    """The mask with every pixel ignored that has no other class within ``width`` pixels.

    Args:
        mask: Class index, at most 254, or ``ignore_index``. [H, W] uint8.
        width: Chebyshev distance, pixels, >= 1.
        ignore_index: Mask value that takes no part.

    Returns:
        [H, W] uint8.
    """
    codes = torch.where(mask == ignore_index, 0, mask + 1)  # 255 wraps to 0
    near = band(close_gaps(codes), width) > 0
    return mask.where(near, ignore_index)


def band_counts(truth: Tensor, pred: Tensor, num_classes: int, width: int) -> Tensor:
    """Intersection and union of the two bands, per class.

    Args:
        truth: Code map. [H, W] uint8.
        pred: Code map. [H, W] uint8.
        num_classes: C, at most 255.
        width: Of the band, pixels; see :func:`band_width`.

    Returns:
        Pixels in the intersection and in the union. [2, C] int64.

    Source:
        Boundary IoU, Cheng et al., CVPR 2021.
        Differs: the frame of the image is no boundary; there it is one.
    """
    side = num_classes + 1
    bands = band(torch.stack((truth, pred)), width)
    joint = count_pairs(bands[0], bands[1], side)  # row and column 0: outside the bands
    both = joint.diagonal()
    return torch.stack((both, joint.sum(0) + joint.sum(1) - both))[:, 1:]


def contour_counts(truth: Tensor, pred: Tensor, num_classes: int, tolerances: Sequence[int]) -> Tensor:
    """How near the contour of one code map lies to that of the other, per class.

    Args:
        truth: Code map. [H, W] uint8.
        pred: Code map. [H, W] uint8.
        num_classes: C, at most 255.
        tolerances: T increasing distances (Euclidean), pixels.

    Returns:
        [2, T + 1, C] int64. First index: contour pixels of the truth, of the prediction. Second: the
        first tolerance within which the other map has a contour pixel of the same class; T is none.

    Source:
        What is a good evaluation measure for semantic segmentation?, Csurka et al., BMVC 2013.
        Differs: counts are meant to be added up over the dataset, not scores averaged over images.
    """
    margin = max(tolerances)
    halo = margin + GAP + 1  # rows around a strip on which what is counted in it depends
    height, width = truth.shape
    rows = max(halo, _STRIP // width) if truth.device.type == "cpu" else height
    total = truth.new_zeros(2, len(tolerances) + 1, num_classes, dtype=torch.int64)
    for top in range(0, height, rows):
        bottom, first = min(top + rows, height), max(top - halo, 0)
        part = torch.stack((truth[first : bottom + halo], pred[first : bottom + halo]))
        # A strip's own frame may be wrong as far as gaps grow, and one pixel more.
        from_, to = max(top - margin, 0), min(bottom + margin, height)
        contours = contour(close_gaps(part))[:, from_ - first : to - first]
        total += _strip_counts(contours, slice(top - from_, bottom - from_), num_classes, tolerances)
    return total


def _strip_counts(contours: Tensor, rows: slice, num_classes: int, tolerances: Sequence[int]) -> Tensor:
    """:func:`contour_counts` of some rows of two contour maps, [2, H, W]."""
    margin = max(tolerances)  # so that a look beyond the frame finds 0, and not the next row
    padded = F.pad(contours, (margin,) * 4)
    width = padded.shape[2]
    ranks = _first_rings(padded[0].flatten(), padded[1].flatten(), _rings(tolerances, width), margin * width)
    inside = slice(margin + rows.start, margin + rows.stop)
    side = num_classes + 1
    counts = [
        count_pairs(rank.view(-1, width)[inside], codes[inside], side, rows=len(tolerances) + 1)
        for rank, codes in zip(ranks, padded, strict=True)
    ]
    return torch.stack(counts)[..., 1:]  # column 0: off the contours


def count_pairs(one: Tensor, other: Tensor, side: int, rows: int | None = None) -> Tensor:
    """How often two values meet at a pixel.

    Args:
        one: Values below ``rows``. Any shape, uint8.
        other: Values below ``side``. Same shape, uint8.
        side: Columns of the table.
        rows: Rows of the table; None takes as many.

    Returns:
        [rows, side] int64.
    """
    rows = rows or side
    key = one.to(torch.int16 if rows * side < 2**15 else torch.int32).mul_(side).add_(other).flatten()
    return torch.bincount(key, minlength=rows * side).view(rows, side)


def boundary_f1(counts: Tensor) -> Tensor:
    """F1 per tolerance and class.

    Args:
        counts: Of :func:`contour_counts`, added up over images. [2, T + 1, C] int64.

    Returns:
        [T, C] float64 in [0, 1]; NaN where neither map has a contour of the class.
    """
    total = counts.sum(1, keepdim=True)  # [2, 1, C]
    recall, precision = counts[:, :-1].cumsum(1).double() / total.clamp(min=1)  # [T, C] each
    # Both are 0 together, so any positive divisor gives 0 there.
    f1: Tensor = 2 * precision * recall / torch.where(recall > 0, precision + recall, 1.0)
    return f1.masked_fill(total.sum(0) == 0, torch.nan)


def _window(x: Tensor, radius: int, pick: Callable[..., Tensor], fill: int) -> Tensor:
    """Highest or lowest value within ``radius`` along both axes, in log2(radius) passes. [..., H, W] -> same."""
    x = F.pad(x, (radius,) * 4, value=fill)
    spare = torch.empty_like(x)  # two maps in turn: a new one for each pass would be one that no cache holds
    for dim in (-2, -1):
        length, span = 2 * radius + 1, 1  # each value of x already speaks for span pixels
        while span < length:
            step = min(span, length - span)
            kept = x.shape[dim] - step
            left, right, out = x.narrow(dim, 0, kept), x.narrow(dim, step, kept), spare.narrow(dim, 0, kept)
            pick(left, right, out=out)
            x, spare = out, left
            span += step
    return x


def _rings(tolerances: Sequence[int], row: int) -> list[list[int]]:
    """Offsets in a flat map with ``row`` pixels a row: the disk of the first tolerance, then ring by ring."""
    reach = range(-max(tolerances), max(tolerances) + 1)
    rings, inner = [], -1
    for tolerance in tolerances:
        outer = tolerance**2
        rings.append([dy * row + dx for dy in reach for dx in reach if inner < dy * dy + dx * dx <= outer])
        inner = outer
    return rings


def _first_rings(first: Tensor, second: Tensor, rings: Sequence[Sequence[int]], border: int) -> tuple[Tensor, Tensor]:
    """For each pixel of either map, the index of the first ring around it that holds its code in the other.

    Moves whole maps, though only contours matter: that costs the same for every prediction, and
    gathering single pixels is cheaper for none but the smoothest.

    Args:
        first: Flat code map. [N] uint8.
        second: Flat code map. [N] uint8.
        rings: Offsets into a flat map, symmetric.
        border: Pixels at either end that are padding, at least the largest offset.

    Returns:
        ``len(rings)`` where there is no such ring. [N] uint8 each.
    """
    least_first, least_second = torch.full_like(first, 255), torch.full_like(second, 255)
    xp: Any = torch
    arrays: Any = (first, second, least_first, least_second)
    if first.device.type == "cpu":  # numpy does the same to the same memory, and its calls take a third of the time of torch's
        xp, arrays = np, [tensor.numpy() for tensor in arrays]
    inside, others, nearest, nearest_others = arrays[0][border:-border], arrays[1], arrays[2][border:-border], arrays[3]
    difference = xp.empty_like(inside)
    ranks = torch.zeros_like(first), torch.zeros_like(second)
    for ring in rings:
        for offset in ring:
            moved = slice(border + offset, border + offset + len(inside))
            xp.bitwise_xor(inside, others[moved], out=difference)  # 0 where codes are equal
            xp.minimum(nearest, difference, out=nearest)
            xp.minimum(nearest_others[moved], difference, out=nearest_others[moved])
        for rank, least in zip(ranks, (least_first, least_second), strict=True):
            rank += least.clamp(max=1)
    return ranks
