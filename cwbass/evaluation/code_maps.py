"""Where the classes of a code map meet: bands, contours and closed gaps, for all classes at once.

A code map is [H, W] uint8: class + 1, and 0 where the pixel is ignored.

Every pass is one call on a map laid out as a single row of bytes, with a margin of zeros around it that
is wider than anything looks: a step to the right is one byte on, and a step down one padded row. On a
CPU the calls are numpy's, which take a third of the time of torch's on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

GAP = 5  # pixels that each side of an ignored gap may grow
Bytes = Any  # [N] uint8, a flat map: numpy's array on a CPU, a tensor elsewhere


@dataclass(frozen=True, slots=True)
class Layout:
    """How maps lie in a row of bytes, and who computes on it."""

    xp: Any  # numpy or torch
    shape: tuple[int, ...]  # of the maps with their margin, [..., H + 2 * margin, W + 2 * margin]
    margin: int  # pixels on each side

    @property
    def row(self) -> int:
        """Bytes from a pixel to the one below it."""
        return self.shape[-1]

    def inside(self, flat: Bytes) -> Any:
        """The maps without their margin. [..., H, W], a view of the same kind."""
        inner = slice(self.margin, -self.margin)
        return flat.reshape(self.shape)[..., inner, inner]


def flatten(maps: Tensor, margin: int) -> tuple[Layout, Bytes]:
    """Maps as a row of bytes, a copy. [..., H, W] uint8 -> [N]."""
    padded = F.pad(maps, (margin,) * 4)
    layout, flat = Layout(_library(maps), tuple(padded.shape), margin), padded.view(-1)
    return layout, flat if layout.xp is torch else flat.numpy()


def band(codes: Tensor, width: int) -> Tensor:
    """The pixels of each class that have another class within ``width`` pixels (Chebyshev distance).

    Args:
        codes: Code maps. [..., H, W] uint8.
        width: Of the band inside each class, pixels, >= 1.

    Returns:
        Code maps that are 0 outside the bands too. [..., H, W] uint8.
    """
    return codes * mixed_windows(codes, width)


def mixed_windows(codes: Tensor, width: int) -> Tensor:
    """Whether two classes lie within ``width`` pixels (Chebyshev distance). [..., H, W] uint8 -> [..., H, W] uint8, 0 or 1."""
    layout, flat = flatten(codes, width)
    # One less makes 0 wrap to 255, so that an ignored pixel is never the lowest either.
    lowest = _window(layout, layout.xp.minimum, flat - 1, width)
    highest = _window(layout, layout.xp.maximum, flat, width)
    mixed = torch.asarray(highest - 1 != lowest).view(layout.shape).view(torch.uint8)
    return mixed[..., : codes.shape[-2], : codes.shape[-1]]  # a window stands where it begins


def close_gaps(codes: Tensor) -> Tensor:
    """Grow every class into the ignored pixels within ``GAP`` of it (Chebyshev distance). [..., H, W] uint8 -> same."""
    layout, flat = flatten(codes, GAP)
    return torch.asarray(layout.inside(flat_close_gaps(layout, [flat])[0]))


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


def flat_contour(layout: Layout, codes: Bytes) -> Bytes:
    """The pixels of each class that touch another class with one of their four sides, as flat code maps that are 0 elsewhere too."""
    xp, row, length = layout.xp, layout.row, len(codes)
    below = codes - 1  # as in band
    inner = slice(row, length - row)
    highest, lowest = codes[inner], below[inner]
    for offset in (-row, -1, 1, row):
        moved = slice(row + offset, length - row + offset)
        highest, lowest = xp.maximum(highest, codes[moved]), xp.minimum(lowest, below[moved])
    lines = xp.zeros_like(codes)
    xp.multiply(codes[inner], highest - 1 != lowest, out=lines[inner])
    return lines


def flat_close_gaps(layout: Layout, maps: Sequence[Bytes]) -> list[Bytes]:
    """:func:`close_gaps` of flat code maps that are 0 at the same pixels.

    A pixel takes the highest code of the smallest window around it that shows any.

    Args:
        layout: Of them all, with a margin of at least ``GAP``.
        maps: Flat code maps.
    """
    xp = layout.xp
    open_ = xp.zeros_like(maps[0])  # 255 where nothing has grown yet: a mask to be and-ed takes less than xp.where
    layout.inside(open_)[...] = _mask(xp, layout.inside(maps[0]) == 0)
    closed, windows = [xp.asarray(codes, copy=True) for codes in maps], list(maps)
    for distance in range(1, GAP + 1):
        if not open_.max():
            break
        middle = distance * (layout.row + 1)  # from where a window begins
        windows = [_window(layout, xp.maximum, codes, 1) for codes in windows]
        for codes, window in zip(closed, windows, strict=True):
            codes[middle:] |= window[:-middle] & open_[middle:]
        open_[middle:] &= _mask(xp, windows[0][:-middle] == 0)
    return closed


def flat_disks(layout: Layout, words: Bytes, radii: Sequence[int]) -> list[Bytes]:
    """The bits of all words within a Euclidean distance of each pixel.

    A disk is a pile of rows: each row is grown to the width that it has in one disk or another, and is added there.

    Args:
        layout: Of the words, with a margin of at least the largest radius.
        words: Eight bits a pixel, none outside the frame.
        radii: Pixels.

    Returns:
        For each radius, the bits around each pixel inside the frame. [N] uint8 each.
    """
    xp, disks = layout.xp, [layout.xp.zeros_like(words) for _ in radii]
    rows = [
        (disk, y, isqrt(radius**2 - y**2)) for disk, radius in zip(disks, radii, strict=True) for y in range(-radius, radius + 1)
    ]
    spread, spare = xp.asarray(words, copy=True), xp.empty_like(words)
    for width in range(max(radii) + 1):
        for step in (1, 1)[: 2 * width] if width < 2 else (2,):  # a row that begins at each pixel: of 3 words, 5, 7
            xp.bitwise_or(spread[:-step], spread[step:], out=spare[:-step])
            spread, spare = spare, spread
        for disk, y, reach in rows:
            if reach == width:
                _or_ahead_(xp, disk, spread, y * layout.row - width)
    return disks


def _library(maps: Tensor) -> Any:
    return np if maps.device.type == "cpu" else torch


def _mask(xp: Any, where: Any) -> Bytes:
    """255 where it is True, and 0."""
    return xp.negative(where.view(xp.uint8))


def _or_ahead_(xp: Any, into: Bytes, words: Bytes, offset: int) -> None:
    """Add to each word the one that stands ``offset`` bytes ahead of it, or behind."""
    ahead, behind = max(offset, 0), max(-offset, 0)
    part = into[behind : len(into) - ahead]
    xp.bitwise_or(part, words[ahead : len(words) - behind], out=part)


def _window(layout: Layout, pick: Callable[..., Bytes], values: Bytes, radius: int) -> Bytes:
    """Highest or lowest value of the square of ``2 * radius + 1`` pixels that begins at each pixel, in log2(radius) passes."""
    length, source = 2 * radius + 1, values
    out, spare = layout.xp.empty_like(values), layout.xp.empty_like(values)  # in turn: no cache holds a new one for each pass
    for step in (1, layout.row):
        span = 1  # each value of source already speaks for span pixels
        while span < length:
            more = min(span, length - span)
            kept = len(values) - more * step
            pick(source[:kept], source[more * step :], out=out[:kept])
            source, out, spare = out, spare, out
            span += more
    return source
