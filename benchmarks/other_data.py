"""Generated datasets that have nothing in common with the default one, to see whether a recipe was made for that one.

    python benchmarks/other_data.py [landcover] [cells] [defects] [--out data]

landcover: five textures that fill the image, and a thin road; no background. cells: blobs that texture and outline tell
apart, one kind rare, and debris that is none. defects: two classes, of which one has a pixel in seventy; seams and stains look alike
and are none. Each has 20 labelled, 300 unlabelled and 80 test images of 128 x 128 pixels, in the layout ``folder``; ``cwbass init``
makes parameters for it. Image i of a role depends on the dataset, the role and i alone.

They were written when the default recipe was done, and no setting of it was chosen on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[Any]
Rng = np.random.Generator
SIDE = 128  # pixels
IMAGES = {"train": 20, "unlabeled": 300, "test": 80}
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(float)  # [H, W] each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DATASETS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("data"))
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(DATASETS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose of {', '.join(DATASETS)}")
    for name in asked.names or DATASETS:
        write(name, asked.out / name)
        print(asked.out / name)


def write(name: str, root: Path) -> None:
    """Write a dataset into a folder."""
    classes, draw = DATASETS[name]
    for folder in ("images", "masks", "unlabeled"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{each}\n" for each in classes), encoding="utf-8")
    for code, (role, count) in enumerate(IMAGES.items()):
        ids = [f"{role}{index:04d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            image, mask = draw(np.random.default_rng([list(DATASETS).index(name), code, index]))
            pixels = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))
            pixels.save(root / ("unlabeled" if role == "unlabeled" else "images") / f"{image_id}.jpg", quality=90)
            if role != "unlabeled":
                Image.fromarray(mask).save(root / "masks" / f"{image_id}.png")
        if role != "unlabeled":
            (root / f"{role}.txt").write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")


def landcover(rng: Rng) -> tuple[Array, Array]:
    """Regions about random sites, each of one class's texture in a shade of its own; roads run over them."""
    rows, columns = ROWS + 14 * (_noise(rng, 24) - 0.5), COLUMNS + 14 * (_noise(rng, 24) - 0.5)
    sites = rng.random((rng.integers(8, 18), 2)) * SIDE
    region = np.argmin((rows[..., None] - sites[:, 0]) ** 2 + (columns[..., None] - sites[:, 1]) ** 2, axis=-1)  # [H, W]
    colours = np.array([(0.15, 0.25, 0.4), (0.15, 0.3, 0.15), (0.45, 0.5, 0.25), (0.55, 0.45, 0.35), (0.5, 0.5, 0.5)])
    image, mask = np.zeros((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE), dtype=np.uint8)
    for site in range(len(sites)):
        label = rng.choice(5, p=[0.2, 0.3, 0.25, 0.15, 0.1])
        along, across = _turned(rows, columns, rng.uniform(0, np.pi))
        texture = TEXTURES[label](rng, along, across)
        here = region == site
        image[here] = (colours[label] + rng.normal(0, 0.07, 3) + texture[..., None])[here]
        mask[here] = label
    for _ in range(rng.integers(0, 3)):
        road = _from_curve(rng, length=160, bend=0.05) < rng.uniform(1.5, 3)
        image[road] = rng.uniform(0.35, 0.7) + rng.normal(0, 0.03, 3)
        mask[road] = 5
    return image * rng.uniform(0.7, 1.3) + rng.normal(0, 0.05, 3) + rng.normal(0, 0.03, image.shape), mask


TEXTURES: tuple[Callable[[Rng, Array, Array], Array], ...] = (
    lambda rng, along, across: 0.05 * _noise(rng, 40),
    lambda rng, along, across: 0.3 * (_noise(rng, 4) - 0.5),
    lambda rng, along, across: 0.12 * np.sin(along * 2 * np.pi / rng.uniform(4, 9)),
    lambda rng, along, across: 0.15 * (_octaves(rng, 3, 20) - 0.5),
    lambda rng, along, across: (
        0.35 * (np.sin(along * 2 * np.pi / 9) > 0.2) * (np.sin(across * 2 * np.pi / 11) > 0.2) * _noise(rng, 10)
    ),
)


