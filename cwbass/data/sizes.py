"""How large the images of a dataset are, from the headers of some of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from cwbass.data.base import Sample, upright_size
from cwbass.data.parallel import map_threads

LOOKED_AT = 200  # images, evenly spaced


def median_size(samples: Sequence[Sample], root: Path) -> tuple[int, int]:
    """Median height and width of images, in pixels, each by itself.

    Args:
        samples: One or more; ``LOOKED_AT`` of them are looked at, evenly spaced.
        root: Folder that their paths are relative to.

    Raises:
        DataError: One is missing or broken.
    """
    every = -(-len(samples) // LOOKED_AT)
    sizes = list(map_threads(lambda sample: upright_size(root / sample.image), samples[::every]))
    height, width = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    return height, width
