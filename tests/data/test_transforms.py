from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf
from torchvision.transforms.v2 import functional as F

from cwbass.config import AugmentConfig
from cwbass.data import transforms
from cwbass.data.transforms import PAD_VALUE, Geometry, crop_mask, crop_valid, draw_geometry, fit_image, strong_view

IGNORE = 255
PLAIN = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


def blocks(height: int, width: int, side: int = 16) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A mask of random blocks of classes 0 and 1, and an image whose red is 200 x class."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (-(-height // side), -(-width // side)), dtype=np.uint8)
    mask = np.kron(coarse, np.ones((side, side), dtype=np.uint8))[:height, :width]
    return np.stack([mask * 200, np.full_like(mask, 7), 255 - mask * 200], axis=-1), mask


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def crop_image(image: NDArray[np.uint8], geometry: Geometry, crop_size: int) -> Tensor:
    left, top, right, bottom = geometry.box
    return fit_image(image[top:bottom, left:right], geometry, crop_size)


def test_at_scale_one_a_crop_is_a_slice() -> None:
    image, config = noise(40, 50), AugmentConfig(crop_size=16, scale=(1.0, 1.0))
    for seed in range(20):
        g = draw_geometry((40, 50), config, np.random.default_rng(seed))
        piece = image[g.top : g.top + 16, g.left : g.left + 16]
        expected = piece[:, ::-1] if g.mirror else piece
        assert np.array_equal(crop_image(image, g, 16).permute(1, 2, 0).numpy(), expected)
        assert np.array_equal(crop_mask(image[..., 0], g, 16, IGNORE).numpy(), expected[..., 0])
        assert crop_valid(g, 16).all()


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_to_cut_and_resize_is_to_resize_and_cut(scale: float) -> None:
    smooth = F.resize(torch.from_numpy(noise(12, 16)).permute(2, 0, 1), [120, 160], antialias=True)
    whole = F.resize(smooth, [round(120 * scale), round(160 * scale)], antialias=True).int()
    g = Geometry(top=24, left=40, height=round(48 / scale), width=round(48 / scale), out_height=48, out_width=48, mirror=False)
    cut = crop_image(smooth.permute(1, 2, 0).numpy(), g, 48).int()
    top, left = round(24 * scale), round(40 * scale)
    difference = (cut - whole[:, top : top + 48, left : left + 48]).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 1  # rounding
    assert difference.max() <= 6  # the last pixels no longer see beyond the cut


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 128), st.floats(0.25, 4), st.integers(0, 1000))
def test_geometry_stays_inside_and_fills_the_crop_wherever_the_image_reaches(
    height: int, width: int, crop: int, scale: float, seed: int
) -> None:
    g = draw_geometry((height, width), AugmentConfig(crop_size=crop, scale=(scale, scale)), np.random.default_rng(seed))
    assert 0 <= g.top <= height - g.height
    assert 0 <= g.left <= width - g.width
    for side, taken, out in ((height, g.height, g.out_height), (width, g.width, g.out_width)):
        assert 1 <= out <= crop
        assert taken >= 1
        if taken < side:  # there was more image to take: no pixel of padding
            assert out == crop
        else:
            assert abs(out - min(crop, side * scale)) <= max(1.0, scale / 2)


def test_a_larger_image_is_never_padded() -> None:
    config = AugmentConfig(crop_size=321, scale=(1.0, 2.0))
    for seed in range(200):
        g = draw_geometry((375, 500), config, np.random.default_rng(seed))
        assert (g.out_height, g.out_width) == (321, 321)


def test_an_image_that_is_just_large_enough_is_not_padded() -> None:
    g = draw_geometry((160, 160), AugmentConfig(crop_size=321, scale=(2.0, 2.0)), np.random.default_rng(0))
    assert (g.height, g.out_height) == (160, 321)  # of 160.5 pixels, and not 2 x 160


def test_scales_positions_and_flips_cover_their_ranges() -> None:
    config = AugmentConfig(crop_size=32, scale=(0.5, 2.0), hflip=0.25)
    drawn = [draw_geometry((100, 100), config, np.random.default_rng(seed)) for seed in range(2000)]
    heights = [g.height for g in drawn]
    assert abs(np.corrcoef([g.top for g in drawn if g.height < 40], [g.left for g in drawn if g.height < 40])[0, 1]) < 0.1
    assert (min(heights), max(heights)) == (16, 64)
    assert min(g.top for g in drawn) == 0
    assert max(g.top + g.height for g in drawn) == 100
    assert min(g.left for g in drawn) == 0
    assert max(g.left + g.width for g in drawn) == 100
    assert sum(g.mirror for g in drawn) / 2000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("size", [(200, 300), (90, 60), (30, 20)])
