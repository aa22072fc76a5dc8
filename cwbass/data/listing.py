"""The samples of a dataset, found by name alone: no file is opened, so a million names are cheap."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cwbass.data.base import IMAGE_SUFFIXES, DatasetSpec, Sample
from cwbass.errors import DataError

MARKS = {"JPEGImages": "pascal_voc", "leftImg8bit": "cityscapes", "images": "folder"}  # a folder that only this layout has


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """What a layout finds below the root. Paths are posix and relative to the root."""

    spec: DatasetSpec
    images: Mapping[str, str]  # id -> image
    masks: Mapping[str, str]  # id -> mask, where there is one
    train: tuple[str, ...]  # ids to train on, with or without mask
    test: tuple[str, ...]  # empty: to be carved out of the training images
    unlisted: tuple[str, ...] = ()  # ids that take part in training without being named by any list


@dataclass(frozen=True, slots=True)
class Listing:
    """The samples of a dataset, sorted by id, before any role is drawn."""

    spec: DatasetSpec
    train: tuple[Sample, ...]  # mask None where there is none
    test: tuple[Sample, ...]  # empty: to be carved out of train


def scan(root: Path, folder: str) -> Iterator[str]:
    """Files below ``root/folder``, at any depth, as posix paths relative to that folder.

    Hidden files and folders are passed over. The order is the file system's.

    Raises:
        DataError: The folder does not exist, or a link in it leads back to a folder that it lies in.
    """
    top = root / folder
    if not top.is_dir():
        raise DataError(f"{top}: no such folder. {_what_is_there(root)}")
    open_folders: list[tuple[str, Path, tuple[Path, ...]]] = [("", top, ())]
    while open_folders:
        prefix, path, linked_from = open_folders.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    yield prefix + entry.name
                    continue
                above = (*linked_from, path.resolve()) if entry.is_symlink() else linked_from
                if entry.is_symlink() and any(each.is_relative_to(Path(entry.path).resolve()) for each in above):
                    raise DataError(f"{entry.path}: a link to a folder that it lies in itself. Remove the link.")
                open_folders.append((f"{prefix}{entry.name}/", Path(entry.path), above))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; whoever opens it says so
        return False


def scan_images(root: Path, folder: str) -> dict[str, str]:
    """Images below ``root/folder``: id (the path below the folder, without suffix) -> path.

    Raises:
        DataError: The folder does not exist, two files have the same id, a name cannot stand in a text file, or a link that may
            be one to a folder leads nowhere.
    """
    found: dict[str, str] = {}
    for name in scan(root, folder):
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix}".lower() not in IMAGE_SUFFIXES:
            refuse_dangling(root / folder / name)
            continue
        check_name(root / folder, name)
        if stem in found:
            raise DataError(f"{root}: {found[stem]} and {folder}/{name} have the same id {stem!r}. Rename or remove one of them.")
        found[stem] = f"{folder}/{name}"
    return found


def refuse_dangling(path: Path) -> None:
    """Raise a DataError for a link to what is not there: if that is a folder, of a disk that is not mounted, its images would be missed."""
    if path.is_symlink() and not os.path.exists(path):
        raise DataError(f"{path}: a link to what is not there. Mount or mend it, or remove the link.")


def check_name(folder: Path, name: str) -> None:
    """Raise a DataError where a file's name is not UTF-8 or has a line break: manifest and lists are text, a line an image."""
    if not name.isascii() and name.encode(errors="replace").decode() != name:
        problem = "is not UTF-8"
    elif len(name.splitlines()) > 1:
        problem = "has a line break"
    else:
        return
    raise DataError(f"{folder}: the name of the file {os.fsencode(name)!r} {problem}. Rename the file.")


def guess_layout(root: Path) -> str | None:
    """The layout that a folder looks to be in, by the folders it holds; None: in none of those that are built in."""
    return next((layout for mark, layout in MARKS.items() if (root / mark).is_dir()), None)


def check_png(root: Path, masks: Iterable[str]) -> None:
    """Raise a DataError where a mask is no PNG: other formats may change its values."""
    for mask in masks:
        if not mask.lower().endswith(".png"):
            raise DataError(f"{root}/{mask}: masks must be PNG, which keeps every value. Export them as PNG.")


def no_image(root: Path, lone: Mapping[str, str], folder: str, images: Collection[str]) -> str:
    """What to say of masks that belong to no image, by the ids they would have: passed over, their images would count as unlabelled."""
    stem = min(lone)
    said = f"{root}/{lone[stem]}: no image {folder}/{stem}.*."
    if len(lone) == 1:
        return f"{said}{near(stem, images)} Add or rename one of them."
    said += f" So it is with {len(lone)} masks."
    ending = next((stem[end:] for end in range(len(stem) - 1, 0, -1) if stem[:end] in images), None)
    if ending is not None and all(each.endswith(ending) and each.removesuffix(ending) in images for each in lone):
        return f"{said} All their names end in {ending!r}, which those of the images lack: take it off."
    return f"{said}{near(stem, images)} Add the images, or name the masks as they are named."


def unread_masks(root: Path, listing: Listing) -> str:
    """Where no sample has a mask: a hint at folders below the root that hold PNG files and belong to no sample, or nothing."""
    samples = (*listing.train, *listing.test)
    if not root.is_dir() or any(sample.mask is not None for sample in samples):
        return ""
    read = {sample.image.partition("/")[0] for sample in samples}
    others = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in read and path.name[0] != ".")
    found = [f"{name}/" for name in others if any(file.lower().endswith(".png") for file in scan(root, name))]
    if not found:
        return ""
    return (
        f" PNG files that are not read lie in {', '.join(found)}: if they are masks, rename the folder to masks/ (layout folder) and "
        "name each file as its image."
    )


def composed(name: str) -> str:
    """One text for all that look the same: an umlaut is one code point (NFC), or two (NFD, as some macOS tools write it)."""
    return unicodedata.normalize("NFC", name)


def near(name: str, names: Iterable[str]) -> str:
    """A hint `` Did you mean 'x'?`` for a mistyped name, or nothing."""
    names = list(names)
    if twin := next((other for other in names if composed(other) == composed(name)), None):
        return f" {twin!a} looks the same, and is written with other code points (Unicode NFC or NFD). Write both alike."
    if twin := next((other for other in names if other.casefold() == name.casefold()), None):
        return f" Did you mean {twin!r}?"
    ordered = sorted(names)
    place = bisect(ordered, name)
    # Similarity is slow: among many names, compare only with those beside it in the alphabet.
    matches = get_close_matches(name, ordered[max(0, place - 500) : place + 500], n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _what_is_there(root: Path) -> str:
    """What the root holds instead, and the layout it looks like."""
    if not root.is_dir():
        where = "" if root.is_absolute() else f" in {Path.cwd()}"
        return f"{root} does not exist{where}: give the folder of the dataset with data.root or --data."
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    for mark, layout in MARKS.items():
        if mark in names:
            return f"There is {mark}/: set data.layout: {layout}."
    return f"{root} holds {', '.join(names[:8]) or 'no folders'}; check data.root and data.layout."
