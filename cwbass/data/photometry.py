"""The changes of the strong view, with fewer and cheaper passes than torchvision's. [3, H, W] uint8 -> same.

What decides which library makes a pass, as measured: to turn floats into bytes, to compare bytes and to move planes takes
torch four to eight times as long as numpy; the highest of an array and a number takes numpy four times as long.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

TINY = 1e-3  # below the least step of a channel, 1/255


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Multiply every channel, as torchvision's does it. ``factor`` >= 0."""
    return _blend(image, None, factor)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Move every channel from or to the mean brightness, as torchvision's does it. ``factor`` >= 0; 1 changes nothing."""
    return _blend(image, _brightness(image).floor_().mean(dim=(0, 1), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Move every channel from or to the pixel's brightness, as torchvision's does it. ``factor`` >= 0; 1 changes nothing."""
    return _blend(image, _brightness(image).floor_(), factor)


def to_gray(image: Tensor) -> Tensor:
    """The brightness in all three channels, as torchvision's ``rgb_to_grayscale`` has it."""
    return torch.from_numpy(_brightness(image).numpy().astype(np.uint8)).expand(image.shape)


def _brightness(image: Tensor) -> Tensor:
    """[3, H, W] uint8 -> [H, W] float."""
    red, green, blue = (plane.float() for plane in image)
    brightness: Tensor = red.mul_(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return brightness


def _blend(image: Tensor, other: Tensor | None, factor: float) -> Tensor:
    """``factor * image + (1 - factor) * other``, rounded down."""
    blended = image.float().mul_(factor)
    if other is not None:
        blended.add_(other, alpha=1 - factor)
    return torch.from_numpy(blended.clamp_(0, 255).numpy().astype(np.uint8))


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """torchvision's ``adjust_hue``, bit for bit, in a fraction of its time.

    A shift of the hue leaves the largest and the smallest of the three values of a pixel, and only
    changes which channels have them. So one plane is computed in floats, not three, and nothing is
    gathered by index.

    Args:
        image: RGB. [3, H, W] uint8.
        turns: In [-0.5, 0.5].
    """
    pixels = image.contiguous().numpy()
    red, green, blue = pixels
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    is_red, is_green = _mask(high == red), _mask(high == green)
    first = _pick(is_red, blue, _pick(is_green, red, green))
    second = _pick(is_red, green, _pick(is_green, blue, red))
    corner = (4 - (is_green & 2)) & ~is_red  # sixths of a turn: red at 0, green at 2, blue at 4

    value, least, to_first, to_second = (_share(plane) for plane in (high, low, first, second))
    chroma = value - least
    saturation = chroma / _clamp(value.copy(), low=TINY)  # of black, 0
    _clamp(chroma, low=TINY)  # of greys, whose hue is then 0
    hue = (value - to_first) / chroma
    hue += corner
    hue -= (value - to_second) / chroma
    hue *= np.float32(1 / 6)
    hue += 1
    hue -= np.floor(hue)
    hue += np.float32(turns)
    hue -= np.floor(hue)
    hue *= 6
    sector = np.floor(hue)
    hue -= sector
    hue *= saturation
    falling, rising = (_byte(share * value) for share in (1 - hue, hue + (1 - saturation)))
    sector = sector.astype(np.uint8)
    sector *= sector != 6
    middle = _pick(_mask((sector & 1) == 1), falling, rising)

    at = [_mask(sector == number) for number in range(6)]
    shifted = np.empty_like(pixels)
    swap = low ^ high
    for channel, (one, two) in zip(shifted, ((1, 2), (3, 4), (5, 0)), strict=True):
        # Of the six sectors, a channel is the middle one in two that are opposite, and the lowest in the two between.
        kept = high ^ (swap & (at[two] | at[(two + 1) % 6]))
        channel[...] = _pick(at[one] | at[(one + 3) % 6], middle, kept)
    return torch.from_numpy(shifted)


def _mask(where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """255 where it is True, and 0."""
    return np.negative(where.view(np.uint8))


def _pick(mask: NDArray[np.uint8], one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``one`` where the mask is set: ``np.where`` in a seventh of its time."""
    picked: NDArray[np.uint8] = other ^ ((one ^ other) & mask)
    return picked


def _share(plane: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[0, 255] to [0, 1]."""
    share = plane.astype(np.float32)
    share *= np.float32(1 / 255)
    return share


def _byte(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to [0, 255], as torchvision rounds it."""
    _clamp(share, low=0, high=1)
    share *= np.float32(255.999)
    return share.astype(np.uint8)


def _clamp(values: NDArray[np.float32], low: float, high: float | None = None) -> NDArray[np.float32]:
    torch.from_numpy(values).clamp_(low, high)
    return values


def gaussian_blur(image: Tensor, kernel: int, sigma: float) -> Tensor:
    """torchvision's ``gaussian_blur``, a row of weights along each axis in place of their product: the same but for rounding.

    Args:
        image: [3, H, W] uint8.
        kernel: Weights along an axis, odd, at most twice the smaller side less one.
        sigma: Pixels.
    """
    reach = kernel // 2
    weights = torch.linspace(-reach, reach, kernel).div(math.sqrt(2) * sigma).square().neg().softmax(0).tolist()
    blurred = nnf.pad(image.float()[None], (reach,) * 4, mode="reflect")[0]
    for dim in (1, 2):
        length = image.shape[dim]
        # Sums of shifted images: a convolution of three channels is no case that its library is fast at.
        total = blurred.narrow(dim, reach, length) * weights[reach]
        for offset in range(1, reach + 1):
            for side in (reach - offset, reach + offset):
                total.add_(blurred.narrow(dim, side, length), alpha=weights[side])
        blurred = total
    return torch.from_numpy(np.rint(blurred.numpy()).astype(np.uint8))