def test_image_and_mask_stay_aligned(size: tuple[int, int]) -> None:
    image, mask = blocks(*size)
    config, seen = AugmentConfig(crop_size=96, scale=(0.7, 2.0)), 0
    for seed in range(25):
        g = draw_geometry(size, config, np.random.default_rng(seed))
        view, label = crop_image(image, g, 96), crop_mask(mask, g, 96, IGNORE)
        valid = crop_valid(g, 96)
        flat = _flat(label) & valid
        assert torch.equal(view[0][flat], label[flat] * 200)
        assert torch.equal(label == IGNORE, ~valid)
        seen += int(flat.sum())
        # Half-way between two colours lies the edge of the mask, to the pixel.
        assert ((view[0] > 100) == (label == 1))[valid].double().mean() > 0.95
    assert seen > 5000


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (321, 97), (500, 321), (160, 643)])
def test_a_mask_is_resized_as_torchvision_does_it(size: tuple[int, int]) -> None:
    mask = noise(*size)[..., 0]
    expected = F.resize(torch.from_numpy(mask)[None], [321, 321], F.InterpolationMode.NEAREST_EXACT)[0]
    assert torch.equal(crop_mask(mask, Geometry(0, 0, *size, 321, 321, False), 321, 255), expected)


@pytest.mark.parametrize("length", [1, 2, 5, 96, 257, 500, 2048, 10_000])
def test_pixels_are_looked_up_where_torch_does(length: int) -> None:
    row = torch.arange(length) % 251  # a prime, so that no shift by a power of two is missed
    for wanted in (1, 2, 96, 321):
        expected = F.resize(row.to(torch.uint8)[None, None], [1, wanted], F.InterpolationMode.NEAREST_EXACT).flatten()
        assert row[transforms._nearest(length, wanted)].tolist() == expected.tolist()


def _flat(label: Tensor) -> Tensor:
    """Pixels with one label for two pixels around."""
    padded = nnf.pad(label[None, None].float(), (2, 2, 2, 2), mode="replicate")
    return (nnf.max_pool2d(padded, 5, 1) == -nnf.max_pool2d(-padded, 5, 1))[0, 0]


@pytest.mark.parametrize("mirror", [False, True])
def test_a_small_image_is_padded_right_and_below(mirror: bool) -> None:
    image = noise(10, 12)
    g = Geometry(top=0, left=0, height=10, width=12, out_height=10, out_width=12, mirror=mirror)
    view, valid = crop_image(image, g, 16), crop_valid(g, 16)
    label = crop_mask(np.ones((10, 12), dtype=np.uint8), g, 16, IGNORE)
    assert valid.nonzero().amax(0).tolist() == [9, 11]
    assert valid.sum() == 120
    assert (view[:, ~valid] == PAD_VALUE).all()
    assert (label[~valid] == IGNORE).all()
    assert (label[valid] == 1).all()
    assert np.array_equal(view[:, :10, :12].permute(1, 2, 0).numpy(), image[:, ::-1] if mirror else image)


def test_an_image_of_one_pixel_becomes_a_crop() -> None:
    image, config = np.full((1, 1, 3), 9, dtype=np.uint8), AugmentConfig(crop_size=8)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        g = draw_geometry((1, 1), config, rng)
        view, valid = crop_image(image, g, 8), crop_valid(g, 8)
        assert view.shape == (3, 8, 8)
        assert (view[:, valid] == 9).all()
        assert valid.sum() == g.out_height * g.out_width >= 1
        assert strong_view(view, config, rng).shape == (3, 8, 8)


def test_a_crop_does_not_change_its_source() -> None:
    image = noise(20, 20)
    image.flags.writeable = False  # as a memory map is
    g = Geometry(0, 0, 20, 20, 20, 20, mirror=False)
    crop_image(image, g, 20).zero_()
    assert np.array_equal(image, noise(20, 20))