def cells(rng: Rng) -> tuple[Array, Array]:
    """Blobs on a stained slide: round, long, large with a dark core and rare; and debris, which is ground."""
    stain = np.array([0.85, 0.7, 0.8]) + rng.normal(0, 0.06, 3)
    image = stain + 0.15 * (_octaves(rng, 6, 30)[..., None] - 0.5)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    radii, ratios = [(2, 5), (5, 9), (5, 9), (7, 11)], [(1, 1), (0.8, 1), (0.45, 0.7), (0.7, 1)]
    for _ in range(rng.integers(12, 35)):
        label = rng.choice(4, p=[0.3, 0.35, 0.27, 0.08])
        radius, ratio = rng.uniform(*radii[label]), rng.uniform(*ratios[label])
        place = rng.random(2) * SIDE
        along, across = _turned(ROWS - place[0], COLUMNS - place[1], rng.uniform(0, np.pi))
        distance = np.hypot(along, across / ratio) / radius + 0.15 * (_noise(rng, 8) - 0.5)
        opacity = (np.clip((1 - distance) * radius / 1.5, 0, 1) * rng.uniform(0.5, 0.95))[..., None]
        grain = 0.0 if label == 1 else 0.25 * (_noise(rng, 3 if label == 3 else 8) - 0.5)[..., None]
        image = image + opacity * (stain - (0.35, 0.4, 0.2) + rng.normal(0, 0.06, 3) + grain - image)
        if label == 3:
            image -= 0.25 * np.exp(-((distance / 0.3) ** 2))[..., None]
        if label > 0:
            mask[distance < 1] = label
    return image * rng.uniform(0.8, 1.15) + rng.normal(0, 0.02, image.shape), mask


def defects(rng: Rng) -> tuple[Array, Array]:
    """Scratches and pits on a grey surface, which may be brushed; stains and straight seams are ground."""
    image = rng.uniform(0.35, 0.65) + 0.25 * (_octaves(rng, 4, 16, 64) - 0.5) + 0.2 * (_noise(rng, SIDE) - 0.5)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    if rng.random() < 0.6:
        streaks = Image.fromarray(rng.normal(size=(SIDE, SIDE // 8)).astype(np.float32))
        image += 0.08 * np.asarray(streaks.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    for _ in range(rng.integers(0, 3)):
        image -= rng.uniform(0.08, 0.2) * np.exp(-((_from_point(rng) / rng.uniform(5, 20)) ** 2))
    for _ in range(rng.integers(0, 3)):
        seam = abs(_turned(ROWS - SIDE / 2, COLUMNS - SIDE / 2, rng.uniform(0, np.pi))[0] - rng.uniform(-0.3, 0.3) * SIDE)
        image += rng.choice([-1, 1]) * rng.uniform(0.08, 0.2) * np.exp(-((seam / 1.5) ** 2))
    for _ in range(rng.integers(0, 3)):
        distance = _from_curve(rng, length=rng.integers(20, 90), bend=0.15) / rng.uniform(0.8, 2)
        image += rng.choice([-1, 1]) * rng.uniform(0.1, 0.3) * np.exp(-(distance**2))
        mask[distance < 1.1] = 1
    for _ in range(rng.integers(0, 3)):
        distance = _from_point(rng) / rng.uniform(2, 6)
        image += rng.uniform(0.15, 0.35) * (np.exp(-(((distance - 1) / 0.3) ** 2)) - np.exp(-((distance / 0.8) ** 2)))
        mask[distance < 1.2] = 1
    image += rng.normal(0, rng.uniform(0.01, 0.05), image.shape)
    return np.repeat(image[..., None], 3, axis=2), mask


DATASETS: dict[str, tuple[tuple[str, ...], Callable[[Rng], tuple[Array, Array]]]] = {
    "landcover": (("water", "forest", "field", "soil", "town", "road"), landcover),
    "cells": (("ground", "round", "long", "large"), cells),
    "defects": (("ground", "defect"), defects),
}


def _noise(rng: Rng, period: int) -> Array:
    """Smooth noise from 0 to 1, with waves of about ``period`` pixels. [H, W]."""
    lattice = Image.fromarray(rng.random((SIDE // period + 2,) * 2).astype(np.float32))
    return _stretched(np.asarray(lattice.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))


def _octaves(rng: Rng, *periods: int) -> Array:
    return _stretched(sum(_noise(rng, period) * period**0.5 for period in periods))


def _stretched(values: Array) -> Array:
    return (values - values.min()) / (values.max() - values.min())


def _turned(rows: Array, columns: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates along a direction and across it."""
    return columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)


def _from_point(rng: Rng) -> Array:
    """Distance of each pixel from a random place, pixels. [H, W]."""
    place = rng.random(2) * SIDE
    return np.hypot(ROWS - place[0], COLUMNS - place[1])


def _from_curve(rng: Rng, *, length: int, bend: float) -> Array:
    """Distance of each pixel from a random curve, pixels; its direction changes by about ``bend`` radians a pixel. [H, W]."""
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, length))
    points = rng.random(2) * SIDE + np.cumsum(np.stack((np.cos(angles), np.sin(angles)), axis=1), axis=0)  # [N, 2]
    nearest = np.full((SIDE, SIDE), np.inf)
    for row, column in points:
        np.minimum(nearest, np.hypot(ROWS - row, COLUMNS - column), out=nearest)
    return nearest


if __name__ == "__main__":
    main()
