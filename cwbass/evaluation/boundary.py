"""Counts behind Boundary IoU and boundary F1, for all classes at once.

A code map is [H, W] uint8: class + 1, and 0 where the pixel is ignored. Truth and prediction are
0 at the same pixels. Nothing here makes a plane per class: the cost grows with the classes that both maps show, by eights, and not with C.

What is no boundary: the frame of the image, and the border of an ignored region. Annotators also
use ignored pixels to hide where one class ends and the next begins (PASCAL VOC draws about five
around every object, and most of its masks have no other contour). Contours are therefore drawn
after such gaps are closed from both sides: an ignored patch inside one class closes without a
trace, and a gap wider than twice ``GAP`` hides its contour for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

import torch
from torch import Tensor

from cwbass.evaluation.code_maps import GAP, Bytes, Layout, flat_close_gaps, flat_contour, flat_disks, flatten, mixed_windows

_STRIP = 1 << 20  # pixels that contours are compared in at once: few enough for a processor's cache
_WORD = 8  # classes whose bits share a byte


def band_width(height: int, width: int) -> int:
    """Width of the band of Boundary IoU: 2 % of the image's diagonal, at least 1 pixel."""
    return max(1, round(0.02 * hypot(height, width)))


def confusion_and_bands(truth: Tensor, pred: Tensor, num_classes: int, width: int) -> tuple[Tensor, Tensor]:
    """Which classes meet, and intersection and union of the two bands per class: one count of the pixels gives both.

    Args:
        truth: Code map. [H, W] uint8.
        pred: Code map. [H, W] uint8.
        num_classes: C, at most 255.
        width: Of the band, pixels; see :func:`band_width`.

    Returns:
        Pixels of each true and predicted class, [C, C] int64, and pixels in the intersection and in the
        union, [2, C] int64.

    Source:
        Boundary IoU, Cheng et al., CVPR 2021.
        Differs: the frame of the image is no boundary; there it is one.
    """
    side = num_classes + 1
    in_truth, in_pred = (mixed_windows(codes, width) for codes in (truth, pred))
    details = pred.to(torch.int16).mul_(4).add_(in_truth * 2 + in_pred)
    joint = count_pairs(truth, details, 4 * side, rows=side).view(side, side, 2, 2)[1:, 1:]
    both = joint[..., 1, 1].diagonal()
    return joint.sum((2, 3)), torch.stack((both, joint[:, :, 1].sum((1, 2)) + joint[..., 1].sum((0, 2)) - both))


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
    halo = max(tolerances) + GAP + 1  # rows around a strip on which what is counted in it depends
    height, width = truth.shape
    rows = max(halo, _STRIP // width) if truth.device.type == "cpu" else height
    total = truth.new_zeros(2, len(tolerances) + 1, num_classes, dtype=torch.int64)
    for top in range(0, height, rows):
        first = max(top - halo, 0)
        strip, counted = slice(first, top + rows + halo), slice(top - first, min(top + rows, height) - first)
        total += _strip_counts(truth[strip], pred[strip], counted, num_classes, tolerances)
    return total


def _strip_counts(truth: Tensor, pred: Tensor, counted: slice, num_classes: int, tolerances: Sequence[int]) -> Tensor:
    """:func:`contour_counts` of the rows ``counted`` of two code maps."""
    (layout, one), (_, other) = (flatten(codes, max(GAP, *tolerances)) for codes in (truth, pred))
    xp, side = layout.xp, num_classes + 1
    pixels = [_contour_pixels(layout, codes) for codes in flat_close_gaps(layout, [one, other])]
    begin, end = ((layout.margin + row) * layout.row for row in (counted.start, counted.stop))
    counts = []
    for (places, codes), near in zip(pixels, _near(layout, one, pixels, side, tolerances), strict=True):
        first_ring = xp.asarray(len(tolerances) - near, dtype=xp.int64)
        key = (first_ring * side + codes)[(places >= begin) & (places < end)]
        counts.append(torch.asarray(xp.bincount(key, minlength=(len(tolerances) + 1) * side)).view(-1, side))
    return torch.stack(counts)[..., 1:]


def _near(layout: Layout, flat: Bytes, pixels: Sequence[tuple[Any, Any]], side: int, tolerances: Sequence[int]) -> list[Bytes]:
    """Within how many tolerances of a contour pixel the other map has one of the same class.

    Classes take the bits of a word in turn, so that a disk around every pixel is looked at for eight of them at once.

    Args:
        layout: Of the maps.
        flat: Any of them.
        pixels: Of :func:`_contour_pixels`, of both maps.
        side: Codes below this one.
        tolerances: Pixels.

    Returns:
        For each map, of its contour pixels. [n] uint8.
    """
    xp = layout.xp
    of_class = [xp.bincount(codes, minlength=side) for _, codes in pixels]
    shared = [code for code, both in enumerate(zip(*(count.tolist() for count in of_class), strict=True)) if all(both)]
    near = [xp.zeros_like(codes, dtype=xp.uint8) for _, codes in pixels]
    for first in range(0, len(shared), _WORD):
        table = xp.zeros_like(of_class[0], dtype=xp.uint8)
        for bit, code in enumerate(shared[first : first + _WORD]):
            table[code] = 1 << bit
        bits = [table.take(codes) for _, codes in pixels]
        disks = []
        for (places, _), own in zip(pixels, bits, strict=True):
            words = xp.zeros_like(flat)
            words[places] = own
            disks.append(flat_disks(layout, words, tolerances))
        for (places, _), own, within, others in zip(pixels, bits, near, reversed(disks), strict=True):
            for disk in others:
                within += (disk.take(places) & own) != 0
    return near


def _contour_pixels(layout: Layout, codes: Bytes) -> tuple[Any, Any]:
    """Where the contours of a flat code map lie, and their codes there. [n] int64 each."""
    xp, lines = layout.xp, flat_contour(layout, codes)
    places = xp.argwhere(lines != 0)[:, 0]
    return places, xp.asarray(lines.take(places), dtype=xp.int64)


def count_pairs(one: Tensor, other: Tensor, side: int, rows: int | None = None) -> Tensor:
    """How often two values meet at a pixel.

    Args:
        one: Values below ``rows``. Any shape, uint8.
        other: Values below ``side``. Same shape, uint8 or int16.
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
