"""Verb ``import``: masks for a folder of images, from annotations in COCO's JSON."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cwbass.data.base import default_palette, upright_size
from cwbass.data.classes import read_class_list
from cwbass.data.coco import CocoImage, class_values, mask_name, paint, read_coco
from cwbass.data.label_maps import save_whole, with_palette
from cwbass.data.lists import line_of
from cwbass.errors import DataError, counted
from cwbass.files import partial_file, write_whole

logger = logging.getLogger(__name__)

IGNORED = 255


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was written, and which images were passed over."""

    root: str
    classes: tuple[str, ...]  # in the order of the mask values
    masks: int
    without_objects: int  # images, left unlabelled unless the caller says that they show the background alone
    not_found: int  # images that are named, and not in images/

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "classes": list(self.classes)}


def import_coco(
    annotations: Path,
    *,
    root: Path,
    background: str = "background",
    empty: bool = False,
    list_file: str | None = None,
    overwrite: bool = False,
) -> ImportReport:
    """Write ``masks/`` and ``classes.txt`` of a dataset in the layout ``folder``, whose images lie in ``images/``.

    Args:
        annotations: The file; its image names are paths below ``images/``.
        root: The dataset's folder.
        background: Class of pixels that no object covers, value 0; empty: they are ignored (255).
        empty: Images without objects show the background alone. Else they get no mask, and count as unlabelled.
        list_file: Name of a list below the root, ``test.txt`` say, for the ids of the images that have a mask now.
        overwrite: Write over masks and lists that are there.

    Raises:
        DataError: The file is wrong, none of its images is there or one has another size, a mask or list is there already,
            or ``classes.txt`` has other classes. Masks drawn before an object that cannot be drawn stay.
    """
    file = read_coco(annotations)
    classes, values = class_values(annotations, file.names, background)
    if not (root / "images").is_dir():
        raise DataError(f"{root / 'images'}: no such folder. Put the images of {annotations.name} there, or links to them.")
    known = root / "classes.txt"
    if known.is_file() and tuple(read_class_list(known)) != classes:
        raise DataError(
            f"{known} lists {', '.join(read_class_list(known))}; {annotations.name} gives {', '.join(classes)}. "
            "Import it into another folder, or delete classes.txt and masks/."
        )
    listed = _class_list(known, classes, annotations)
    masks = {image.name: mask_name(annotations, image.name) for image in file.images}
    drawn = [image for image in file.images if image.objects or empty]
    found = [
        image for image in drawn if os.path.isfile(root / "images" / image.name)
    ]  # Path's raises for a name that is too long
    if drawn and not found:
        raise DataError(f"{annotations} names {drawn[0].name}, and no such image is in {root / 'images'}, nor any of the others.")
    targets = [root / "masks" / masks[image.name] for image in found]
    targets += [root / list_file] if list_file else []
    taken = next((path for path in targets if path.exists()), None)
    if taken is not None and not overwrite:
        raise DataError(f"{taken} is there already. Delete it, or say --overwrite.")

    for image in found:
        _check_size(root, image)
    if not known.is_file():  # one that has colours keeps them
        write_whole(known, listed)
    tiny: list[str] = []
    palette = default_palette(256)
    for image in found:
        label, names = paint(file, image, values, 0 if background else IGNORED)
        tiny += [f"{name} of {image.name}" for name in names]
        save_whole(with_palette(label, palette), root / "masks" / masks[image.name])
    if list_file:
        lines = sorted(line_of(masks[image.name].removesuffix(".png"), f"images/{image.name}") for image in found)
        write_whole(root / list_file, "".join(f"{line}\n" for line in lines).encode())
    if len(found) < len(drawn):
        there = {image.name for image in found}
        gone = [image.name for image in drawn if image.name not in there]
        logger.warning("not in %s: %d of the %d annotated images, the first %s", root / "images", len(gone), len(drawn), gone[0])
    if tiny:
        logger.warning(
            "%d of %d objects cover one pixel at most, the first %s: see that coordinates are pixels, not shares, and of this size.",
            len(tiny),
            sum(len(image.objects) for image in found),
            tiny[0],
        )
    bare = [] if empty else [root / "masks" / masks[image.name] for image in file.images if not image.objects]
    if stale := [path for path in bare if os.path.isfile(path)]:
        one, many = "image has no object, but a mask", "images have no object, but masks"
        logger.warning("%s of before, the first %s: delete what is out of date.", counted(len(stale), one, many), stale[0])
    return ImportReport(str(root), classes, len(found), sum(not image.objects for image in file.images), len(drawn) - len(found))


def _class_list(path: Path, classes: tuple[str, ...], source: Path) -> bytes:
    """What classes.txt will hold, once it has been read back."""
    with partial_file(path) as partial:
        partial.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        try:
            same = tuple(read_class_list(partial)) == classes
        except DataError:
            same = False
        if not same:
            raise DataError(f"{source}: a category of {', '.join(classes)} cannot stand in classes.txt as it is. Rename it.")
        return partial.read_bytes()


def _check_size(root: Path, image: CocoImage) -> None:
    path = root / "images" / image.name
    height, width = upright_size(path)
    if (height, width) != (image.height, image.width):
        raise DataError(
            f"{path} is {width}x{height}, but was annotated at {image.width}x{image.height} (width x height). Take the images that "
            "were annotated; save turned photographs without EXIF."
        )
