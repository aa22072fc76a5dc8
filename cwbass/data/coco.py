"""Annotations in COCO's JSON, as label maps.

The format: https://cocodataset.org/#format-data. An object is a list of polygons, or a run-length code, plain or compressed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from cwbass.data.classes import MAX_CLASSES
from cwbass.data.polygons import Region, fill_polygons
from cwbass.errors import DataError, counted
from cwbass.jsonfile import read_object

_EXPORT = "Export it again from the annotation tool, as COCO instances with polygons or masks."
Key = int | str


class _Category(BaseModel):
    id: int
    name: Annotated[str, Field(min_length=1)]


class _Image(BaseModel):
    id: Key
    file_name: Annotated[str, Field(min_length=1)]
    height: PositiveInt
    width: PositiveInt


class _Rle(BaseModel):
    counts: list[NonNegativeInt] | str
    size: tuple[PositiveInt, PositiveInt]


class _Annotation(BaseModel):
    id: Key | None = None
    image_id: Key
    category_id: int
    segmentation: list[list[FiniteFloat]] | _Rle = []


class _File(BaseModel):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image and its objects."""

    name: str  # posix path, as the file has it
    height: int  # pixels
    width: int
    objects: tuple[tuple[int, str, list[list[float]] | _Rle], ...]  # class, what to call it in an error, shape


@dataclass(frozen=True, slots=True)
class CocoFile:
    """Classes in the order of their ids, and all images."""

    path: Path
    names: tuple[str, ...]
    images: tuple[CocoImage, ...]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file of instances. Objects are looked at by :func:`paint`.

    Raises:
        DataError: It is no such file, two images or classes have one id or name, or an object names none of them.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Name the JSON that the annotation tool exported.")
    try:
        found = _File.model_validate(read_object(path, writer="an annotation tool", mend=_EXPORT))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        seen = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
        raise DataError(f"{path}, {place}: {first['msg'].lower()}{seen}. {_EXPORT}") from error
    categories = sorted(found.categories, key=lambda category: category.id)
    classes = {category.id: place for place, category in enumerate(categories)}
    _unlike(path, "category id", [category.id for category in categories])
    _unlike(path, "category", [category.name for category in categories])
    _unlike(path, "image id", [image.id for image in found.images])
    if (mask := _twice([mask_name(path, image.file_name) for image in found.images])) is not None:
        raise DataError(
            f"{path}: the mask {mask!r} is that of two images, which differ in their suffix at most. Rename one of them."
        )
    objects: Mapping[Key, list[tuple[int, str, list[list[float]] | _Rle]]] = defaultdict(list)
    ids = {image.id for image in found.images}
    for number, annotation in enumerate(found.annotations, start=1):
        name = f"annotation number {number}" if annotation.id is None else f"annotation {annotation.id}"
        if annotation.image_id not in ids:
            raise DataError(f"{path}, {name}: no image has the id {annotation.image_id!r}. {_EXPORT}")
        if annotation.category_id not in classes:
            raise DataError(f"{path}, {name}: no category has the id {annotation.category_id}. {_EXPORT}")
        objects[annotation.image_id].append((classes[annotation.category_id], name, annotation.segmentation))
    images = (CocoImage(each.file_name, each.height, each.width, tuple(objects.get(each.id, ()))) for each in found.images)
    return CocoFile(path, tuple(category.name for category in categories), tuple(images))


def paint(file: CocoFile, image: CocoImage, values: Sequence[int], ground: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The label map of an image: large objects first, so that what lies on them stays visible.

    Args:
        file: Where the image is from.
        image: One of its images.
        values: What to write for each class.
        ground: What to write where there is no object.

    Returns:
        The map, [H, W] uint8, and what to call the objects that cover one pixel at most.

    Raises:
        DataError: A shape cannot be drawn; the message names the annotation.
    """
    size = (image.height, image.width)
    regions = [(_region(file.path, name, shape, size), values[index]) for index, name, shape in image.objects]
    label = np.full(size, ground, dtype=np.uint8)
    for region, value in sorted(regions, key=lambda each: -each[0].area):
        height, width = region.inside.shape
        label[region.top : region.top + height, region.left : region.left + width][region.inside] = value
    return label, [name for (_, name, _), (region, _) in zip(image.objects, regions, strict=True) if region.area <= 1]


def mask_name(path: Path, name: str) -> str:
    """Path of a mask below the masks folder, for an image of that name.

    Raises:
        DataError: The name leads out of the folder.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.name:
        raise DataError(f"{path}: the image {name!r} does not lie below the folder of images. Name it by its path there.")
    return parts.with_suffix(".png").as_posix()


def class_values(path: Path, names: Sequence[str], background: str) -> tuple[tuple[str, ...], list[int]]:
    """The class list of the masks, and what to write for each class of the file.

    Args:
        path: The file, for errors.
        names: Its classes.
        background: Class of the pixels without an object, the first; one of ``names``, a new one, or empty for none.

    Raises:
        DataError: There are too many.
    """
    listed = tuple(dict.fromkeys([background, *names])) if background else tuple(names)
    if not names or len(listed) > MAX_CLASSES:
        found = counted(len(names), "category", "categories")
        raise DataError(f"{path} has {found}; masks hold 1 to {MAX_CLASSES} classes, the background among them.")
    return listed, [listed.index(name) for name in names]


def decode_counts(counts: str) -> list[int]:
    """The runs of a compressed code: 5 bits a character, low ones first, and from the fourth run on the difference from the last but one.

    Raises:
        ValueError: It is no such code.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a run; its fifth bit is the sign
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("an end within a run")
    return runs


def _region(path: Path, name: str, shape: list[list[float]] | _Rle, size: tuple[int, int]) -> Region:
    if isinstance(shape, _Rle):
        return Region(0, 0, _runs(path, name, shape, size))
    if not shape:
        raise DataError(f"{path}, {name} has no segmentation (a box alone?): no mask can be drawn. {_EXPORT}")
    for polygon in shape:
        if len(polygon) < 6 or len(polygon) % 2:
            raise DataError(
                f"{path}, {name}: a polygon of {counted(len(polygon), 'number')}; it takes x and y of three corners or more. {_EXPORT}"
            )
    return fill_polygons([np.array(polygon).reshape(-1, 2) for polygon in shape], size)


def _runs(path: Path, name: str, rle: _Rle, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Runs of pixels outside and inside in turn, column by column."""
    try:
        runs = decode_counts(rle.counts) if isinstance(rle.counts, str) else rle.counts
    except ValueError as error:
        raise DataError(f"{path}, {name}: {error} in a run-length code. {_EXPORT}") from error
    if rle.size != size or sum(runs) != size[0] * size[1] or min(runs) < 0:
        raise DataError(
            f"{path}, {name}: a run-length code of {sum(runs)} pixels and size {rle.size[0]} x {rle.size[1]}; its image is "
            f"{size[0]} high and {size[1]} wide. {_EXPORT}"
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _unlike(path: Path, what: str, values: Sequence[Key]) -> None:
    if (value := _twice(values)) is not None:
        raise DataError(f"{path}: the {what} {value!r} comes twice. {_EXPORT}")


def _twice(values: Sequence[Key]) -> Key | None:
    """The first of the values that come more than once."""
    return next((value for value, count in Counter(values).items() if count > 1), None)
