"""Class names, colours, merged and ignored classes: everything that makes a ``DatasetSpec``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwbass.config import DataConfig
from cwbass.data.base import DatasetSpec, default_palette
from cwbass.data.listing import near
from cwbass.data.lists import read_lines
from cwbass.errors import DataError, ParamsError

Color = tuple[int, int, int]
MAX_CLASSES = 255  # of the 256 values of a mask, one is left for pixels to ignore


@dataclass(frozen=True, slots=True)
class RawClasses:
    """Classes as the masks on disk hold them, before merging and ignoring."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]  # colour of each, for drawing
    ids: Mapping[int, int | None]  # raw value -> place in names, None where the dataset ignores it
    colors: Mapping[Color, int] | None = None  # colour in RGB masks -> place in names


def read_classes(root: Path, config: DataConfig) -> RawClasses:
    """Classes from the parameters, else from classes.txt, else from labelmap.txt below the root.

    A mask value is the class's place in the list. Colours in classes.txt (``name r g b``) are for
    drawing and for RGB masks, if there are any; with data.colors or labelmap.txt all masks are RGB.

    Raises:
        DataError: There is no class list, or a file of classes is malformed.
        ParamsError: data.classes and data.colors do not fit together.
    """
    listed: dict[str, Color | None] = {}
    if (root / "classes.txt").is_file() and config.classes is None:
        listed = read_class_list(root / "classes.txt")
    colors: dict[str, Color] | None = config.colors
    if colors is None and (root / "labelmap.txt").is_file():
        colors = read_labelmap(root / "labelmap.txt")
    names = tuple(config.classes or listed or colors or ())
    if not names:
        raise DataError(f"{root}: no class names. Write classes.txt there, one name a line, or give data.classes.")
    _check_names(names)
    if colors is not None:
        _check_colors(names, colors, "data.colors" if config.colors is not None else f"{root / 'labelmap.txt'}")
        palette = tuple(colors[name] for name in names)
        return RawClasses(names, palette, ids={}, colors=_by_color(palette, names))
    drawn = [color for color in listed.values() if color is not None]
    if not drawn:
        return RawClasses(names, default_palette(len(names)), ids={i: i for i in range(len(names))})
    return RawClasses(names, tuple(drawn), ids={i: i for i in range(len(names))}, colors=_by_color(drawn, names))


def read_class_list(path: Path) -> dict[str, Color | None]:
    """``name`` or ``name r g b`` a line; names may hold spaces.

    Raises:
        DataError: A name comes twice, or only some lines have colours.
    """
    found: dict[str, Color | None] = {}
    for number, line in read_lines(path):
        name, color = line, None
        words = line.rsplit(maxsplit=3)
        if len(words) == 4 and all(word.isdecimal() for word in words[1:]):
            name, color = words[0], _color(words[1:], path, number)
        if name in found:
            raise DataError(f"{path}, line {number}: class {name!r} is listed twice. Remove one of the lines.")
        found[name] = color
    if None in found.values() and any(found.values()):
        bare = next(name for name, color in found.items() if color is None)
        raise DataError(f"{path}: class {bare!r} has no colour, but others do. Give every class a colour, or none.")
    return found


def read_labelmap(path: Path) -> dict[str, Color]:
    """CVAT's colour map, ``name:r,g,b:parts:actions`` a line.

    Raises:
        DataError: A line is malformed, or a name comes twice.
    """
    found: dict[str, Color] = {}
    for number, line in read_lines(path):
        name, _, rest = line.partition(":")
        numbers = rest.split(":")[0].split(",")
        if not name or len(numbers) != 3 or not all(word.strip().isdecimal() for word in numbers):
            raise DataError(f"{path}, line {number}: {line!r} is not of the form name:r,g,b:: (CVAT's label map). Mend the line.")
        if name in found:
            raise DataError(f"{path}, line {number}: class {name!r} is listed twice. Remove one of the lines.")
        found[name] = _color(numbers, path, number)
    return found