@pytest.mark.parametrize("seed", range(8))
def test_a_strong_view_moves_no_pixel(seed: int) -> None:
    _, mask = blocks(48, 48, side=12)
    colors = torch.tensor([[90, 140, 60], [130, 70, 150]], dtype=torch.uint8)
    image = colors[torch.from_numpy(mask).long()].permute(2, 0, 1)
    config = AugmentConfig(jitter=1.0, grayscale=0.0, blur=0.0)
    view = strong_view(image, config, np.random.default_rng(seed))
    assert not torch.equal(view, image)
    inside = [view[:, torch.from_numpy(mask == k)] for k in (0, 1)]
    for pixels in inside:
        assert (pixels == pixels[:, :1]).all()  # one colour stays one colour, everywhere
    assert not torch.equal(inside[0][:, 0], inside[1][:, 0])


STILL = PLAIN | {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def jittered(*pixels: tuple[int, int, int], **strength: float) -> list[Tensor]:
    """Strong views of an image of a few pixels. [3, 1, n] int32 each."""
    image = torch.tensor(pixels, dtype=torch.uint8).T[:, None]
    config = AugmentConfig(**STILL | strength)
    return [strong_view(image, config, np.random.default_rng(seed)).int() for seed in range(300)]


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("brightness", [(0, 0, 0), (100, 100, 100)]),
        ("contrast", [(50, 50, 50), (150, 150, 150)]),
        ("saturation", [(150, 100, 50)]),
    ],
)
def test_a_factor_lies_in_one_plus_or_minus_its_own_strength(name: str, pixels: list[tuple[int, int, int]]) -> None:
    """The highest less the lowest value is 100, and the factor multiplies it."""
    spreads = [int(view.max() - view.min()) for view in jittered(*pixels, **{name: 0.4})]
    assert 60 <= min(spreads) <= 63
    assert 137 <= max(spreads) <= 140


def test_a_hue_turns_both_ways_and_no_further_than_its_strength() -> None:
    reds, greens, blues = torch.stack(jittered((255, 0, 0), hue=0.25)).flatten(1).T
    assert 127 <= reds.min() <= 135  # a quarter of a turn from red is half-way from yellow to green, or from magenta to blue
    assert greens.max() == blues.max() == 255


def test_one_change_says_nothing_about_another() -> None:
    views = torch.stack(jittered((50, 50, 50), (150, 150, 150), brightness=0.4, contrast=0.4))[:, 0, 0].double()
    mean, spread = views.mean(1), views[:, 1] - views[:, 0]  # contrast leaves the mean
    assert torch.corrcoef(torch.stack((mean, spread / mean)))[0, 1].abs() < 0.15


def test_without_photometry_the_strong_view_is_the_weak_one() -> None:
    image = torch.from_numpy(noise(9, 9)).permute(2, 0, 1)
    assert torch.equal(strong_view(image, AugmentConfig(**PLAIN), np.random.default_rng(0)), image)


def test_grey_has_three_equal_channels_and_blur_keeps_the_mean() -> None:
    image = torch.from_numpy(noise(64, 64)).permute(2, 0, 1)
    gray = strong_view(image, AugmentConfig(jitter=0.0, grayscale=1.0, blur=0.0), np.random.default_rng(0))
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])
    config = AugmentConfig(jitter=0.0, grayscale=0.0, blur=1.0, blur_sigma=(2.0, 2.0))
    blurred = strong_view(image, config, np.random.default_rng(1)).double()
    assert (blurred - F.gaussian_blur(image, [9, 9], [2.0, 2.0])).abs().max() <= 1  # rounding
    assert blurred.mean().item() == pytest.approx(image.double().mean().item(), abs=1.0)
    assert blurred.std() < image.double().std() / 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 3), (4, 50)])
def test_blur_fits_small_images(size: tuple[int, int]) -> None:
    image = torch.from_numpy(noise(*size)).permute(2, 0, 1)
    config = AugmentConfig(blur=1.0, blur_sigma=(5.0, 5.0))
    assert strong_view(image, config, np.random.default_rng(0)).shape == image.shape


def test_the_same_generator_gives_the_same_view() -> None:
    image, config = torch.from_numpy(noise(24, 24)).permute(2, 0, 1), AugmentConfig()
    views = [strong_view(image, config, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_no_probability_shifts_the_draws_after_it() -> None:
    image = torch.from_numpy(noise(24, 24)).permute(2, 0, 1)
    after = []
    for probability in (0.0, 1.0):
        rng = np.random.default_rng(0)
        config = AugmentConfig(jitter=probability, grayscale=probability, blur=probability, hflip=probability)
        g = draw_geometry((50, 50), config, rng)
        strong_view(image, config, rng)
        after.append((replace(g, mirror=False), rng.random()))
    assert after[0] == after[1]
