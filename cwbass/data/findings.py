"""The rules of the data check: what was seen of the files -> findings with their mend."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from textwrap import indent
from typing import Any, Literal

import numpy as np
import yaml

from cwbass.config import AugmentConfig
from cwbass.data.base import UNREAD_SUFFIXES, DatasetSpec, Sample, claim
from cwbass.data.inspection import RGB, Foreign, ImageFacts, MaskFacts, Value
from cwbass.data.listing import Listing
from cwbass.data.near_duplicates import near_pairs
from cwbass.data.sizes import median_of, small_crop
from cwbass.errors import counted

EXAMPLES = 20  # files named in the details of a finding about many
SOFT = 0.1  # share of borders with a value in between; CamVid's masks have 0.004, and 0.15 to 0.6 once they are smoothed
SOFT_PIXELS = 20  # of such, below which nothing is said
NAMED = 5  # files named in a message that asks to export each of them anew
MOSTLY = 0.8  # a folder in which this share of the images has masks is taken for a labelled one


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (error) or may be (warning), and how to mend it."""

    severity: Literal["error", "warning"]
    kind: str
    file: str | None  # relative to the dataset's root; the first of many; None: no file in particular
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON values

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class File:
    """One sample with its role and what was seen of it."""

    role: str
    sample: Sample
    image: ImageFacts
    mask: MaskFacts | None  # None where the mask must not be opened, or there is none


def unreadable(files: Sequence[File]) -> Iterator[Finding]:
    """Images and masks that cannot be decoded."""
    for file in files:
        if file.image.error is not None:
            message = f"{file.sample.image}: cannot be decoded ({file.image.error}). Replace or remove the file."
            yield Finding("error", "unreadable", file.sample.image, message)
        if file.mask is not None and file.mask.error is not None:
            yield Finding("error", "unreadable", file.sample.mask, file.mask.error)


def rgb_masks(files: Sequence[File], spec: DatasetSpec) -> Iterator[Finding]:
    """RGB masks without a colour map, and a proposal for one."""
    found = _masks(files, lambda mask: not mask.mappable and mask.is_rgb)
    others = _masks(files, lambda mask: not mask.is_rgb)
    if found and len(found) <= len(others):
        yield _mixed("rgb_mask", found, len(others))
    elif found:
        colors: Counter[Value] = Counter()
        for _, mask in found:
            colors.update({color: foreign.pixels for color, foreign in mask.foreign.items()})
        proposal = _propose_colors([color for color, _ in colors.most_common(EXAMPLES)], spec)
        lines, said = _color_lines(proposal, spec)
        yield _about(
            "error",
            "rgb_mask",
            _names(found),
            f"{counted(len(found), 'mask is', 'masks are')} RGB and there is no colour map; the first is {found[0][0]}. "
            f"{counted(len(colors), 'colour is', 'colours are')} seen. Write a labelmap.txt, or "
            f"the lines below under data: in the parameters.{said}",
            colors=[[*_triple(color), pixels] for color, pixels in colors.most_common(EXAMPLES)],
            yaml=lines,
        )


def index_masks(files: Sequence[File]) -> Iterator[Finding]:
    """Index masks where only colours are expected."""
    found = _masks(files, lambda mask: not mask.mappable and not mask.is_rgb)
    others = _masks(files, lambda mask: mask.is_rgb)
    if found and len(found) <= len(others):
        yield _mixed("index_mask", found, len(others))
    elif found and others:
        yield _mixed("index_mask", others, len(found), then=" Then remove the colour map.")
    elif found:
        yield _about(
            "error",
            "index_mask",
            _names(found),
            f"{counted(len(found), 'mask holds', 'masks hold')} indices, but data.colors or labelmap.txt says RGB; the first is "
            f"{found[0][0]}. Remove the colour map or export the masks as RGB.",
        )


def _mixed(kind: str, few: Sequence[tuple[str, MaskFacts]], others: int, *, then: str = "") -> Finding:
    """Masks of another kind than most: what is said of all, to write a colour map or to remove it, would only turn the error round."""
    names = ", ".join(name for name, _ in few[:NAMED]) + (", ..." if len(few) > NAMED else "")
    said = (
        f"{counted(len(few), 'mask is', 'masks are')} RGB, while {others} hold indices. Export as indices: {names}."
        if few[0][1].is_rgb
        else f"{counted(len(few), 'mask holds', 'masks hold')} indices, while {others} are RGB. Export as RGB: {names}."
    )
    return _about("error", kind, _names(few), said + then)


