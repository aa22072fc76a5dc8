"""Pseudo-labels as files, and the stream that serves them beside the views of their images.

Below a folder: ``label/<id>.png`` (class of each pixel, with the dataset's palette) and
``confidence/<id>.png`` (255 * confidence). Both have the size of the image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cwbass.config import AugmentConfig
from cwbass.data.base import DatasetSpec, read_raw_mask
from cwbass.data.cache import ImageSource
from cwbass.data.streams import index_at, view_rng
from cwbass.data.transforms import crop_image, crop_mask, crop_valid, draw_geometry, strong_view
from cwbass.errors import DataError
from cwbass.files import partial_file
from cwbass.types import UnlabeledBatch

LABEL, CONFIDENCE = "label", "confidence"


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
    image = Image.fromarray(label)
    image.putpalette([value for rgb in spec.palette for value in rgb])
    _save(image, folder / LABEL / f"{sample_id}.png")
    _save(Image.fromarray(confidence), folder / CONFIDENCE / f"{sample_id}.png")


def _save(image: Image.Image, path: Path) -> None:
    with partial_file(path) as partial:
        image.save(partial, format="PNG")
        os.replace(partial, path)


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

    def image(self, index: int) -> NDArray[np.uint8]:
        """[H, W, 3] uint8."""
        return self.source.image(self.chosen[index])

    def label(self, index: int) -> NDArray[np.uint8]:
        """[H, W] uint8, class index."""
        return self._read(LABEL, index)

    def confidence(self, index: int) -> NDArray[np.uint8]:
        """[H, W] uint8, 255 * confidence."""
        return self._read(CONFIDENCE, index)

    def _read(self, kind: str, index: int) -> NDArray[np.uint8]:
        path = self.folder / kind / f"{self.ids[index]}.png"
        array = read_raw_mask(path)
        size = self.image(index).shape[:2]
        if array.shape != size:
            raise DataError(
                f"{path} has shape {list(array.shape)} and its image {list(size)} (height, width). "
                "The image was changed during the run; run `cwbass train` again."
            )
        return array


class OfflineStream(Dataset[UnlabeledBatch]):
    """Views, validity, label and confidence of unlabelled crops, each as a batch has it but for the first axis; ``tags`` of each image.

    Padding has label ``ignore_index`` and confidence 0. A stream over the same images gives the views of
    :class:`cwbass.data.streams.UnlabeledStream`.
    """

    def __init__(
        self,
        labels: PseudoLabels,
        augment: AugmentConfig,
        *,
        ignore_index: int,
        seed: int,
        tags: Tensor | None = None,
        places: bool = False,
    ) -> None:
        self.labels, self.augment, self.ignore_index, self.seed = labels, augment, ignore_index, seed
        self.tags, self.places = tags, places

    def __getitem__(self, position: int) -> UnlabeledBatch:
        index = index_at(position, len(self.labels), seed=self.seed, stream="unlabeled")
        image, size = self.labels.image(index), self.augment.crop_size
        rng = view_rng(self.seed, "unlabeled", position)
        geometry = draw_geometry(image.shape[:2], self.augment, rng)
        weak = crop_image(image, geometry, size)
        return UnlabeledBatch(
            weak,
            strong_view(weak, self.augment, rng),
            crop_valid(geometry, size),
            crop_mask(self.labels.label(index), geometry, size, self.ignore_index),
            crop_mask(self.labels.confidence(index), geometry, size, 0),
            tags=None if self.tags is None else self.tags[index],
            place=geometry.place(self.labels.chosen[index]) if self.places else None,
        )
