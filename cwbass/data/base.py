"""What a dataset is: class names, what mask values mean, and a list of samples.

A layout (``folder``, ``pascal_voc``, ``cityscapes``) only says where files are and how their
values map; everything after it reads through :func:`read_image` and :func:`read_mask`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from cwbass.errors import DataError, counted

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What cameras and browsers write, and nothing here reads: it is passed over, but not in silence.
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jfif", ".gif", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".mp4", ".mov", ".avi", ".mkv", ".webm"),
)
_SPEC_MEND = "Run the step that wrote the file again, or use another file."
Box = tuple[int, int, int, int]  # left, top, right, bottom, as Pillow has it
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_SPREAD: Mapping[Any, int] = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the values of such PNG files by
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")  # what Pillow calls formats that may change values
UNKNOWN = 256  # in a lookup table: a raw value that no class claims


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """Classes of a dataset and how raw mask values become class indices.

    Written into the split manifest and into every checkpoint, so that neither needs the
    parameters that made it.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # colour of each class, for drawing
    ignore_index: int = 255
    ids: Mapping[int, int] = field(default_factory=dict)  # raw value -> class index or ignore_index
    colors: Mapping[tuple[int, int, int], int] | None = None  # RGB masks: colour -> class index or ignore_index

    @property
    def num_classes(self) -> int:
        """C; what is ignored is no class."""
        return len(self.class_names)

    def lookup(self) -> NDArray[np.uint16]:
        """Raw mask value -> class index, ``ignore_index`` or ``UNKNOWN``. [256] uint16."""
        table = np.full(256, UNKNOWN, dtype=np.uint16)
        for raw, index in self.ids.items():
            table[raw] = index
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "class_names": list(self.class_names),
            "palette": [list(rgb) for rgb in self.palette],
            "ignore_index": self.ignore_index,
            "ids": {str(raw): index for raw, index in sorted(self.ids.items())},
            "colors": None
            if self.colors is None
            else [[*rgb, index] for rgb, index in sorted(self.colors.items(), key=lambda item: item[0])],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            DataError: A key is missing, or its value cannot be of a dataset; the message names the key.
        """
        try:
            spec = cls(
                class_names=tuple(values["class_names"]),
                palette=tuple((r, g, b) for r, g, b in values["palette"]),
                ignore_index=values["ignore_index"],
                ids={int(raw): index for raw, index in values["ids"].items()},
                colors=None if (colors := values["colors"]) is None else {(r, g, b): index for r, g, b, index in colors},
            )
            wrong = spec._wrong()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"spec: the classes of the dataset cannot be read ({error!r}). {_SPEC_MEND}") from error
        if wrong is not None:
            raise DataError(f"spec: the classes of the dataset are wrong: {wrong}. {_SPEC_MEND}")
        return spec

    def _wrong(self) -> str | None:
        """The key that holds what no dataset has, with what it holds."""
        names, indices = self.class_names, range(len(self.class_names))
        if not names or not all(isinstance(name, str) for name in names):
            return f"class_names is {str(names)[:80]}, not one or more names"
        if len(self.palette) != len(names) or not all(_is_byte(value) for color in self.palette for value in color):
            return f"palette is {str(self.palette)[:80]}, not a colour of 0..255 for each of {len(names)} classes"
        if not _is_byte(self.ignore_index) or self.ignore_index in indices:
            return f"ignore_index is {str(self.ignore_index)[:80]}, not a value of 0..255 that is no class"
        if not all(_is_byte(raw) for raw in self.ids):
            return f"ids maps {str(list(self.ids))[:80]}, not values of 0..255"
        if not all(_is_byte(value) for color in self.colors or () for value in color):
            return f"colors maps {str(list(self.colors or ()))[:80]}, not colours of 0..255"
        for key, mapping in (("ids", self.ids), ("colors", self.colors or {})):
            for index in mapping.values():
                if not _is_byte(index) or (index not in indices and index != self.ignore_index):
                    return f"{key} maps to {str(index)[:80]}, neither a class nor ignore_index"
        return None


def spread(items: Sequence[T], wanted: int) -> list[T]:
    """At most ``wanted`` of the items, as far apart as they can be; the first is among them."""
    count = min(wanted, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255  # bool is an int, too


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, and its mask where there is one. Paths are relative to the dataset's root."""

    id: str
    image: str
    mask: str | None = None
    pixels: tuple[int, ...] | None = None  # of each class in the mask, where the split has counted them
    tags: tuple[int, ...] | None = None  # the classes that the image is said to show; None where nothing is said of it