def _propose_colors(colors: Iterable[Value], spec: DatasetSpec) -> dict[str, tuple[int, int, int]]:
    """A name for each colour: by the palette, by an index written as grey, else ``unknown_1``, ``unknown_2``, ...

    Where most colours get none so, it is another palette, which shares a colour with ours by chance: none is named then.
    """
    by_color = dict(zip(spec.palette, spec.class_names, strict=True))
    by_color |= {(i, i, i): name for i, name in enumerate(spec.class_names) if (i, i, i) not in by_color}
    triples = list(map(_triple, colors))
    if 2 * len({by_color[color] for color in triples if color in by_color}) < len(triples):
        by_color = {}
    named: dict[str, tuple[int, int, int]] = {}
    rest: list[tuple[int, int, int]] = []
    for color in triples:
        name = by_color.get(color)
        if name is None or name in named:
            rest.append(color)
        else:
            named[name] = color
    in_order = {name: named[name] for name in spec.class_names if name in named}
    return in_order | {f"unknown_{number}": color for number, color in enumerate(rest, start=1)}


def _color_lines(proposal: Mapping[str, RGB], spec: DatasetSpec) -> tuple[str, str]:
    """YAML for the section ``data`` that reads masks of these colours, and what to say of those without a name."""
    unnamed = [name for name in proposal if name not in spec.class_names]
    keys: dict[str, Any] = {"classes": list(proposal), "colors": {name: list(color) for name, color in proposal.items()}}
    said = ""
    if unnamed and len(proposal) - len(unnamed) == spec.num_classes:
        keys["ignore_classes"] = unnamed  # every class has its colour, so these are borders, or pixels without a label
        said = f" They ignore {', '.join(unnamed)}, for every class has a colour."
    elif unnamed:
        said = f" Put their own names for {', '.join(unnamed)}; name those to ignore in data.ignore_classes, too."
    lines = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, default_flow_style=None, width=math.inf)
    return indent(lines, "  "), said


def _triple(color: Value) -> tuple[int, int, int]:
    assert isinstance(color, tuple)
    return color


def _is_binary(files: Sequence[File], spec: DatasetSpec) -> bool:
    """Whether 255 stands for the one class beside the background, not for pixels to ignore."""
    masks = [file.mask for file in files if file.mask is not None and file.mask.error is None]
    only = bool(masks) and all(mask.mappable and mask.only_0_and_255 for mask in masks)
    no_class = spec.ids.get(255, spec.ignore_index) == spec.ignore_index
    return only and no_class and any(mask.has_zero for mask in masks) and any(mask.has_255 for mask in masks)


def binary(files: Sequence[File], spec: DatasetSpec) -> Iterator[Finding]:
    """Masks of 0 and 255, whose 255 would be ignored."""
    if _is_binary(files, spec):
        names = _names(_masks(files, lambda mask: mask.has_255))
        yield _about(
            "error",
            "binary_mask",
            names,
            f"all masks hold only 0 and 255, and 255 is no class, so nothing but class 0 would be learnt; the first is "
            f"{names[0]}. Write 1 in place of 255: Image.fromarray(np.array(mask) // 255).",
        )


def mixed_binary(files: Sequence[File], spec: DatasetSpec) -> Iterator[Finding]:
    """Masks of 0 and 255 beside others of 0 and 1: in the former all objects are ignored. Where 255 is ignored, it borders objects."""
    masks = _masks(files, lambda mask: mask.mappable and not mask.is_rgb)
    odd = [name for name, mask in masks if mask.has_zero and mask.has_255]
    others = [mask for _, mask in masks if mask.has_zero and not mask.has_255 and not mask.only_0_and_255]
    ignored = spec.num_classes == 2 and spec.ids.get(255, spec.ignore_index) == spec.ignore_index
    if ignored and odd and others and all(mask.only_0_and_255 for _, mask in masks if mask.has_255):
        yield _about(
            "warning",
            "mixed_binary",
            odd,
            f"{counted(len(odd), 'mask holds', 'masks hold')} only 0 and 255, and {counted(len(others), 'other shows', 'others show')} "
            f"both classes and no 255, as where masks of two sources are put together; the first is {odd[0]}. 255 is ignored: if "
            "it is the object there, nothing of it would be learnt. Write 1 in place of it: Image.fromarray(np.array(mask) // 255).",
        )


