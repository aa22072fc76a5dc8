"""Made-up photographs with masks: detail at every scale, so that they cost a decoder what photographs cost it.

A JPEG of 500 x 375 pixels has about 90 kB, and its mask 6 kB, as those of PASCAL VOC have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cwbass.data.base import Sample

CELLS = {128: 90, 32: 60, 8: 30, 2: 18}  # pixels a cell of noise -> its amplitude, grey levels
VOC = (375, 500)  # height, width
CITY = (1024, 2048)


def write_photos(root: Path, count: int, size: tuple[int, int], classes: int, *, kind: str = "jpg") -> tuple[Sample, ...]:
    """``images/NNN.kind`` and ``masks/NNN.png`` below ``root``; every mask is grey or palette, with 255 for ignored pixels.

    Args:
        root: Folder of the dataset, made where it is missing.
        count: Images.
        size: Height and width.
        classes: Values of the masks beside 255.
        kind: Suffix of the images: jpg or png.
    """
    rng = np.random.default_rng(0)
    samples = []
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"class{index}\n" for index in range(classes)))
    for index in range(count):
        sample = Sample(f"{index:06}", f"images/{index:06}.{kind}", f"masks/{index:06}.png")
        Image.fromarray(photo(size, rng)).save(root / sample.image, quality=90)
        image = Image.fromarray(regions(size, classes, rng))
        image.putpalette(bytes(range(256)) * 3)
        image.save(root / (sample.mask or ""))
        samples.append(sample)
    return tuple(samples)


def photo(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of four scales. [H, W, 3] uint8."""
    total = np.full((*size, 3), 128.0, dtype=np.float32)
    for cell, amplitude in CELLS.items():
        total += _noise(size, cell, 3, rng) * np.float32(amplitude)
    return total.clip(0, 255).astype(np.uint8)


def regions(size: tuple[int, int], classes: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth regions of a few classes, and 255 between them. [H, W] uint8."""
    field = (_noise(size, 96, 1, rng)[..., 0] + 1) * 3  # in [0, 6]
    chosen = rng.integers(0, classes, 7)[field.astype(np.int64)]
    return np.where(field % 1 < 0.04, 255, chosen).astype(np.uint8)


def _noise(size: tuple[int, int], cell: int, channels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise in [-1, 1] that changes over ``cell`` pixels. [H, W, channels]."""
    height, width = size
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, channels), dtype=np.uint8)
    planes = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(plane, dtype=np.float32) / 127.5 - 1 for plane in planes], axis=-1)
