"""Mixing the images of a batch: boxes (CutMix) and whole objects (ClassMix)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cwbass.pixels import look_up
from cwbass.world import ALONE, World

Box = tuple[slice, slice]  # rows and columns


def draw_boxes(
    batch: int, height: int, width: int, *, probability: float, area: tuple[float, float], generator: torch.Generator
) -> list[Box | None]:
    """A random rectangle for each image.

    Args:
        batch: B.
        height: H, pixels.
        width: W, pixels.
        probability: That an image gets a rectangle at all.
        area: Range of its share of the image.
        generator: CPU generator.

    Returns:
        [B]; None for an image that gets none.

    Source:
        Area 0.02 to 0.4 and aspect ratio 0.3 to 1/0.3 of UniMatch (arXiv:2208.09910).
    """
    boxes: list[Box | None] = []
    for use, size, shape, y, x in torch.rand(batch, 5, generator=generator).tolist():
        pixels = (area[0] + size * (area[1] - area[0])) * height * width
        ratio = math.exp((2 * shape - 1) * math.log(1 / 0.3))
        h = min(height, max(1, round(math.sqrt(pixels * ratio))))
        w = min(width, max(1, round(math.sqrt(pixels / ratio))))
        top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
        boxes.append((slice(top, top + h), slice(left, left + w)) if use < probability else None)
    return boxes


def mix_(
    maps: Sequence[Tensor], boxes: Sequence[Box | None], others: Mapping[int, Sequence[Tensor]], world: World = ALONE
) -> None:
    """Make every image its partner inside its box, and all that is said of it with it.

    The partner is the image before it in the whole batch, so never itself unless that is one image. Each process asks
    the others for one image, the last of theirs.

    Args:
        maps: What there is of the same images, [B, ..., H, W] each; changed in place.
        boxes: Of each image; None leaves it as it is.
        others: What images are mixed with that are not mixed with their partner: a piece of the box's size for each map.
        world: Processes that hold the rest of the batch.
    """
    lasts = [rows[-1] if world.size == 1 else world.gather(rows[-1:])[world.rank - 1] for rows in maps]

    def pieces(row: int, box: Box) -> Sequence[Tensor]:
        if row in others:
            return others[row]
        return [(rows[row - 1] if row else last)[..., *box] for rows, last in zip(maps, lasts, strict=True)]

    # From the last to the first, so that partners are still themselves; the first one's is the last, and is kept before.
    first = [] if boxes[0] is None else [piece.clone() for piece in pieces(0, boxes[0])]
    for row, box in reversed(list(enumerate(boxes))):
        if box is not None:
            for rows, piece in zip(maps, pieces(row, box) if row else first, strict=True):
                rows[row][..., *box] = piece


def draw_classes(batch: int, chance: Tensor, *, probability: float, generator: torch.Generator) -> Tensor:
    """The classes whose pixels go from a labelled image into each image.

    Args:
        batch: B.
        chance: Of each class, in [0, 1]. [K] float, on the CPU.
        probability: That an image gets any at all.
        generator: CPU generator.

    Returns:
        [B, K] bool, on the CPU.

    Source:
        ClassMix (arXiv:2007.07936) takes half of the classes, so a chance of 1/2, and of a predicted mask.
    """
    draws = torch.rand(batch, 1 + len(chance), generator=generator)
    return (draws[:, :1] < probability) & (draws[:, 1:] < chance)


def pixels_of(classes: Tensor, label: Tensor, known: Tensor) -> Tensor:
    """Where a label is any of some classes, and known. [K] bool, [H, W] int64 (any class where unknown), [H, W] bool -> [H, W] bool."""
    return look_up(classes, label) & known


def partner(rows: Tensor, world: World = ALONE) -> Tensor:
    """What :func:`mix_` mixes each image with, whole. [B, ...] -> [B, ...].

    Args:
        rows: Something of each image of this process.
        world: Processes that hold the rest of the batch.
    """
    if world.size == 1:
        return rows.roll(1, dims=0)
    lasts = world.gather(rows[-1:])
    return torch.cat((lasts[world.rank - 1][None], rows[:-1]))