def build_spec(raw: RawClasses, config: DataConfig) -> DatasetSpec:
    """Fold data.merge, data.ignore_classes and data.ignore_index into what mask values mean.

    A merged class takes the place and the colour of the first class it takes in; the others keep
    their order.

    Raises:
        ParamsError: A class is unknown, used twice, or nothing is left; or ignore_index is a class.
    """
    if any(value == config.ignore_index and place is not None for value, place in raw.ids.items()) or (
        config.ignore_index < len(raw.names)
    ):
        raise ParamsError(
            f"data.ignore_index is {config.ignore_index}, which is a class of its own. Use 255, and name classes whose "
            f"pixels are to be ignored in data.ignore_classes."
        )
    final = _final_names(raw.names, config)
    names = tuple(dict.fromkeys(name for name in final if name is not None))
    if not names:
        raise ParamsError("data.ignore_classes leaves no class. Remove a name from it.")
    index = [config.ignore_index if name is None else names.index(name) for name in final]
    ids = {value: config.ignore_index if place is None else index[place] for value, place in raw.ids.items()}
    if ids:
        ids.setdefault(config.ignore_index, config.ignore_index)
    return DatasetSpec(
        class_names=names,
        palette=tuple(raw.palette[final.index(name)] for name in names),
        ignore_index=config.ignore_index,
        ids=ids,
        colors=None if raw.colors is None else {color: index[place] for color, place in raw.colors.items()},
    )


def _final_names(names: Sequence[str], config: DataConfig) -> list[str | None]:
    """For every raw class its name after merging, None where it is ignored."""
    becomes: dict[str, str | None] = {}
    for new, old_names in [*config.merge.items(), (None, config.ignore_classes)]:
        key = "data.ignore_classes" if new is None else f"data.merge.{new}"
        for old in old_names:
            if old not in names:
                raise ParamsError(f"{key}: no class {old!r} among {', '.join(names)}.{near(old, names)}")
            if old in becomes:
                raise ParamsError(f"{key}: class {old!r} is merged or ignored already. Name it once.")
            becomes[old] = new
        if new is not None and not old_names:
            raise ParamsError(f"{key} takes in no class. Name the classes it takes in.")
    for new in config.merge:
        if new in names and new not in becomes:
            raise ParamsError(f"data.merge.{new}: {new!r} is a class itself. Name it too: {new}: [{new}, ...].")
    return [becomes.get(name, name) for name in names]


def _check_names(names: Sequence[str]) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ParamsError(f"data.classes names {twice!r} twice. Every class needs its own name.")
    if len(names) > MAX_CLASSES:
        raise ParamsError(f"{len(names)} classes; masks of 8 bits hold at most {MAX_CLASSES} and the value to ignore.")


def _check_colors(names: Sequence[str], colors: Mapping[str, Color], source: str) -> None:
    for name in colors:
        if name not in names:
            raise ParamsError(
                f"{source}: {name!r} is not a class ({', '.join(names)}).{near(name, names)} Add it to the class list; "
                "data.ignore_classes can then ignore its pixels."
            )
    for name in names:
        if name not in colors:
            raise ParamsError(f"{source}: class {name!r} has no colour. Add one.")


def _by_color(palette: Sequence[Color], names: Sequence[str]) -> dict[Color, int]:
    places: dict[Color, int] = {}
    for place, color in enumerate(palette):
        if color in places:
            raise ParamsError(f"classes {names[places[color]]!r} and {names[place]!r} have the same colour {color}. Change one.")
        places[color] = place
    return places


def _color(words: Sequence[str], path: Path, number: int) -> Color:
    red, green, blue = (int(word) for word in words)
    if max(red, green, blue) > 255:
        raise DataError(f"{path}, line {number}: colour {red},{green},{blue} exceeds 255. Write three numbers of 0 to 255.")
    return red, green, blue
