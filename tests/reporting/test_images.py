from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cwbass.data.base import DatasetSpec
from cwbass.reporting import images

SPEC = DatasetSpec(("road", "sky"), ((10, 20, 30), (200, 100, 0)))


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_classes_get_their_colour_and_ignored_pixels_two_greys() -> None:
    label = np.full((12, 12), 255, dtype=np.uint8)
    label[0, 0], label[0, 1] = 0, 1
    painted = images.colorize(label, SPEC)
    assert painted[0, 0].tolist() == [10, 20, 30]
    assert painted[0, 1].tolist() == [200, 100, 0]
    assert {tuple(pixel) for pixel in painted[1:].reshape(-1, 3).tolist()} == set(images.HATCH)


def test_labels_are_shrunk_without_inventing_classes() -> None:
    label = np.tile(np.array([0, 2], dtype=np.uint8), (100, 500))  # [100, 1000]
    assert images.shrink_label(label).shape == (32, 320)
    assert set(np.unique(images.shrink_label(label))) <= {0, 2}


def test_small_images_are_not_scaled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    assert np.array_equal(images.shrink_image(image), image)


def test_the_longer_side_becomes_320() -> None:
    assert images.shrink_image(np.zeros((1024, 2048, 3), dtype=np.uint8)).shape == (160, 320, 3)
    assert images.shrink_image(np.zeros((640, 480), dtype=np.float32)).shape == (320, 240)


def test_png_is_exact_and_jpeg_is_chosen_for_photographs() -> None:
    pixels = images.colorize(np.array([[0, 1]], dtype=np.uint8), SPEC)
    exact = decode(images.data_uri(pixels, photo=False))
    assert exact.format == "PNG"
    assert np.array_equal(np.asarray(exact), pixels)
    assert decode(images.data_uri(pixels, photo=True)).format == "JPEG"


def test_heat_runs_from_violet_to_yellow_and_shows_missing_numbers_in_grey() -> None:
    values = np.array([[0.0, 1.0, np.nan, 1.5]], dtype=np.float32)
    assert images.heat(values).tolist() == [[[68, 1, 84], [253, 231, 37], list(images.HATCH[0]), [253, 231, 37]]]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 100), (0.5, 150), (1.0, 200)])
def test_overlay_blends_inside_the_mask_only(alpha: float, expected: int) -> None:
    image = np.full((1, 2, 3), 100, dtype=np.uint8)
    blended = images.overlay(image, np.array([[True, False]]), (200, 200, 200), alpha=alpha)
    assert blended[0, 0].tolist() == [expected] * 3
    assert blended[0, 1].tolist() == [100] * 3


def test_change_tells_mended_from_broken_and_leaves_unknown_pixels_pale() -> None:
    truth = np.array([[0, 0, 0, 255]], dtype=np.uint8)
    before = np.array([[1, 0, 1, 1]], dtype=np.uint8)
    after = np.array([[0, 1, 1, 0]], dtype=np.uint8)
    image = np.full((1, 4, 3), 101, dtype=np.uint8)  # grey, so the pale ground is 178
    mended, broken, wrong, unknown = images.draw_change(image, truth, before, after, 255)[0].astype(int)
    assert mended.tolist() == [27, 124, 178]  # 0.15 * 178 + 0.85 * (0, 114, 178)
    assert broken.tolist() == [222, 129, 27]
    assert wrong.tolist() == [113, 113, 118]  # 0.4 * 178 + 0.6 * (70, 70, 78)
    assert unknown.tolist() == [178] * 3