def foreign_values(files: Sequence[File], spec: DatasetSpec) -> Iterator[Finding]:
    """One finding for each value that no class claims, over all masks."""
    binary = _is_binary(files, spec)
    seen: dict[Value, list[tuple[str, Foreign]]] = {}
    for name, mask in _masks(files, lambda mask: mask.mappable):
        for value, foreign in mask.foreign.items():
            if not (binary and value == 255):  # reported as what it is
                seen.setdefault(value, []).append((name, foreign))
    if len(seen) > EXAMPLES:
        yield _many_values(seen, spec)
        return
    from_one = ""
    if list(seen) == [len(spec.ids.keys() - {spec.ignore_index})]:
        from_one = (
            " But if the masks count classes from 1, give 0 a name on the first line of the list, which data.ignore_classes can "
            "ignore: added last, it leaves every class with the name of the next."
        )
    for value, places in seen.items():
        name, first = places[0]
        total = sum(foreign.pixels for _, foreign in places)
        plain = list(value) if isinstance(value, tuple) else value
        yield _about(
            "error",
            "unknown_value",
            _names(places),
            f"value {plain} belongs to no class: {counted(total, 'pixel')} in {counted(len(places), 'mask')}; the first is "
            f"{name} ({counted(first.pixels, 'pixel')}, first at x={first.x}, y={first.y}). "
            f"{claim(spec, is_rgb=isinstance(value, tuple))}{from_one}",
            value=plain,
            pixels=total,
            first={"pixels": first.pixels, "x": first.x, "y": first.y},
        )


def _many_values(seen: Mapping[Value, Sequence[tuple[str, Foreign]]], spec: DatasetSpec) -> Finding:
    """One finding for more values than anybody has classes left out."""
    pixels = Counter({value: sum(foreign.pixels for _, foreign in places) for value, places in seen.items()})
    names = list(dict.fromkeys(name for places in seen.values() for name, _ in places))
    common = [(list(value) if isinstance(value, tuple) else value, count) for value, count in pixels.most_common(EXAMPLES)]
    return _about(
        "error",
        "unknown_value",
        names,
        f"{len(seen)} values or more belong to no class, in {counted(len(names), 'mask')}, the first {names[0]}; "
        f"most often {', '.join(str(value) for value, _ in common[:3])}. Masks that were resized, smoothed or saved as "
        "JPEG hold such values along every border: export them anew, and resize by nearest neighbour. If they are labels: "
        f"{claim(spec, is_rgb=any(isinstance(value, tuple) for value in seen))}",
        values=[[value, count] for value, count in common],
    )


def soft_borders(files: Sequence[File]) -> Iterator[Finding]:
    """Index masks that were resized or smoothed like pictures: between classes 0 and 2 lies class 1 then."""
    bordered = _masks(files, lambda mask: mask.borders > 0)
    between, borders = sum(mask.between for _, mask in bordered), sum(mask.borders for _, mask in bordered)
    if between >= SOFT_PIXELS and between >= SOFT * borders:
        names = _names(sorted(bordered, key=lambda item: -item[1].between))
        yield _about(
            "warning",
            "soft_borders",
            names,
            f"at {between / borders:.0%} of the borders in masks lies a single pixel whose value is between those beside it, most often "
            f"in {names[0]}. So masks look that were resized or smoothed like pictures: between classes 0 and 2 they have class 1. "
            "Export them anew, and resize by nearest neighbour.",
        )


