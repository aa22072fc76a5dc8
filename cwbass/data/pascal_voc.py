"""The layout of PASCAL VOC.

JPEGImages/                     images
SegmentationClass/              palette PNG masks
SegmentationClassAug/           optional: masks for the images that SegmentationClass has none of
ImageSets/Segmentation/*.txt    train, and test or val
classes.txt                     one name a line, in the order of the mask values; or data.classes
"""

from __future__ import annotations

from pathlib import Path

from cwbass.config import DataConfig
from cwbass.data.classes import build_spec, read_classes
from cwbass.data.listing import DatasetFiles, scan_images
from cwbass.data.lists import read_ids, read_lines


def pascal_voc(root: Path, config: DataConfig) -> DatasetFiles:
    """Train on train.txt; test on test.txt if its masks are published, else on val.txt.

    Without train.txt all images that are not tested on are trained on. An id is the image's name
    without suffix.

    Raises:
        DataError: A folder or the class list is missing, or a list names an unknown id.
    """
    images = scan_images(root, "JPEGImages")
    masks = scan_images(root, "SegmentationClass")
    if (root / "SegmentationClassAug").is_dir():
        masks = scan_images(root, "SegmentationClassAug") | masks  # the fine masks win

    lists = root / "ImageSets" / "Segmentation"
    test: tuple[str, ...] = ()
    if (lists / "test.txt").is_file() and all(line.split()[0] in masks for line in read_lines(lists / "test.txt") if line):
        test = read_ids(lists / "test.txt", images)
    elif (lists / "val.txt").is_file():
        test = read_ids(lists / "val.txt", images)
    train_list = lists / "train.txt"
    train = read_ids(train_list, images) if train_list.is_file() else tuple(images.keys() - set(test))
    return DatasetFiles(spec=build_spec(read_classes(root, config), config), images=images, masks=masks, train=train, test=test)
