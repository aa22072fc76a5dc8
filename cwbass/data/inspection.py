"""Facts about one image and one mask, each file read once; ``cwbass.data.check`` judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from cwbass.data.base import (
    UNKNOWN,
    DatasetSpec,
    check_kind,
    class_pixels,
    count_values,
    eight_bit_rgb,
    map_mask,
    read_raw_mask_and_palette,
    sixteen_bit,
    size_when_upright,
    upright,
)
from cwbass.data.near_duplicates import Hash, difference_hash
from cwbass.errors import DataError

MAX_VALUES = 32  # foreign values or colours kept of one mask, the most frequent

DIM = 64  # of 256: an image of 16 bits that stays below has 14 bits at most

RGB = tuple[int, int, int]
Value = int | RGB


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image file."""

    error: str | None = None  # why it cannot be decoded
    size: tuple[int, int] = (0, 0)  # width, height; upright
    dim: bool = False  # more than 8 bits, of which the lowest quarter of the values is used at most
    rotated: bool = False  # EXIF says the camera was turned, so reading turns the pixels
    several: bool = False  # pages or frames, of which the first is read
    hash: Hash | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """A value in one mask that no class claims."""

    pixels: int
    x: int  # of the first pixel, in reading order
    y: int


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """One mask file."""

    error: str | None = None  # why it cannot be decoded
    size: tuple[int, int] = (0, 0)  # width, height
    is_rgb: bool = False
    mappable: bool = True  # False: RGB without a colour map, or indices where colours are expected
    pixels: tuple[int, ...] = ()  # of each class
    foreign: Mapping[Value, Foreign] = field(default_factory=dict)
    colors: Mapping[int, RGB] = field(default_factory=dict)  # of the values it holds, in its palette
    has_zero: bool = False
    has_255: bool = False
    only_0_and_255: bool = False
    borders: int = 0  # between two classes, along some rows of an index mask
    between: int = 0  # pixels there whose value lies between those of its two neighbours

    @property
    def sound(self) -> bool:
        """Whether ``read_mask`` reads it."""
        return self.error is None and self.mappable and not self.foreign


def inspect_image(path: Path) -> ImageFacts:
    """Decode an image and describe it; a broken file is a fact, not an exception.

    The colours of a JPEG are left undecoded: its hash sees none.
    """
    try:
        with Image.open(path) as file:
            wide = file.mode == "I" or sixteen_bit(file)  # first of all, for EXIF of a PNG stands after its pixels
            several = file.format != "MPO" and getattr(file, "is_animated", False)  # a camera's MPO holds its own preview
            turn = file.getexif().get(ExifTags.Base.Orientation, 1)
            size = size_when_upright(file)
            file.draft("L", None)  # nothing happens where the format knows no such thing
            image = upright(file)
            image = image if image.mode == "L" else eight_bit_rgb(image)
            dim = wide and int(np.asarray(image).max()) < DIM
            rotated, hashed = turn not in (0, 1), difference_hash(image)
            return ImageFacts(size=size, dim=dim, rotated=rotated, several=several, hash=hashed)
    except Exception as error:  # as in read_image
        return ImageFacts(error=str(error))


def inspect_mask(path: Path, spec: DatasetSpec) -> MaskFacts:
    """Decode a mask and describe its values; a broken file is a fact, not an exception."""
    try:
        raw, palette = read_raw_mask_and_palette(path)
    except DataError as error:
        return MaskFacts(error=str(error))
    size, is_rgb = (raw.shape[1], raw.shape[0]), raw.ndim == 3
    try:
        check_kind(raw, spec)
    except DataError:
        code = _code(raw)
        return MaskFacts(size=size, is_rgb=is_rgb, mappable=False, foreign=_foreign(code, code >= 0, is_rgb))
    if is_rgb:
        mapped = map_mask(raw, spec)
        values, pixels = np.zeros(256, dtype=np.int64), np.bincount(mapped.ravel(), minlength=UNKNOWN + 1)
    else:
        values = count_values(raw)
        pixels = class_pixels(values, spec)
    borders, between = (0, 0) if is_rgb else _borders(raw, spec.ignore_index)
    return MaskFacts(
        size=size,
        is_rgb=is_rgb,
        borders=borders,
        between=between,
        colors=_colors(palette, values),
        pixels=tuple(pixels[: spec.num_classes].tolist()),
        foreign=_foreign(_code(raw), map_mask(raw, spec) == UNKNOWN, is_rgb) if pixels[UNKNOWN] else {},
        has_zero=bool(values[0]),
        has_255=bool(values[255]),
        only_0_and_255=not is_rgb and not values[1:255].any(),
    )


def _colors(palette: Sequence[int], values: NDArray[np.int64]) -> dict[int, RGB]:
    """Colours of the values that a mask holds, as far as its palette goes."""
    held = np.flatnonzero(values[: len(palette) // 3]).tolist()
    return {value: (palette[3 * value], palette[3 * value + 1], palette[3 * value + 2]) for value in held}


def _borders(raw: NDArray[np.uint8], ignored: int) -> tuple[int, int]:
    """Borders along every fourth row, and pixels there whose value lies between their neighbours'."""
    rows = raw[::4]
    if rows.shape[1] < 3:
        return 0, 0
    row, column = np.divmod(np.flatnonzero(rows[:, :-2] != rows[:, 1:-1]), rows.shape[1] - 2)
    left, here, right = (rows[row, column + shift] for shift in range(3))
    known = (left != ignored) & (here != ignored) & (right != ignored)
    between = ((left < here) & (here < right)) | ((left > here) & (here > right))
    return int(known.sum()), int((between & known).sum())


def _code(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """One number for each pixel: the index, or red, green and blue side by side. [H, W]."""
    return raw.astype(np.int64) if raw.ndim == 2 else raw.astype(np.int64) @ np.array([65536, 256, 1])


def _foreign(code: NDArray[np.int64], where: NDArray[np.bool_], is_rgb: bool) -> dict[Value, Foreign]:
    """Values of the pixels ``where`` is True, the most frequent first."""
    positions = np.flatnonzero(where)
    values, first, counts = np.unique(code.ravel()[positions], return_index=True, return_counts=True)
    found: dict[Value, Foreign] = {}
    for k in np.argsort(-counts, kind="stable")[:MAX_VALUES]:
        value = int(values[k])
        y, x = divmod(int(positions[first[k]]), code.shape[1])
        found[(value >> 16, value >> 8 & 255, value & 255) if is_rgb else value] = Foreign(int(counts[k]), x, y)
    return found
