"""Which pixels lie inside a polygon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels of one object: a box of an image, and which of its pixels belong."""

    top: int
    left: int
    inside: NDArray[np.bool_]  # [h, w]

    @property
    def area(self) -> int:
        """Pixels that belong."""
        return int(self.inside.sum())


def fill_polygons(polygons: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> Region:
    """Pixels whose centres lie inside one of the polygons; (0.5, 0.5) is the centre of the first pixel.

    A polygon that crosses itself is filled by the even-odd rule. What lies outside the image is cut off. Two polygons that
    share an edge share no pixel, and leave none out.

    Args:
        polygons: Each [N, 2], x and y of its corners in pixels, finite.
        size: Height and width of the image, in pixels.
    """
    corners = np.concatenate(polygons)
    low = np.clip(_first_centre(corners.min(axis=0)), 0, size[::-1]).astype(int)
    high = np.clip(_first_centre(corners.max(axis=0)), low, size[::-1]).astype(int)
    inside = np.zeros(tuple(high - low)[::-1], dtype=np.bool_)
    for polygon in polygons:
        inside |= _fill(polygon - low, *inside.shape)
    return Region(top=int(low[1]), left=int(low[0]), inside=inside)


def _fill(polygon: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Along each row of centres, every edge that is crossed turns inside to outside and back."""
    turns = np.zeros((height, width + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        top, bottom = np.clip(_first_centre(np.array(sorted((y0, y1)))), 0, height).astype(int)
        rows = np.arange(top, bottom)
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            turns[rows, np.clip(_first_centre(x), 0, width).astype(int)] += 1
    return np.asarray(turns[:, :-1].cumsum(axis=1) % 2 == 1)


def _first_centre(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Index of the first pixel whose centre is not before a coordinate."""
    return np.asarray(np.ceil(values - 0.5))
