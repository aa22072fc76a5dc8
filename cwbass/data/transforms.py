"""Views of an image: one random geometry, then weak or strong photometry.

Every draw comes from a generator passed in, and pixels stay uint8. The crop is cut from the
source before it is resized: resizing a 2048 x 1024 image to keep 321 x 321 of it is the
visible cost of the published loaders.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from cwbass.config import AugmentConfig
from cwbass.data.base import Box
from cwbass.data.photometry import adjust_brightness, adjust_contrast, adjust_saturation, gaussian_blur, shift_hue, to_gray
from cwbass.types import PLACE

PAD_VALUE = 114  # mid grey: a black strip would be the strongest edge of the crop


@dataclass(frozen=True, slots=True)
class Geometry:
    """A source rectangle, the size it is resized to, and whether it is mirrored."""

    top: int
    left: int
    height: int  # of the source rectangle, pixels
    width: int
    out_height: int  # after the resize, at most the crop size
    out_width: int
    mirror: bool

    @property
    def box(self) -> Box:
        """The source rectangle: left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def place(self, index: int) -> Tensor:
        """As a batch has it, of an image with this number. [8] int64."""
        return torch.tensor([index, *(int(getattr(self, name)) for name in PLACE[1:])])


def draw_geometry(size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Geometry:
    """Draw a random resize, crop and flip.

    Args:
        size: Height and width of the source, pixels.
        config: ``crop_size``, ``scale``, ``hflip``.
        rng: Source of all draws.

    Returns:
        The rectangle that becomes the crop; smaller than the crop where the scaled image is.
    """
    scale = rng.uniform(*config.scale)
    top_draw, left_draw, flip_draw = rng.random(3)
    height, out_height = _fit(size[0], config.crop_size, scale)
    width, out_width = _fit(size[1], config.crop_size, scale)
    top = int(top_draw * (size[0] - height + 1))
    left = int(left_draw * (size[1] - width + 1))
    return Geometry(top, left, height, width, out_height, out_width, bool(flip_draw < config.hflip))


def _fit(side: int, crop: int, scale: float) -> tuple[int, int]:
    """Source and output length along one axis."""
    wanted = max(1, round(crop / scale))
    if wanted <= side:
        return wanted, crop  # not wanted * scale: rounded twice, it falls a pixel short and pads what needs no padding
    return side, max(1, round(side * scale))


def fit_image(cut: NDArray[np.uint8], geometry: Geometry, crop_size: int) -> Tensor:
    """Apply a geometry to what was cut out of an image, its source rectangle. [h, w, 3] uint8 -> [3, S, S] uint8, padded with grey."""
    view = torch.tensor(cut).permute(2, 0, 1)
    if view.shape[-2:] != (geometry.out_height, geometry.out_width):
        view = F.resize(view, [geometry.out_height, geometry.out_width], antialias=True)
    return _mirror_and_pad(view, geometry, crop_size, PAD_VALUE)


def crop_mask(mask: NDArray[np.uint8], geometry: Geometry, crop_size: int, ignore_index: int) -> Tensor:
    """Apply a geometry to a mask, nearest neighbour. [H, W] uint8 -> [S, S] uint8, padded with ``ignore_index``."""
    left, top, right, bottom = geometry.box
    cut = mask[top:bottom, left:right]
    if cut.shape != (geometry.out_height, geometry.out_width):
        rows, columns = (_nearest(*sides) for sides in zip(cut.shape, (geometry.out_height, geometry.out_width), strict=True))
        cut = cut[rows][:, columns]
    return _mirror_and_pad(torch.tensor(cut), geometry, crop_size, ignore_index)


@lru_cache(maxsize=1024)
def _nearest(length: int, wanted: int) -> NDArray[np.int64]:
    """Which of ``length`` pixels in a row each of ``wanted`` shows. [wanted].

    Asked of torch, as it rounds; to resize these few and to look the pixels up takes half the time of resizing a mask.
    """
    digits = np.arange(length, dtype=">u4").view(np.uint8).reshape(length, 4)  # of a number each, as bytes
    planes = torch.from_numpy(digits.T.copy())[:, None]  # [4, 1, length]
    chosen = F.resize(planes, [1, wanted], F.InterpolationMode.NEAREST_EXACT)[:, 0].numpy()
    return np.ascontiguousarray(chosen.T).view(">u4")[:, 0].astype(np.int64)


def crop_valid(geometry: Geometry, crop_size: int) -> Tensor:
    """Where a crop shows the image and not padding. [S, S] bool."""
    valid = torch.zeros(crop_size, crop_size, dtype=torch.bool)
    valid[: geometry.out_height, : geometry.out_width] = True
    return valid


def _mirror_and_pad(view: Tensor, g: Geometry, crop_size: int, value: int) -> Tensor:
    if g.mirror:
        view = view.flip(-1)
    right, bottom = crop_size - g.out_width, crop_size - g.out_height
    if right or bottom:
        # Not torch's pad, which takes ten times as long where the channels lie side by side.
        padded = torch.full((crop_size, crop_size, *view.shape[:-2]), value, dtype=view.dtype).movedim((0, 1), (-2, -1))
        padded[..., : g.out_height, : g.out_width] = view
        view = padded
    return view


def strong_view(image: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Colour jitter, grey and blur; geometry is left alone. [3, H, W] uint8 -> [3, H, W] uint8.

    The same number of draws is made whatever they decide, so that one probability changed
    does not shift every draw after it.
    """
    jitter, gray, blur, sigma = rng.random(4)
    factors = rng.uniform(-1, 1, size=4)
    order = rng.permutation(4)
    if jitter < config.jitter:
        image = torch.from_numpy(np.ascontiguousarray(image.numpy()))  # plane by plane, all that follows takes less time
        for index in order:
            image = _jitter(image, int(index), float(factors[index]), config)
    if gray < config.grayscale:
        image = to_gray(image)
    if blur < config.blur:
        low, high = config.blur_sigma
        width = low + sigma * (high - low)
        kernel = 2 * max(1, round(2 * width)) + 1
        # A kernel must not reach past the reflected border.
        kernel = min(kernel, 2 * ((min(image.shape[-2:]) - 1) // 2) + 1)
        image = gaussian_blur(image, kernel, width)
    return image


def _jitter(image: Tensor, which: int, draw: float, config: AugmentConfig) -> Tensor:
    if which == 0:
        changed = adjust_brightness(image, 1 + draw * config.brightness)
    elif which == 1:
        changed = adjust_contrast(image, 1 + draw * config.contrast)
    elif which == 2:
        changed = adjust_saturation(image, 1 + draw * config.saturation)
    else:
        changed = shift_hue(image, draw * config.hue)
    return changed