def read_image(path: Path, box: Box | None = None) -> NDArray[np.uint8]:
    """Decode to RGB, upright (EXIF orientation applied). [H, W, 3] uint8, read-only.

    Args:
        path: The file.
        box: The part to give; None gives all. The rest is decoded and never becomes an array.

    Raises:
        DataError: The file is missing, truncated, or not an image.
    """
    try:
        with Image.open(path) as file:
            image = eight_bit_rgb(upright(file))
            return np.asarray(image if box is None else image.crop(box))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image. Run `cwbass split` again if files were moved.") from error
    except Exception as error:  # Pillow's readers raise whatever broken bytes happen to cause: struct.error, IndexError
        raise DataError(f"{path}: cannot be decoded as an image ({error}). Replace or remove the file.") from error


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of what ``read_image`` gives, in pixels; mostly from the header alone.

    Raises:
        DataError: The file is missing or broken.
    """
    try:
        with Image.open(path) as file:
            width, height = size_when_upright(file)
            return height, width
    except Exception:  # as in read_image, which says what is wrong with the file
        height, width, _ = read_image(path).shape
        return height, width


def size_when_upright(file: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after :func:`upright`, in pixels; nothing is decoded."""
    stored = file.size
    if isinstance(file, TiffImageFile):  # Pillow turns TIFF by itself, and some of its versions say the turned size beforehand
        stored = file.tag_v2[IMAGEWIDTH], file.tag_v2[IMAGELENGTH]
    return stored[::-1] if file.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS else stored