def palettes(files: Sequence[File], spec: DatasetSpec) -> Iterator[Finding]:
    """Values that have another colour in other masks, or the colour of another class."""
    of_class = {color: index for color, index in (spec.colors or {}).items() if index != spec.ignore_index}
    first: dict[int, tuple[str, RGB]] = {}
    odd: list[tuple[str, str]] = []
    for name, mask in _masks(files, lambda mask: bool(mask.colors)):
        for value, color in mask.colors.items():
            where, before = first.setdefault(value, (name, color))
            index = of_class.get(color)
            if color != before:
                odd.append((name, f"value {value} has the colour {list(color)} in {name}, and {list(before)} in {where}"))
            elif index is not None and index != spec.ids.get(value):
                said = f"value {value} has the colour of {spec.class_names[index]} in {name}"
                odd.append((name, f"{said}, {list(color)}"))
    if odd:
        names = list(dict.fromkeys(name for name, _ in odd))
        yield _about(
            "warning",
            "palette",
            names,
            f"{counted(len(names), 'mask has', 'masks have')} a palette that does not agree with the others or the class list: "
            f"{odd[0][1]}. The value counts and the colour does not: if a program chose the values of each file anew, the "
            "classes are wrong. Export indices, or RGB masks and a colour map.",
        )


def dim(files: Sequence[File]) -> Iterator[Finding]:
    """Images of 16 bits that use the lowest values alone."""
    names = [file.sample.image for file in files if file.image.dim]
    if names:
        yield _about(
            "warning",
            "dim",
            names,
            f"{counted(len(names), 'image')} of more than 8 bits with only the lowest quarter of the values, or less, read as nearly "
            f"black; the first is {names[0]}. Such files often hold 10 to 14 bits: scale all by the same factor and save them "
            "as 8 bits.",
        )


def frames(files: Sequence[File]) -> Iterator[Finding]:
    """Images of several pages or frames."""
    names = [file.sample.image for file in files if file.image.several]
    if names:
        yield _about(
            "warning",
            "frames",
            names,
            f"{counted(len(names), 'image holds', 'images hold')} several pages or frames, and only the first of each is read; the "
            f"first is {names[0]}. Save those that shall count as files of their own.",
        )


def sizes(files: Sequence[File]) -> Iterator[Finding]:
    """Masks of another size than their image."""
    for file in files:
        image, mask = file.image, file.mask
        if mask is None or mask.error is not None or image.error is not None or mask.size == image.size:
            continue
        turned = image.rotated and mask.size == image.size[::-1]
        mend = (
            "The mask was drawn on the image as stored, which EXIF turns: save the image turned and without EXIF."
            if turned
            else "Export the mask at the image's size."
        )
        yield Finding(
            "error",
            "size_mismatch",
            file.sample.mask,
            f"{file.sample.mask} is {_by(mask.size)}, but {file.sample.image} is {_by(image.size)}. {mend}",
            {"image": list(image.size), "mask": list(mask.size)},
        )


def small_crops(files: Sequence[File], views: AugmentConfig) -> Iterator[Finding]:
    """Crops that show so little of an image that hardly an object is seen whole."""
    sizes = [file.image.size[::-1] for file in files if file.image.error is None and file.role != "test"]
    message = small_crop(median_of(sizes), views) if sizes else None
    if message is not None:
        yield Finding("warning", "small_crop", None, message)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def rotated(files: Sequence[File]) -> Iterator[Finding]:
    """Images that reading turns, while their masks stay."""
    names = [file.sample.image for file in files if file.image.rotated and file.mask is not None]
    if names:
        yield _about(
            "warning",
            "exif_rotated",
            names,
            f"{counted(len(names), 'image with a mask is', 'images with masks are')} turned by EXIF, and masks never are; the first "
            f"is {names[0]}. See whether masks were drawn on turned images; if not, save the images turned and without EXIF.",
        )


def all_ignored(files: Sequence[File]) -> Iterator[Finding]:
    """Masks without a pixel of any class."""
    names = _names(_masks(files, lambda mask: mask.mappable and not any(mask.pixels) and not mask.foreign))
    if names:
        yield _about(
            "warning",
            "all_ignored",
            names,
            f"{counted(len(names), 'mask shows', 'masks show')} no class at all, only pixels to ignore; the first is {names[0]}. "
            "Nothing can be learnt from such a mask or measured by it: label or remove it.",
        )


