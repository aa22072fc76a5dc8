"""The layout of PASCAL VOC.

JPEGImages/                     images
SegmentationClass/              palette PNG masks
SegmentationClassAug/           optional: masks for the images that SegmentationClass has none of
ImageSets/Segmentation/*.txt    train, and test or val
classes.txt                     one name a line, in the order of the mask values; or data.classes
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from cwbass.config import DataConfig
from cwbass.data.classes import build_spec, read_classes
from cwbass.data.listing import DatasetFiles, check_png, no_image, scan_images
from cwbass.data.lists import id_finder, read_ids, read_lines
from cwbass.errors import DataError, counted

logger = logging.getLogger(__name__)


def pascal_voc(root: Path, config: DataConfig) -> DatasetFiles:
    """Train on train.txt; test on test.txt if its masks are published, else on val.txt.

    Without train.txt all images that are not tested on are trained on. An id is the image's name
    without suffix.

    Raises:
        DataError: A folder or the class list is missing, a mask has no image or is no PNG, or a list names an unknown id.
    """
    images = scan_images(root, "JPEGImages")
    masks = scan_images(root, "SegmentationClass")
    if (root / "SegmentationClassAug").is_dir():
        masks = scan_images(root, "SegmentationClassAug") | masks  # the fine masks win
    check_png(root, masks.values())
    if lone := {id: mask for id, mask in masks.items() if id not in images}:
        raise DataError(no_image(root, lone, "JPEGImages", images))

    lists = root / "ImageSets" / "Segmentation"
    test_list, val_list = lists / "test.txt", lists / "val.txt"
    test: tuple[str, ...] = ()
    if test_list.is_file() and (why := _unfit(test_list, images, masks)) is None:
        test = read_ids(test_list, images)
    else:
        if val_list.is_file():
            test = read_ids(val_list, images)
        if test_list.is_file():
            logger.info("%s %s: %s", test_list, why, "val.txt is tested on" if test else "test images are drawn")
    train_list = lists / "train.txt"
    train = read_ids(train_list, images) if train_list.is_file() else tuple(images.keys() - set(test))
    return DatasetFiles(spec=build_spec(read_classes(root, config), config), images=images, masks=masks, train=train, test=test)


def _unfit(test_list: Path, images: Mapping[str, str], masks: Mapping[str, str]) -> str | None:
    """Why a list cannot be tested on, if so. The images of the challenge's own list may not even be there."""
    find = id_finder(images)
    ids = {line: find(line)[0] for _, line in read_lines(test_list)}
    if not ids:
        return "names no image"
    bare = [line for line, id in ids.items() if id not in masks]
    return f"names {counted(len(ids), 'image')}, {len(bare)} of them without a mask, the first {bare[0]!r}" if bare else None
