"""The plain layout: a folder of images, one of masks, and a list of class names.

images/        any depth; those without a mask count as unlabelled
masks/         PNG, same path below the folder as the image
unlabeled/     optional: more images without masks; they always take part in training
classes.txt    one name a line, in the order of the mask values; ``name r g b`` adds colours
labelmap.txt   optional: CVAT's colour map for RGB masks
train.txt      optional: ids to train on
test.txt       optional: ids to test on
"""

from __future__ import annotations

from difflib import get_close_matches
from glob import escape
from pathlib import Path

from cwbass.config import DataConfig
from cwbass.data.base import IMAGE_SUFFIXES
from cwbass.data.classes import build_spec, read_classes
from cwbass.data.listing import DatasetFiles, check_png, no_image, refuse_dangling, scan, scan_images
from cwbass.data.lists import read_ids
from cwbass.errors import DataError


def folder(root: Path, config: DataConfig) -> DatasetFiles:
    """Find images/, masks/ and unlabeled/. An id is the path below its folder, without suffix.

    Raises:
        DataError: A folder is missing or misspelt, two files have one id, a mask has no image or is no PNG, or
            train.txt or test.txt names an unknown id.
    """
    images = scan_images(root, "images")
    masks = _scan_masks(root, images) if _is_there(root, "masks") else {}
    unlabeled = scan_images(root, "unlabeled") if _is_there(root, "unlabeled") else {}
    both = min(images.keys() & unlabeled.keys(), default=None)
    if both is not None:
        raise DataError(f"{root}: {images[both]} and {unlabeled[both]} have the same id {both!r}. Rename or remove one.")

    test = read_ids(root / "test.txt", images) if (root / "test.txt").is_file() else ()
    if (root / "train.txt").is_file():
        train = read_ids(root / "train.txt", images | unlabeled)
    else:
        train = tuple(images.keys() - set(test))
    return DatasetFiles(
        spec=build_spec(read_classes(root, config), config),
        images=images | unlabeled,
        masks=masks,
        train=train,
        test=test,
        unlisted=tuple(unlabeled),
    )


def _is_there(root: Path, name: str) -> bool:
    """Whether a folder is there that may be missing.

    Raises:
        DataError: It is a link to a folder that is not there, or another is spelt nearly so, which would not be read.
    """
    if (root / name).is_dir():
        return True
    refuse_dangling(root / name)
    for other in sorted(root.iterdir()):
        # So near is unlabelled to unlabeled, and labeled is not.
        if other.is_dir() and get_close_matches(other.name.lower(), [name], cutoff=0.88):
            raise DataError(f"{other}: a folder of that name is not read. Did you mean {name}? Rename it.")
    return False


def _scan_masks(root: Path, images: dict[str, str]) -> dict[str, str]:
    masks: dict[str, str] = {}
    lone: dict[str, str] = {}
    for name in scan(root, "masks"):
        stem, dot, suffix = name.rpartition(".")
        kind = f"{dot}{suffix}".lower()
        if kind not in IMAGE_SUFFIXES:
            refuse_dangling(root / "masks" / name)
            continue
        check_png(root, [f"masks/{name}"])
        if stem not in images:
            lone[stem] = f"masks/{name}"
            continue
        if stem in masks:
            raise DataError(f"{root}: {masks[stem]} and masks/{name} belong to the same image. Remove one of them.")
        masks[stem] = f"masks/{name}"
    if lone:
        _refuse_unread(root, lone[min(lone)], min(lone))
        raise DataError(no_image(root, lone, "images", images))
    return masks


def _refuse_unread(root: Path, mask: str, stem: str) -> None:
    """Raise a DataError where the image of a mask is there, but of a kind that is not read."""
    path = root / "images" / stem
    for other in path.parent.glob(f"{escape(path.name)}.*"):
        if other.stem == path.name:
            raise DataError(
                f"{root}/{mask}: its image {other.relative_to(root)} is of a kind that is not read. Save it as one of "
                f"{', '.join(IMAGE_SUFFIXES)}."
            )
