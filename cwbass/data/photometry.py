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
    return _blend(image.float(), None, factor)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Move every channel from or to the mean brightness, as torchvision's does it. ``factor`` >= 0; 1 changes nothing."""
    values = image.float()
    return _blend(values, _brightness(values).floor_().mean(dim=(0, 1), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Move every channel from or to the pixel's brightness, as torchvision's does it. ``factor`` >= 0; 1 changes nothing."""
    values = image.float()
    return _blend(values, _brightness(values).floor_(), factor)


def to_gray(image: Tensor) -> Tensor:
    """The brightness in all three channels, as torchvision's ``rgb_to_grayscale`` has it."""
    return torch.from_numpy(_brightness(image.float()).numpy().astype(np.uint8)).expand(image.shape)


def _brightness(values: Tensor) -> Tensor:
    """[3, H, W] float -> [H, W]."""
    red, green, blue = values
    brightness: Tensor = (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return brightness


def _blend(values: Tensor, other: Tensor | None, factor: float) -> Tensor:
    """``factor * values + (1 - factor) * other``, rounded down; the values are overwritten. [3, H, W] float -> uint8."""
    blended = values.mul_(factor)
    if other is not None:
        blended.add_(other, alpha=1 - factor)
    if factor > 1:  # else it lies between two that are in range
        blended.clamp_(0, 255)
    return torch.from_numpy(blended.numpy().astype(np.uint8))


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
    second = red ^ green ^ blue ^ high ^ first  # of three values, the one that is left
    corner = (4 - (is_green & 2)) & ~is_red  # sixths of a turn: red at 0, green at 2, blue at 4

    value, chroma, to_first, to_second = (_share(plane) for plane in (high, low, first, second))
    np.subtract(value, chroma, out=chroma)
    saturation = chroma / _clamp(value.copy(), low=TINY)  # of black, 0
    _clamp(chroma, low=TINY)  # of greys, whose hue is then 0
    for distance in (to_first, to_second):  # from the highest, negative
        distance -= value
        distance /= chroma
    hue = corner.astype(np.float32)
    hue -= to_first
    hue += to_second
    hue *= np.float32(1 / 6)
    hue += 1
    torch.from_numpy(hue).frac_()  # above 0 it is less its floor, in one pass
    hue += np.float32(turns)
    hue -= np.floor(hue)
    hue *= 6
    sector = np.floor(hue)
    hue -= sector
    hue *= saturation
    falling = 1 - hue
    rising = np.subtract(1, saturation, out=saturation)
    rising += hue
    sector = sector.astype(np.uint8)
    sector *= sector != 6
    middle = _pick(np.negative(sector & 1), _byte(falling, value), _byte(rising, value))

    # Of the six sectors, a channel has the middle value in two that are opposite, and the lowest in the two between.
    shifted = np.empty_like(pixels)
    swap = high ^ low
    shifted[0] = _pick(_mask((sector == 1) | (sector == 4)), middle, high ^ (swap & _mask(sector >> 1 == 1)))
    shifted[1] = _pick(_mask((sector == 0) | (sector == 3)), middle, high ^ (swap & _mask(sector >= 4)))
    shifted[2] = swap ^ middle ^ shifted[0] ^ shifted[1]  # what is left
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


def _byte(share: NDArray[np.float32], value: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of two in [0, 1], whose product overwrites the first, to [0, 255], as torchvision rounds it."""
    share *= value
    share *= np.float32(255.999)
    return share.astype(np.uint8)


def _clamp(values: NDArray[np.float32], low: float) -> NDArray[np.float32]:
    torch.from_numpy(values).clamp_(low)
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
