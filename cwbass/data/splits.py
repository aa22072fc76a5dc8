"""Which image plays which role: drawn from the seed, or read from the field's lists.

Adding an image without a mask changes no other role. Adding one with a mask moves few: every role
is a prefix of an order by digests (see ``cwbass.data.draws``), so an old image moves only if it
stood beside the border.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cwbass.config import SplitConfig
from cwbass.data.base import DatasetSpec, Sample, read_mask
from cwbass.data.draws import draw, group_of
from cwbass.data.inspection import MaskFacts, inspect_mask
from cwbass.data.listing import Listing, unread_masks
from cwbass.data.lists import find_list, read_ids
from cwbass.data.manifest import Manifest
from cwbass.data.parallel import map_threads
from cwbass.errors import DataError, ParamsError, counted

NOTHING_SEEN: Mapping[str, MaskFacts] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Candidates:
    """Training images by what may become of them, before any mask is opened."""

    named: tuple[Sample, ...]  # labelled, because labeled_list says so
    masked: tuple[Sample, ...]  # others whose masks a draw may use
    bare: tuple[Sample, ...]  # never labelled; mask None, even if there is a file


@dataclass(frozen=True, slots=True)
class Draw:
    """A manifest and what it was drawn from."""

    manifest: Manifest
    pool_pixels: tuple[int, ...]  # of each class, in all images that are labelled or could have been


def draw_split(
    listing: Listing, config: SplitConfig, *, root: Path, seed: int, seen: Mapping[str, MaskFacts] = NOTHING_SEEN
) -> Manifest:
    """The manifest of :func:`draw_roles`."""
    return draw_roles(listing, config, root=root, seed=seed, seen=seen).manifest


def draw_roles(
    listing: Listing, config: SplitConfig, *, root: Path, seed: int, seen: Mapping[str, MaskFacts] = NOTHING_SEEN
) -> Draw:
    """Give every image its role.

    - test: the listing's, or else a share of the images with masks, in whole groups. Other images
      of these groups take no part.
    - labeled: labeled_list; or else a count or share of the remaining images with masks, or all.
    - selection: a share of the labelled images, in whole groups, never the last image of a class.
      Unlabelled images of these groups stay in training: nothing is known of their labels.
    - unlabeled: unlabeled_list, or else all the rest.

    Args:
        listing: What ``list_dataset`` found.
        config: The section ``split``.
        root: Folder the samples' paths are relative to. Only masks that may be used are opened.
        seed: Of every draw.
        seen: What was seen of masks that have been read already, by their paths.

    Raises:
        DataError: A list does not fit the data, a mask is wrong, or there is nothing to label or
            to test on.
        ParamsError: A number or the pattern of ``config`` does not fit the data.
    """
    pattern = compile_pattern(config.group_pattern)
    found = find_candidates(listing, config, root)
    named = count_pixels(found.named, listing.spec, root, seen)
    masked = count_pixels(found.masked, listing.spec, root, seen)

    test, unread = listing.test, unread_masks(root, listing)
    bare, notes = found.bare, []
    if not test:
        named_groups = {group_of(sample.id, pattern) for sample in named}
        test = _carve_test([s for s in masked if group_of(s.id, pattern) not in named_groups], config, seed, pattern, unread)
        test_groups = {group_of(sample.id, pattern) for sample in test}
        masked = tuple(sample for sample in masked if group_of(sample.id, pattern) not in test_groups)
        bare = tuple(sample for sample in bare if group_of(sample.id, pattern) not in test_groups)
        if len(bare) < len(found.bare):
            one, many = "image without a mask takes no part: its group is", "images without masks take no part: their groups are"
            notes.append(f"{counted(len(found.bare) - len(bare), one, many)} tested on.")

    labeled = named if config.labeled_list is not None else _draw_labeled(masked, config, seed, pattern)
    selection = _carve_selection(labeled, config, seed, pattern)
    if not selection:
        notes.append(no_selection(len(labeled), config))
    if pattern is not None and len(labeled) < len(named + masked):
        num_groups = len({group_of(sample.id, pattern) for sample in labeled})
        come = counted(len(labeled), "labelled image comes", "labelled images come")
        notes.append(f"The {come} from {counted(num_groups, 'group')}.")
    unlabeled = bare if config.unlabeled_list is not None else _without(bare + masked, labeled)
    if not unlabeled:
        notes.append("No unlabelled images: training can only be supervised.")

    manifest = Manifest(
        spec=listing.spec,
        labeled=_without(labeled, selection),
        unlabeled=_stripped(unlabeled),
        selection=selection,
        test=tuple(replace(sample, pixels=None) for sample in test),
        notes=tuple(notes),
        seed=seed,
    )
    return Draw(manifest, pool_pixels=_sum_pixels(named + masked, listing.spec))


def find_candidates(listing: Listing, config: SplitConfig, root: Path) -> Candidates:
    """Sort training images by the split's lists; no image or mask is opened.

    An id in both lists is labelled.

    Args:
        listing: What ``list_dataset`` found.
        config: The section ``split``.
        root: Folder of the dataset; lists are looked for there first.

    Raises:
        DataError: A list names an unknown id, a test image, or a labelled image without mask; or
            a test image has no mask.
    """
    for sample in listing.test:
        if sample.mask is None:
            raise DataError(
                f"test image {sample.id!r} ({sample.image}) has no mask. Add it, or take the id off the test list."
                f"{unread_masks(root, listing)}"
            )
    labeled = _read_train_ids(config.labeled_list, "split.labeled_list", listing, root)
    unlabeled = _read_train_ids(config.unlabeled_list, "split.unlabeled_list", listing, root, may_be_empty=True)
    # With the labelled images and the test images named, no other mask has any use.
    masks_in_play = labeled is None or not listing.test

    named, masked, bare = [], [], []
    for sample in listing.train:
        if labeled is not None and sample.id in labeled:
            if sample.mask is None:
                raise DataError(f"split.labeled_list names {sample.id!r}, which has no mask. Add the mask or remove the id.")
            named.append(sample)
        elif unlabeled is not None and sample.id in unlabeled:
            bare.append(sample)
        elif sample.mask is not None and masks_in_play:
            masked.append(sample)
        elif unlabeled is None:
            bare.append(sample)
    return Candidates(tuple(named), tuple(masked), _stripped(bare))


def count_pixels(
    samples: Sequence[Sample], spec: DatasetSpec, root: Path, seen: Mapping[str, MaskFacts] = NOTHING_SEEN
) -> tuple[Sample, ...]:
    """The samples with ``pixels`` counted in their masks.

    Args:
        samples: All have a mask.
        spec: Maps mask values.
        root: Folder that the samples' paths are relative to.
        seen: What was seen of masks by their paths: these are not read again.

    Raises:
        DataError: A mask cannot be read or holds a value of no class.
    """

    def count(sample: Sample) -> Sample:
        assert sample.mask is not None
        facts = seen.get(sample.mask) or inspect_mask(root / sample.mask, spec)
        if not facts.sound:
            read_mask(root / sample.mask, spec)  # raises, and says what is wrong
        return replace(sample, pixels=facts.pixels)

    return tuple(map_threads(count, samples))


def selection_size(labeled: int, config: SplitConfig) -> int:
    """Images of the selection slice that ``config`` asks for, of as many labelled ones; 0 where it would have too few."""
    count = round(config.selection * labeled)
    return count if count >= config.min_selection else 0


def no_selection(labeled: int, config: SplitConfig) -> str:
    """What to say of a split of as many labelled images that has no selection slice."""
    return (
        f"No selection slice: split.selection ({config.selection:g}) of {labeled} labelled images gives fewer than "
        f"split.min_selection ({config.min_selection}) that can be spared; the last checkpoint counts."
    )


def compile_pattern(text: str | None) -> re.Pattern[str] | None:
    """Compile split.group_pattern.

    Raises:
        ParamsError: It is no regular expression.
    """
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ParamsError(f"split.group_pattern {text!r} is no regular expression ({error}).") from error


def _read_train_ids(
    name: str | None, key: str, listing: Listing, root: Path, *, may_be_empty: bool = False
) -> frozenset[str] | None:
    """Ids of a list of training images, None where there is no list."""
    if name is None:
        return None
    path = find_list(name, root, key)
    images = {sample.id: sample.image for sample in (*listing.train, *listing.test)}
    ids = frozenset(read_ids(path, images, may_be_empty=may_be_empty))
    tested = ids & {sample.id for sample in listing.test}
    if tested:
        raise DataError(
            f"{path}: {counted(len(tested), 'id is', 'ids are')} tested on, the first {min(tested)!r}. Remove them from {key}."
        )
    return ids


def _carve_test(
    pool: Sequence[Sample], config: SplitConfig, seed: int, pattern: re.Pattern[str] | None, unread: str
) -> tuple[Sample, ...]:
    if not pool:
        raise DataError(
            "no image with a mask is left to test on. Add masks, check that they are named as the images, or name test images in "
            f"split.test_list.{unread}"
        )
    if config.test == 0:
        raise ParamsError("split.test is 0 and the dataset names no test images. Give a share, or split.test_list.")
    smallest = min(Counter(group_of(sample.id, pattern) for sample in pool).values(), default=1)
    # A share of less than one group would leave nothing to test on.
    test = draw(pool, max(smallest, round(config.test * len(pool))), seed=seed, pattern=pattern, hold_out=True)
    if not test:
        masked = counted(len(pool), "image with a mask", "images with masks")
        raise DataError(
            f"no test images can be spared from {masked}: every class must stay in training, and "
            "groups stay whole. Add masks, name test images in split.test_list, or make split.group_pattern finer."
        )
    return test


def check_pool(pool: Sequence[Sample], config: SplitConfig) -> None:
    """Raise a DataError or ParamsError unless as many labelled images as ``config`` asks for can be drawn from the pool."""
    if not pool:
        raise DataError("no image with a mask is left to be labelled. Add masks, or check that they are named as the images.")
    if config.labeled is not None and config.labeled > len(pool):
        raise ParamsError(
            f"split.labeled is {config.labeled}, but beside the test set only "
            f"{counted(len(pool), 'image has a mask', 'images have masks')}. Ask for no more, or give null for all."
        )


def _draw_labeled(pool: Sequence[Sample], config: SplitConfig, seed: int, pattern: re.Pattern[str] | None) -> tuple[Sample, ...]:
    check_pool(pool, config)
    if config.labeled is None:
        return tuple(pool)
    count = config.labeled if isinstance(config.labeled, int) else max(1, round(config.labeled * len(pool)))
    return draw(pool, count, seed=seed, pattern=pattern, hold_out=False)


def _carve_selection(
    labeled: Sequence[Sample], config: SplitConfig, seed: int, pattern: re.Pattern[str] | None
) -> tuple[Sample, ...]:
    count = selection_size(len(labeled), config)
    drawn = draw(labeled, count, seed=seed, pattern=pattern, hold_out=True) if count else ()
    return drawn if len(drawn) >= config.min_selection else ()


def _without(samples: Iterable[Sample], taken: Iterable[Sample]) -> tuple[Sample, ...]:
    ids = {sample.id for sample in taken}
    return tuple(sample for sample in samples if sample.id not in ids)


def _stripped(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Sorted by id, without masks and pixels."""
    bare = (
        sample if sample.mask is None and sample.pixels is None else Sample(sample.id, sample.image, tags=sample.tags)
        for sample in samples
    )
    return tuple(sorted(bare, key=attrgetter("id")))


def _sum_pixels(samples: Iterable[Sample], spec: DatasetSpec) -> tuple[int, ...]:
    total = np.zeros(spec.num_classes, dtype=np.int64)
    for sample in samples:
        total += np.array(sample.pixels, dtype=np.int64)
    return tuple(int(n) for n in total)