def upright(image: Image.Image) -> Image.Image:
    """The image as EXIF says it is to be seen; itself where nothing is to be turned, and no copy."""
    if isinstance(image, TiffImageFile):
        # Without a name Pillow does not map the file into memory, where it reads rows of the turned width: grey, palette, CMYK
        # and 16-bit pixels of a TIFF on its side would be scrambled.
        image.filename = ""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def eight_bit_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; 16-bit, 32-bit and float pixels are scaled, not clipped.

    Raises:
        ValueError: A float pixel is not finite.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow clips to 255 when it converts these; scale by what the type can hold instead.
        wide = np.asarray(image, dtype=np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("pixels that are not finite")
        # Of floats it is told from the values: by their highest alone, a dark image of 0..255 would be stretched, and others not.
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
        top = next((top for top in usual if wide.max() <= top), float(wide.max()))
        return Image.fromarray((wide / top * 255.0).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def sixteen_bit(file: ImageFile.ImageFile) -> bool:
    """Whether a file that is opened, and not decoded yet, holds 16 bits a band; of RGB Pillow reads the upper 8."""
    return any(";16" in str(tile.args) for tile in file.tile)


def read_raw_mask(path: Path) -> NDArray[np.uint8]:
    """Decode a mask without mapping its values: [H, W] indices, or [H, W, 3] colours. uint8.

    Palette files give their indices. Masks are never rotated by EXIF.

    Raises:
        DataError: The file is missing, broken, of a format or depth that does not keep every value, or neither an index,
            palette nor RGB image.
    """
    return read_raw_mask_and_palette(path)[0]


def read_raw_mask_and_palette(path: Path) -> tuple[NDArray[np.uint8], Sequence[int]]:
    """A mask as :func:`read_raw_mask` has it; and red, green, blue of each value of its palette in turn, empty without a palette."""
    try:
        with Image.open(path) as file:
            raw = _decode_mask(path, file)
            return raw, (file.getpalette("RGB") or ()) if file.mode == "P" else ()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such mask. Run `cwbass split` again if files were moved.") from error
    except DataError:
        raise
    except Exception as error:  # as in read_image
        raise DataError(f"{path}: cannot be decoded as a mask ({error}). Replace or remove the file.") from error


def _decode_mask(path: Path, file: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if file.format in _LOSSY:  # a suffix may lie
        raise DataError(
            f"{path}: the mask is stored as {file.format}, which changes values. Export it as PNG from the labels again."
        )
    if file.mode in ("P", "L", "1"):  # one-bit masks hold 0 and 1, not the 0 and 255 of convert("L")
        # Pillow spreads the greys of 2 and 4 bits over 0..255.
        spread = _SPREAD.get(file.tile[0].args, 1) if file.format == "PNG" and file.tile else 1
        values = np.array(file, dtype=np.uint8)
        return values if spread == 1 else values // np.uint8(spread)
    if file.mode in ("RGB", "RGBA"):
        if sixteen_bit(file):
            raise DataError(f"{path}: the mask has 16 bits a colour, of which 8 would be read. Save it as 8-bit RGB PNG.")
        return np.array(file.convert("RGB"), dtype=np.uint8)
    if file.mode.startswith("I"):
        wide = np.array(file)
        if wide.min() >= 0 and wide.max() <= 255:
            return wide.astype(np.uint8)
        raise DataError(f"{path}: mask values reach {wide.max()}; ids must lie in 0..255. Remap the file.")
    raise DataError(f"{path}: mask has mode {file.mode}; save it as 8-bit grey, palette or RGB PNG.")


def count_values(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each value of an index mask. [H, W] -> [256]."""
    # Pillow's loop takes a third of the time of np.bincount, which makes every pixel an int64 first. Four pixels pass for
    # the bands of one: neighbours are mostly equal, and an addition to one number has to wait for the one before.
    fours = raw.size // 4 * 4
    counts = np.bincount(raw.reshape(-1)[fours:], minlength=256).astype(np.int64)
    if fours:
        bands = Image.fromarray(raw.reshape(-1)[:fours].reshape(1, -1, 4)).histogram()
        counts += np.array(bands, dtype=np.int64).reshape(4, 256).sum(axis=0)
    return counts


def map_mask(raw: NDArray[np.uint8], spec: DatasetSpec) -> NDArray[np.uint16]:
    """Raw mask values to class indices; ``UNKNOWN`` where no class claims a value. [H, W] uint16.

    Raises:
        DataError: The mask is RGB and ``spec`` has no colour map, or the reverse.
    """
    check_kind(raw, spec)
    if raw.ndim == 2:
        return spec.lookup()[raw]
    assert spec.colors is not None
    code = raw.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)  # [H, W]
    mapped = np.full(code.shape, UNKNOWN, dtype=np.uint16)
    for (r, g, b), index in spec.colors.items():
        mapped[code == (r * 65536 + g * 256 + b)] = index
    return mapped


def check_kind(raw: NDArray[np.uint8], spec: DatasetSpec) -> None:
    """Raise a DataError where the mask is RGB and ``spec`` has no colour map, or the reverse."""
    if raw.ndim == 2 and spec.colors is not None and not spec.ids:
        raise DataError(
            "mask holds indices, but data.colors or labelmap.txt says RGB masks; remove it or export the masks as RGB."
        )
    if raw.ndim == 3 and spec.colors is None:
        raise DataError("mask is RGB, but there is no colour map; give data.colors (class: [r, g, b]) or a labelmap.txt.")


def class_pixels(counts: NDArray[np.int64], spec: DatasetSpec) -> NDArray[np.int64]:
    """Pixels of each class, of ``ignore_index``, and at ``UNKNOWN`` of no class, by those of each raw value. [256] -> [257]."""
    pixels = np.zeros(UNKNOWN + 1, dtype=np.int64)
    np.add.at(pixels, spec.lookup(), counts)
    return pixels


def read_mask(path: Path, spec: DatasetSpec) -> NDArray[np.uint8]:
    """Read a mask as class indices and ``spec.ignore_index``. [H, W] uint8, read-only.

    Raises:
        DataError: The file cannot be read, or holds a value no class claims; the message names
            file, value, number of pixels and the first position.
    """
    raw = read_raw_mask(path)
    try:
        check_kind(raw, spec)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if raw.ndim == 2:
        values = raw.tobytes()
        # Bytes are looked up twice as fast as arrays.
        if not values.translate(None, delete=bytes(spec.ids)):  # every value is known
            if all(value == index for value, index in spec.ids.items()):
                raw.flags.writeable = False
                return raw
            mapped_values = values.translate(spec.lookup().astype(np.uint8).tobytes())
            return np.frombuffer(mapped_values, dtype=np.uint8).reshape(raw.shape)
    mapped = map_mask(raw, spec)
    unknown = mapped == UNKNOWN
    if unknown.any():
        y, x = (int(v) for v in np.argwhere(unknown)[0])
        value = raw[y, x].tolist()
        alike = int((raw == raw[y, x]).reshape(*raw.shape[:2], -1).all(axis=-1).sum())
        raise DataError(
            f"{path}: value {value} belongs to no class ({counted(alike, 'pixel')}, first at x={x}, y={y}). "
            f"{claim(spec, is_rgb=raw.ndim == 3)}"
        )
    return mapped.astype(np.uint8)


def check_same_size(sample: Sample, size: tuple[int, int], mask: NDArray[np.uint8]) -> None:
    """Raise a DataError that names both sizes where the image's (height, width) is not the mask's."""
    if size != mask.shape:
        raise DataError(
            f"{sample.mask}: mask is {mask.shape[1]}x{mask.shape[0]} but its image {sample.image} is "
            f"{size[1]}x{size[0]} (width x height). Export both at one size (a rotated photograph has its sides swapped)."
        )


def claim(spec: DatasetSpec, *, is_rgb: bool) -> str:
    """How to mend a mask that holds a value or colour of no class."""
    add = "Add it to the class list (data.ignore_classes can then ignore it)"
    if is_rgb:
        return f"{add}. A colour between two others comes from smoothing: export the masks anew then."
    return f"{add}, or write {spec.ignore_index} for pixels to ignore."


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The colour map of PASCAL VOC: the bits of the index, spread over R, G and B."""
    colors = []
    for index in range(num_classes):
        rgb, bits = [0, 0, 0], index
        for shift in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (bits >> channel & 1) << shift
            bits >>= 3
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)