def missing_classes(files: Sequence[File], spec: DatasetSpec) -> Iterator[Finding]:
    """Classes that a role with masks shows nowhere."""
    effect = {"selection": "no checkpoint is chosen by it", "test": "it is not measured, and counts as 0 where it is predicted"}
    for role in dict.fromkeys(file.role for file in files):
        masks = [mask.pixels for _, mask in _masks([f for f in files if f.role == role], lambda mask: bool(mask.pixels))]
        if not masks:
            continue
        missing = [name for name, pixels in zip(spec.class_names, np.sum(masks, axis=0), strict=True) if pixels == 0]
        if missing:
            yield Finding(
                "warning",
                "missing_class",
                None,
                f"no {role} mask shows {', '.join(missing)}: {effect.get(role, 'it cannot be learnt')}. Add images that do, or "
                "take the class off the list (data.merge, data.ignore_classes).",
                {"role": role, "classes": missing},
            )


def near_duplicates(files: Sequence[File]) -> Iterator[Finding]:
    """One finding for each two roles that share images."""
    hashed = [file for file in files if file.image.hash is not None]
    roles = list(dict.fromkeys(file.role for file in hashed))
    hashes = np.array([file.image.hash for file in hashed], dtype=np.uint32).reshape(-1, 4)
    role_of = np.array([roles.index(file.role) for file in hashed], dtype=np.int64)
    pairs = near_pairs(hashes, role_of)
    of_pairs = np.sort(role_of[pairs], axis=1)  # [P, 2]
    for one, other in combinations(range(len(roles)), 2):
        between = pairs[(of_pairs == (one, other)).all(axis=1)]
        if not len(between):
            continue
        names = [[hashed[i].sample.image, hashed[j].sample.image] for i, j in between[:EXAMPLES]]
        leaks = {"selection", "test"} & {roles[one], roles[other]}
        yield Finding(
            "warning",
            "near_duplicate",
            names[0][0],
            f"look-alikes among {roles[one]} and {roles[other]} images: {counted(len(between), 'pair')}, such as {names[0][0]} "
            f"and {names[0][1]}. "
            + (
                f"What is measured on {min(leaks)} is too good then: remove one of each, or keep such images together with "
                "split.group_pattern."
                if leaks
                else "The second teaches little: one of each is enough."
            ),
            {"roles": [roles[one], roles[other]], "count": len(between), "pairs": names},
        )


def lost_masks(listing: Listing) -> Iterator[Finding]:
    """Images without a mask in a folder where nearly all have one."""
    folders: dict[str, list[Sample]] = {}
    for sample in listing.train:
        folders.setdefault(posixpath.dirname(sample.image), []).append(sample)
    for folder, samples in folders.items():
        bare = [sample.image for sample in samples if sample.mask is None]
        if bare and len(bare) <= (1 - MOSTLY) * len(samples):
            yield _about(
                "warning",
                "no_mask",
                bare,
                f"{len(bare)} of {len(samples)} images in {folder or '.'} without a mask, counted as unlabelled; the first is "
                f"{bare[0]}. If it was not meant so, name the masks as the images.",
            )


def unread(names: Iterable[str]) -> Iterator[Finding]:
    """Photographs and videos of kinds that nothing reads. names: files below the dataset's root."""
    found = sorted(name for name in names if posixpath.splitext(name)[1].lower() in UNREAD_SUFFIXES)
    if found:
        kinds = Counter(posixpath.splitext(name)[1].lower() for name in found)
        yield _about(
            "warning",
            "unread_kind",
            found,
            f"{counted(len(found), 'file is a photograph or video', 'files are photographs or videos')} of kinds that are not read: "
            f"{', '.join(f'{kind} ({count})' for kind, count in kinds.most_common())}; the first is {found[0]}. "
            "Save photographs as JPEG or PNG, and videos as frames.",
        )


def _masks(files: Iterable[File], keep: Callable[[MaskFacts], bool]) -> list[tuple[str, MaskFacts]]:
    """Path and facts of the masks that were decoded and that ``keep``."""
    return [
        (file.sample.mask or "", file.mask)
        for file in files
        if file.mask is not None and file.mask.error is None and keep(file.mask)
    ]


def _names(found: Iterable[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in found]


def _about(severity: Literal["error", "warning"], kind: str, names: Sequence[str], message: str, **details: Any) -> Finding:
    """A finding about many files, which counts them and names some."""
    return Finding(severity, kind, names[0], message, {**details, "count": len(names), "files": names[:EXAMPLES]})
