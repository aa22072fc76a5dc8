"""CutMix between the images of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cwbass.world import ALONE, World


def draw_boxes(
    batch: int, height: int, width: int, *, probability: float, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A random rectangle for each image.

    Args:
        batch: B.
        height: H, pixels.
        width: W, pixels.
        probability: That an image gets a rectangle at all.
        area: Range of its share of the image.
        generator: CPU generator.

    Returns:
        True inside the rectangle. [B, H, W] bool, on the CPU.

    Source:
        Area 0.02 to 0.4 and aspect ratio 0.3 to 1/0.3 of UniMatch (arXiv:2208.09910).
    """
    draws = torch.rand(batch, 5, generator=generator).tolist()
    boxes = torch.zeros(batch, height, width, dtype=torch.bool)
    for box, (use, size, shape, y, x) in zip(boxes, draws, strict=True):
        if use >= probability:
            continue
        pixels = (area[0] + size * (area[1] - area[0])) * height * width
        ratio = math.exp((2 * shape - 1) * math.log(1 / 0.3))
        h = min(height, max(1, round(math.sqrt(pixels * ratio))))
        w = min(width, max(1, round(math.sqrt(pixels / ratio))))
        top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
        box[top : top + h, left : left + w] = True
    return boxes


def partner(tensor: Tensor, world: World = ALONE) -> Tensor:
    """The image each image is mixed with: the one before it in the whole batch, so never itself unless B is 1.

    Each process asks the others for one image, the last of theirs.
    """
    if world.size == 1:
        return tensor.roll(1, dims=0)
    lasts = world.gather(tensor[-1:])
    return torch.cat((lasts[world.rank - 1][None], tensor[:-1]))


def paste(target: Tensor, source: Tensor, where: Tensor) -> Tensor:
    """``source`` where the mask is set, else ``target``.

    Args:
        target: [B, H, W] or [B, C, H, W].
        source: Likewise.
        where: Boxes, [B, H, W] bool, or whole images, [B] bool.
    """
    if where.dim() == 1:
        where = where[:, None, None]
    return torch.where(where[:, None] if target.dim() == 4 else where, source, target)
