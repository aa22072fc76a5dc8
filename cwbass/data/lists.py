"""Text files of ids: one a line, the field's two columns of image and mask paths, or with the classes that an image shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cwbass.data.listing import composed, near
from cwbass.errors import DataError, counted


def find_list(name: str, root: Path, key: str) -> Path:
    """The list file of a parameter: below the dataset's root, or else as given.

    Raises:
        DataError: Neither exists.
    """
    for path in (root / name, Path(name)):
        if path.is_file():
            return path
    raise DataError(f"{key}: no file {name}, neither below {root} nor in {Path.cwd()}. Mend the path.")


def read_ids(path: Path, images: Mapping[str, str], *, may_be_empty: bool = False) -> tuple[str, ...]:
    """Ids named by a list file, in its order.

    A line is an id or an image's path relative to the root, alone or followed by more columns
    (the mask's path, a flag): ``2007_000032``, ``train/jena/jena_000078_000019``,
    ``JPEGImages/x.jpg SegmentationClass/x.png``. Masks are always those of the layout. Blank
    lines and lines that begin with # are passed over.

    Args:
        path: The list file.
        images: Ids that may be named -> path of the image.
        may_be_empty: Whether it may name none. Else it would count as no list, and nobody be told.

    Raises:
        DataError: The file cannot be read, names an unknown id, one twice, or none.
    """
    find = id_finder(images)
    lines: dict[str, int] = {}  # id -> line number
    for number, line in read_lines(path):
        id, name = find(line)
        if id is None:
            raise DataError(
                f"{path}, line {number}: {name!r} is not among the {counted(len(images), 'image')} that may be named here. "
                "Mend the line."
                f"{near(name, images.values() if name.lower().endswith(('.jpg', '.png')) else images)}"
            )
        if id in lines:
            raise DataError(f"{path}, line {number}: {id!r} is named in line {lines[id]} already. Remove one of them.")
        lines[id] = number
    if not lines and not may_be_empty:
        raise DataError(f"{path} names no image. Name some, or do without the list.")
    return tuple(lines)


def line_of(id: str, image: str) -> str:
    """The line that :func:`read_ids` takes for an image: its id, or its path where the id would be taken for something else."""
    return id if id == id.strip() and not id.startswith("#") else image


def read_tags(path: Path, images: Mapping[str, str], classes: Mapping[str, int | None]) -> dict[str, tuple[int, ...]]:
    """Classes of whole images, from lines ``id, class, class``: all that the image shows. Blank lines and # as in lists of ids.

    Args:
        path: The file.
        images: Ids that may be named.
        classes: Names of the dataset's classes -> index; None where the class is ignored.

    Returns:
        Id -> indices of the classes, sorted.

    Raises:
        DataError: The file cannot be read, names an unknown id or class, or an id twice.
    """
    tags: dict[str, tuple[int, ...]] = {}
    for number, line in read_lines(path):
        id, *names = [part.strip() for part in line.split(",")]
        if id in tags:
            raise DataError(f"{path}, line {number}: {id!r} has a line already. Put all that it shows on one.")
        if id not in images:
            among = f"is not among the {counted(len(images), 'image')}"
            raise DataError(f"{path}, line {number}: {id!r} {among}. Mend the line.{near(id, images.keys() - tags)}")
        for name in names:
            if name not in classes:
                raise DataError(f"{path}, line {number}: {name!r} is no class of the dataset. Mend it.{near(name, classes)}")
        tags[id] = tuple(sorted({place for name in names if (place := classes[name]) is not None}))
    return tags


def id_finder(images: Mapping[str, str]) -> Callable[[str], tuple[str | None, str]]:
    """A function from a line of a list to the id that it names, None for none, and the name that was looked for last.

    An id may hold spaces, so the whole line comes first. A first column that begins ids with spaces is none: where there is
    a "photo (2)", the line "photo (3)" does not mean "photo".
    """
    by_path = {image: id for id, image in images.items()}
    begun = {composed(id.partition(" ")[0]) for id in images if " " in id}

    def find(line: str) -> tuple[str | None, str]:
        first = line.split()[0]
        names = [name.lstrip("/") for name in ((line,) if composed(first) in begun else (line, first))]
        return next((by_path.get(name, name) for name in names if name in images or name in by_path), None), names[-1]

    return find


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines of a UTF-8 text file, stripped; blank ones and those that begin with # are passed over.

    Raises:
        DataError: The file is missing, cannot be read, or is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # a byte order mark is dropped
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Mend the path, or write it.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give the right to read it, or another file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}). Save it as UTF-8.") from error
    stripped = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]
