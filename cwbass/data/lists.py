"""Text files of ids: one a line, the field's two columns of image and mask paths, or with the classes that an image shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def read_ids(path: Path, images: Mapping[str, str]) -> tuple[str, ...]:
    """Ids named by a list file, in its order.

    A line is an id or an image's path relative to the root, alone or followed by more columns
    (the mask's path, a flag): ``2007_000032``, ``train/jena/jena_000078_000019``,
    ``JPEGImages/x.jpg SegmentationClass/x.png``. Masks are always those of the layout. Blank
    lines and lines that begin with # are passed over.

    Args:
        path: The list file.
        images: Ids that may be named -> path of the image.

    Raises:
        DataError: The file cannot be read, names an unknown id, or names one twice.
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
    return tuple(lines)


def line_of(id: str, image: str) -> str:
    """The line that :func:`read_ids` takes for an image: its id, or its path where the id would be taken for something else."""
    return id if id == id.strip() and not id.startswith("#") else image


def read_tags(path: Path, images: Mapping[str, str], class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Classes of whole images, from lines ``id, class, class``: all that the image shows. Blank lines and # as in lists of ids.

    Args:
        path: The file.
        images: Ids that may be named.
        class_names: Of the dataset.

    Returns:
        Id -> indices of the classes, sorted.

    Raises:
        DataError: The file cannot be read, names an unknown id or class, or an id twice.
    """
    tags: dict[str, tuple[int, ...]] = {}
    for number, line in read_lines(path):
        id, *names = [part.strip() for part in line.split(",")]
        if id not in images or id in tags:
            problem = "has a line already" if id in tags else f"is not among the {counted(len(images), 'image')}"
            raise DataError(f"{path}, line {number}: {id!r} {problem}. Mend the line.{near(id, images.keys() - tags)}")
        for name in names:
            if name not in class_names:
                raise DataError(f"{path}, line {number}: {name!r} is no class of the dataset. Mend it.{near(name, class_names)}")
        tags[id] = tuple(sorted({class_names.index(name) for name in names}))
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
        DataError: The file is missing or not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # a byte order mark is dropped
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Mend the path, or write it.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}). Save it as UTF-8.") from error
    stripped = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]
