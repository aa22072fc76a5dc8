"""Pseudo-labels as files, and the stream that serves them beside the views of their images.

Below a folder: ``label/<id>.png`` (class of each pixel, with the dataset's palette) and
``confidence/<id>.png`` (255 * confidence). Both have the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cwbass.config import AugmentConfig
from cwbass.data.base import Box, DatasetSpec, read_raw_mask
from cwbass.data.cache import ImageSource
from cwbass.data.label_maps import save_whole, with_palette
from cwbass.data.streams import UnlabeledStream
from cwbass.data.transforms import Geometry, crop_mask
from cwbass.errors import DataError

LABEL, CONFIDENCE = "label", "confidence"
_CHANGED = "The image was changed during the run; run `cwbass train` again."


def write_pseudo_label(
    folder: Path, sample_id: str, label: NDArray[np.uint8], confidence: NDArray[np.uint8], spec: DatasetSpec
) -> None:
    """Write both maps of one image, each whole or not at all.

    Args:
        folder: Where pseudo-labels lie.
        sample_id: Id of the image.
        label: Class of each pixel. [H, W] uint8.
        confidence: 255 * confidence. [H, W] uint8.
        spec: Its palette makes the labels visible in any viewer.
    """
    save_whole(with_palette(label, spec.palette), folder / LABEL / f"{sample_id}.png")
    save_whole(Image.fromarray(confidence), folder / CONFIDENCE / f"{sample_id}.png")


class PseudoLabels:
    """Some of a source's images, with the labels that were made for them.

    Args:
        source: Images.
        chosen: Which of them, by index.
        ids: Id of each chosen image.
        folder: Where :func:`write_pseudo_label` wrote.
    """

    def __init__(self, source: ImageSource, chosen: Sequence[int], ids: Sequence[str], folder: Path) -> None:
        self.source, self.chosen, self.ids, self.folder = source, tuple(chosen), tuple(ids), folder

    def __len__(self) -> int:
        return len(self.chosen)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.source.size(self.chosen[index])

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        """[H, W, 3] uint8, of the part in ``box`` where it is given; all is read, as the size may not be the file's any more."""
        size = self.size(index)
        image = self.source.image(self.chosen[index])
        if image.shape[:2] != size:
            raise DataError(
                f"the image of {self.ids[index]} has shape {list(image.shape[:2])} and had {list(size)} (height, width). {_CHANGED}"
            )
        left, top, right, bottom = box or (0, 0, *size[::-1])
        return image[top:bottom, left:right]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The label. [H, W] uint8, class index."""
        return self._read(LABEL, index)

    def confidence(self, index: int) -> NDArray[np.uint8]:
        """[H, W] uint8, 255 * confidence."""
        return self._read(CONFIDENCE, index)

    def _read(self, kind: str, index: int) -> NDArray[np.uint8]:
        path = self.folder / kind / f"{self.ids[index]}.png"
        array, size = read_raw_mask(path), self.size(index)
        if array.shape != size:
            raise DataError(f"{path} has shape {list(array.shape)} and its image {list(size)} (height, width). {_CHANGED}")
        return array


class OfflineStream(UnlabeledStream):
    """Views of some unlabelled images, as of :class:`UnlabeledStream`, with the label and confidence that were made before.

    Padding has label ``ignore_index`` and confidence 0. ``tags`` are of the chosen images, ``place`` numbers all.
    """

    def __init__(self, labels: PseudoLabels, augment: AugmentConfig, *, ignore_index: int, **views: Any) -> None:
        super().__init__(labels, augment, **views)
        self.labels, self.ignore_index = labels, ignore_index

    def _labels(self, index: int, geometry: Geometry) -> tuple[Tensor, Tensor]:
        size = self.augment.crop_size
        label = crop_mask(self.labels.mask(index), geometry, size, self.ignore_index)
        return label, crop_mask(self.labels.confidence(index), geometry, size, 0)

    def _number(self, index: int) -> int:
        return self.labels.chosen[index]
