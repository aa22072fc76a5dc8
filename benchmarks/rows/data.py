"""What the data pipeline costs: batches of crops against no more than decoding their files, and against the field's pipeline.

Both sides read the same labelled and unlabelled files once, half and half. Ours makes of them the batches of a training
step (weak crops with masks; weak and strong views), as one loader process makes them, on one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.field_pipeline import field_item
from benchmarks.harness import Pair, Row, at_least
from benchmarks.photos import CITY, VOC, write_photos
from cwbass.config import AugmentConfig
from cwbass.data.base import DatasetSpec, Sample, default_palette
from cwbass.data.cache import open_source
from cwbass.data.streams import LabeledStream, UnlabeledStream, collate
from cwbass.memory import keep_freed_memory

CLASSES = 21
BATCH = 4
SPEC = DatasetSpec(
    tuple(f"class{index}" for index in range(CLASSES)),
    default_palette(CLASSES),
    ids={**{index: index for index in range(CLASSES)}, 255: 255},
)
CROP = {VOC: AugmentConfig(crop_size=321, scale=(0.5, 2.0)), CITY: AugmentConfig(crop_size=721, scale=(0.5, 2.0))}
FILES = {VOC: 16, CITY: 8}

_keep: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def measure(size: tuple[int, int], kind: str, cached: bool, against: str, repeats: int) -> Pair:
    """A row: ours from files or from a cache that is filled, against ``decode`` or the ``field``."""
    keep_freed_memory()  # as every command does
    _keep.append(tempfile.TemporaryDirectory(prefix="cwbass-bench-"))
    root = Path(_keep[-1].name)
    samples = write_photos(root, FILES[size], size, CLASSES, kind=kind)
    labeled, unlabeled = samples[::2], tuple(Sample(sample.id, sample.image) for sample in samples[1::2])
    theirs, note = decoder(kind) if against == "decode" else (partial(field_item, augment=CROP[size]), "")
    return Pair(
        ours=one_thread(pipeline(labeled, unlabeled, root, CROP[size], root / "cache" if cached else None)),
        against=one_thread(lambda: [theirs(root, sample) for sample in labeled + unlabeled]),
        clock=time.process_time,
        note=note,
    )


def pipeline(
    labeled: tuple[Sample, ...], unlabeled: tuple[Sample, ...], root: Path, augment: AugmentConfig, cache: Path | None
) -> Callable[[], object]:
    """Every image once, in batches; the next call draws anew."""
    one = LabeledStream(open_source(labeled, root, SPEC, cache), augment, ignore_index=255, seed=0)
    two = UnlabeledStream(open_source(unlabeled, root, SPEC, cache), augment, seed=0)
    cycle = count()

    def batches() -> object:
        start = next(cycle) * len(labeled)
        last: Any = None
        for first in range(start, start + len(labeled), BATCH):
            positions = range(first, first + BATCH)
            last = collate([one[p] for p in positions]), collate([two[p] for p in positions])
        return last

    return batches


def decoder(kind: str) -> tuple[Callable[[Path, Sample], None], str]:
    """The fastest way to get at the pixels of a sample's files, and its name."""
    try:
        import simplejpeg
    except ModuleNotFoundError:
        simplejpeg, note = None, "JPEG by Pillow's libjpeg-turbo; simplejpeg, of the extra `bench`, is not installed"
    else:
        note = "JPEG by simplejpeg's libjpeg-turbo"

    def decode(root: Path, sample: Sample) -> None:
        if kind == "jpg" and simplejpeg is not None:
            simplejpeg.decode_jpeg((root / sample.image).read_bytes())
        else:
            load(root / sample.image)
        if sample.mask is not None:
            load(root / sample.mask)

    return decode, f"{note if kind == 'jpg' else 'PNG by Pillow'}; masks by Pillow"


def load(path: Path) -> None:
    with Image.open(path) as file:
        file.load()


def one_thread(call: Callable[[], object]) -> Callable[[], object]:
    """As in a loader process."""

    def wrapped() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return wrapped


def _rows() -> tuple[Row, ...]:
    rows = []
    for place, size, kind in (("voc", VOC, "jpg"), ("city", CITY, "jpg"), ("city_png", CITY, "png")):
        for cached in (True, False):
            name = f"data.{place}" if cached else f"data.{place}_files"
            what = f"batches of {size[1]} x {size[0]} {kind}, {'decoded once before' if cached else 'from files'}"
            against = "decoding them"
            run = partial(measure, size, kind, cached, "decode")
            rows.append(Row(name, what, against, at_least(0.6), run, 31 if size == VOC else 7))
    for place, size in (("voc", VOC), ("city", CITY)):
        run = partial(measure, size, "jpg", False, "field")
        what = f"batches of {size[1]} x {size[0]} jpg, from files"
        rows.append(
            Row(
                f"data.{place}_field",
                what,
                "a pipeline of Pillow as the field writes it",
                at_least(3),
                run,
                15 if size == VOC else 7,
            )
        )
    return tuple(rows)


ROWS = _rows()
