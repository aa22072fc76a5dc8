"""Label maps and other pictures as files that any viewer shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cwbass.files import partial_file


def with_palette(label: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> Image.Image:
    """A label map as an image that holds the indices, and shows them in the palette's colours. [H, W] uint8."""
    image = Image.fromarray(label)
    image.putpalette([value for rgb in palette for value in rgb])
    return image


def save_whole(image: Image.Image, path: Path, kind: str = "PNG", **options: Any) -> None:
    """Whole or not at all: whoever reads a folder while it is filled, or after a killed run, finds no half of a file."""
    with partial_file(path) as partial:
        image.save(partial, kind, **options)
        os.replace(partial, path)
