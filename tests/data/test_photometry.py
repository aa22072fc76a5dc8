"""The fast changes of colour and sharpness, against torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from cwbass.data.photometry import adjust_brightness, adjust_contrast, adjust_saturation, gaussian_blur, shift_hue, to_gray

Adjust = Callable[[Tensor, float], Tensor]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """As crops are: channels last in memory."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def colors(levels: int) -> Tensor:
    """Every colour of ``levels`` values a channel, among them the greys, black and white. [3, levels**2, levels]."""
    values = torch.linspace(0, 255, levels).round().to(torch.uint8)
    return torch.cartesian_prod(values, values, values).T.reshape(3, levels**2, levels)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.5, 0.9999, 1.0, 1.25, 1.5, 3.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adjust_brightness, F.adjust_brightness),
        (adjust_contrast, F.adjust_contrast),
        (adjust_saturation, F.adjust_saturation),
    ],
)
def test_colors_are_adjusted_as_torchvision_does_it(ours: Adjust, theirs: Adjust, factor: float) -> None:
    for image in (colors(32), noise(37, 53), noise(37, 53).contiguous(), noise(1, 1)):
        assert torch.equal(ours(image, factor), theirs(image, factor))


@given(st.floats(0, 2), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_any_factor_adjusts_as_torchvision_does_it(factor: float, seed: int) -> None:
    image = noise(61, 67, seed)
    assert torch.equal(adjust_brightness(image, factor), F.adjust_brightness(image, factor))
    assert torch.equal(adjust_contrast(image, factor), F.adjust_contrast(image, factor))
    assert torch.equal(adjust_saturation(image, factor), F.adjust_saturation(image, factor))


def test_grey_is_torchvisions() -> None:
    for image in (colors(32), noise(37, 53)):
        assert torch.equal(to_gray(image), F.rgb_to_grayscale(image, 3))


def test_a_factor_of_two_doubles_what_can_be_doubled() -> None:
    image = torch.tensor([100, 127, 200], dtype=torch.uint8)[:, None, None]
    assert adjust_brightness(image, 2.0).flatten().tolist() == [200, 254, 255]


@pytest.mark.parametrize("turns", [-0.5, -0.25, -1 / 6, -1e-9, 0.0, 0.1, 1 / 3, 0.5])
def test_a_hue_is_shifted_as_torchvision_does_it(turns: float) -> None:
    every = colors(32)
    assert torch.equal(shift_hue(every, turns), F.adjust_hue(every, turns))


@given(st.floats(-0.5, 0.5), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_any_hue_of_any_pixels_is_shifted_as_torchvision_does_it(turns: float, seed: int) -> None:
    image = noise(24, 40, seed)
    assert torch.equal(shift_hue(image, turns), F.adjust_hue(image, turns))


def test_a_third_of_a_turn_makes_red_green() -> None:
    red = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None]
    assert shift_hue(red, 1 / 3).flatten().tolist() == [30, 200, 30]


def test_a_grey_has_no_hue() -> None:
    gray = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(shift_hue(gray, 0.3), gray)


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.1), (3, 0.7), (5, 1.0), (9, 2.0), (1, 3.0)])
def test_a_blur_is_torchvisions_up_to_rounding(kernel: int, sigma: float) -> None:
    image = noise(60, 47)
    ours, theirs = gaussian_blur(image, kernel, sigma).int(), F.gaussian_blur(image, [kernel] * 2, [sigma] * 2).int()
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).double().mean() < 1e-3


def test_a_point_spreads_by_the_weights_of_a_gaussian() -> None:
    image = torch.zeros(3, 7, 7, dtype=torch.uint8)
    image[:, 3, 3] = 255
    side = np.exp(-1 / 2)  # one deviation away
    middle = 1 / (1 + 2 * side)
    row = gaussian_blur(image, 3, 1.0)[0, 3].tolist()
    assert row == [0, 0, round(255 * middle**2 * side), round(255 * middle**2), round(255 * middle**2 * side), 0, 0]
