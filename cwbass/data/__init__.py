"""From files to samples: layouts, lists, classes.

A new layout is one function ``(root, config) -> DatasetFiles`` and one line in ``LAYOUTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cwbass.config import DataConfig, SplitConfig
from cwbass.data.base import DatasetSpec, Sample
from cwbass.data.cityscapes import cityscapes
from cwbass.data.folder import folder
from cwbass.data.listing import DatasetFiles, Listing
from cwbass.data.lists import find_list, read_ids, read_tags
from cwbass.data.pascal_voc import pascal_voc
from cwbass.errors import DataError, counted
from cwbass.plugins import Registry

__all__ = ["LAYOUTS", "Listing", "list_dataset"]

TAGS = "tags.txt"  # below the root of any layout

LAYOUTS: Registry[Callable[[Path, DataConfig], DatasetFiles]] = Registry(
    {"folder": folder, "pascal_voc": pascal_voc, "cityscapes": cityscapes}
)


def list_dataset(config: DataConfig, split: SplitConfig, root: Path) -> Listing:
    """Training and test samples of a dataset, by name alone: no image or mask is opened.

    ``split.train_list`` and ``split.test_list`` take the place of the layout's own lists; list
    files are looked for below ``root`` first. ``tags.txt`` there says which classes whole images show.

    Args:
        config: The section ``data``, but for its root.
        split: The section ``split``; its two lists of images alone are read.
        root: Folder of the dataset.

    Raises:
        DataError: Files or lists are missing or do not fit together; the message names them.
        ParamsError: The section ``data`` names unknown classes or contradicts itself.
    """
    files = LAYOUTS[config.layout](root, config)
    if not files.images:
        raise DataError(f"{root}: no images. Check data.root and data.layout ({config.layout}).")
    test = files.test
    if split.test_list is not None:
        test = read_ids(find_list(split.test_list, root, "split.test_list"), files.images)
    train: Iterable[str] = files.train
    if split.train_list is not None:
        train = read_ids(find_list(split.train_list, root, "split.train_list"), files.images)
    elif split.test_list is not None:
        train = set(train) - set(test)  # the layout's own list gives way to the one that is asked for

    training = set(train) | set(files.unlisted)
    in_both = training & set(test)
    if in_both:
        raise DataError(
            f"{root}: {counted(len(in_both), 'image is', 'images are')} listed both for training and for testing, the first "
            f"{min(in_both)!r}. Remove what is in both from one of the lists."
        )
    tags = read_tags(root / TAGS, files.images, _tag_classes(files.spec, config)) if (root / TAGS).is_file() else {}
    return Listing(spec=files.spec, train=_samples(training, files, tags), test=_samples(test, files, tags))


def _tag_classes(spec: DatasetSpec, config: DataConfig) -> dict[str, int | None]:
    """Names that a line of tags may hold, those of before merging and ignoring among them, as masks hold their values."""
    now = {name: index for index, name in enumerate(spec.class_names)}
    merged = {old: now.get(new) for new, old_names in config.merge.items() for old in old_names}
    return {**dict.fromkeys(config.ignore_classes), **merged, **now}


def _samples(ids: Iterable[str], files: DatasetFiles, tags: Mapping[str, tuple[int, ...]]) -> tuple[Sample, ...]:
    return tuple(Sample(id, files.images[id], files.masks.get(id), tags=tags.get(id)) for id in sorted(ids))
