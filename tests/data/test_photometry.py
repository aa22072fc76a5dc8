"""The fast changes of colour and sharpness, against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from cwbass.data.photometry import gaussian_blur, shift_hue


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """As crops are: channels last in memory."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def colors(levels: int) -> Tensor:
    """Every colour of ``levels`` values a channel, among them the greys, black and white. [3, levels**2, levels]."""
    values = torch.linspace(0, 255, levels).round().to(torch.uint8)
    return torch.cartesian_prod(values, values, values).T.reshape(3, levels**2, levels)


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
