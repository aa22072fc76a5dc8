"""How large the images of a dataset are, and whether crops show enough of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from cwbass.config import AugmentConfig
from cwbass.data.base import Sample, upright_size
from cwbass.data.parallel import map_threads
from cwbass.errors import DataError

LOOKED_AT = 200  # images, evenly spaced
LITTLE = 0.05  # share of an image below which a crop shows too little of it


def median_size(samples: Sequence[Sample], root: Path) -> tuple[int, int]:
    """Median height and width of images, from their headers.

    Args:
        samples: One or more; ``LOOKED_AT`` of them are looked at, evenly spaced.
        root: Folder that their paths are relative to.

    Raises:
        DataError: All are missing or broken; of the first.
    """

    def size_of(sample: Sample) -> tuple[int, int] | DataError:
        try:
            return upright_size(root / sample.image)
        except DataError as error:  # whoever reads the image says so; its size is no reason to stop
            return error

    every = -(-len(samples) // LOOKED_AT)
    found = list(map_threads(size_of, samples[::every]))
    sizes = [size for size in found if not isinstance(size, DataError)]
    if not sizes and isinstance(found[0], DataError):
        raise found[0]
    return median_of(sizes)


def median_of(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Median height and width of one or more sizes, each by itself; pixels."""
    height, width = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    return height, width


def small_crop(size: tuple[int, int], views: AugmentConfig) -> str | None:
    """What to say where crops show so little of an image that hardly an object is seen whole; else None.

    Args:
        size: Height and width of a usual image, pixels.
        views: How crops are drawn. Counted is the geometric mean of the scales.
    """
    (height, width), (low, high) = size, views.scale
    shown = views.crop_size**2 / (low * high * height * width)
    if shown >= LITTLE:
        return None
    return (
        f"augment.crop_size: at scale {low:g} to {high:g}, crops of {views.crop_size} pixels show {shown:.1%} of an image of "
        f"{width} x {height} (median): few objects are seen whole. Take larger crops or smaller scales; `cwbass init` proposes both."
    )
