"""Which pixels a polygon covers: worked by hand, against a plain reference, and at the edges of an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwbass.data.polygons import fill_polygons

SIZE = (7, 9)


def filled(*polygons: list[tuple[float, float]], size: tuple[int, int] = SIZE) -> np.ndarray:
    """The polygons on a whole image. [H, W] bool."""
    region = fill_polygons([np.array(polygon, dtype=np.float64) for polygon in polygons], size)
    canvas = np.zeros(size, dtype=bool)
    height, width = region.inside.shape
    canvas[region.top : region.top + height, region.left : region.left + width] = region.inside
    assert canvas.sum() == region.area
    return canvas


def rows(canvas: np.ndarray) -> list[str]:
    return ["".join(".#"[value] for value in row) for row in canvas.astype(int)]


def test_a_box_covers_as_many_pixels_as_its_area() -> None:
    assert rows(filled([(1, 1), (4, 1), (4, 3), (1, 3)], size=(4, 6))) == ["......", ".###..", ".###..", "......"]


def test_a_pixel_belongs_where_its_centre_does() -> None:
    assert rows(filled([(0, 0), (4, 0), (0, 4)], size=(4, 4))) == ["###.", "##..", "#...", "...."]
    assert rows(filled([(0.6, 0), (2.4, 0), (2.4, 1), (0.6, 1)], size=(1, 4))) == [".#.."]


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    left, right = [(0, 0), (4.5, 0), (2.5, 7), (0, 7)], [(4.5, 0), (9, 0), (9, 7), (2.5, 7)]
    both = filled(left).astype(int) + filled(right)
    assert (both == 1).all()


def test_a_polygon_that_crosses_itself_is_hollow_where_it_covers_twice() -> None:
    outer, inner = [(0, 0), (6, 0), (6, 6), (0, 6)], [(2, 2), (4, 2), (4, 4), (2, 4)]
    ring = filled([*outer, outer[0], *inner, inner[0]], size=(6, 6))
    assert ring.sum() == 36 - 4 and not ring[2:4, 2:4].any()


def test_several_polygons_are_one_object() -> None:
    assert filled([(0, 0), (2, 0), (2, 2), (0, 2)], [(1, 1), (3, 1), (3, 3), (1, 3)]).sum() == 4 + 4 - 1


@pytest.mark.parametrize("far", [20.0, 1e6, 1e300])
def test_what_lies_outside_the_image_is_cut_off(far: float) -> None:
    assert filled([(-far, -far), (far, -far), (far, far), (-far, far)]).all()
    assert not filled([(far, 1), (far + 5, 1), (far, 5)]).any()


corner = st.tuples(st.floats(-3, 12).map(lambda x: round(x, 3)), st.floats(-3, 10).map(lambda y: round(y, 3)))


@given(st.lists(corner, min_size=3, max_size=7))
def test_every_pixel_agrees_with_a_ray_to_the_left(polygon: list[tuple[float, float]]) -> None:
    expected = np.zeros(SIZE, dtype=bool)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            x, y, crossings = column + 0.5, row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    crossings += x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x
            expected[row, column] = crossings % 2
    assert (filled(polygon) == expected).all()
