"""Endless streams of training samples, each a pure function of (seed, stream, position).

There is no loader state: sample number ``position`` is the same whatever was asked before, by
whichever worker, in whichever process. Continuing at step k is starting the loader at k.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cwbass.config import AugmentConfig
from cwbass.data.base import Sample
from cwbass.data.cache import ImageSource
from cwbass.data.transforms import Geometry, crop_mask, crop_valid, draw_geometry, fit_image, strong_view
from cwbass.errors import CwbassError, ServiceError, one_line
from cwbass.memory import keep_freed_memory
from cwbass.types import Batch, LabeledBatch, UnlabeledBatch
from cwbass.world import ALONE, World

B = TypeVar("B")
Stream = Literal["labeled", "unlabeled"]
_STREAM_KEY: dict[Stream, int] = {"labeled": 1, "unlabeled": 2}
_ORDER, _VIEW = 0, 1
PREFETCH = 4  # batches that each loader process holds ready


@lru_cache(maxsize=4)
def _order(seed: int, key: int, cycle: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, key, _ORDER, cycle]).permutation(length)


def index_at(position: int, length: int, *, seed: int, stream: Stream) -> int:
    """Which of ``length`` items stands at ``position`` of an endless shuffled stream.

    Every run of ``length`` positions that starts at a multiple of it is a permutation.

    Args:
        position: >= 0.
        length: Items, >= 1.
        seed: The run's seed.
        stream: Two streams of one seed are shuffled apart.

    Returns:
        In [0, length).
    """
    cycle, offset = divmod(position, length)
    return int(_order(seed, _STREAM_KEY[stream], cycle, length)[offset])


def view_rng(seed: int, stream: Stream, position: int) -> np.random.Generator:
    """What draws the views at ``position`` of a stream."""
    return np.random.default_rng([seed, _STREAM_KEY[stream], _VIEW, position])


def tag_table(samples: Sequence[Sample], num_classes: int) -> Tensor | None:
    """Tags of each sample, as :class:`UnlabeledBatch` has them; None where none has any. [N, C] int8."""
    if all(sample.tags is None for sample in samples):
        return None
    table = torch.full((len(samples), num_classes), -1, dtype=torch.int8)
    for row, sample in zip(table, samples, strict=True):
        if sample.tags is not None:
            row[:] = 0
            row[list(sample.tags)] = 1
    return table


class LabeledStream(Dataset[LabeledBatch]):
    """Weakly augmented labelled crops of S x S pixels, each as a batch has it but for the first axis; ``tags`` of each image."""

    def __init__(
        self,
        source: ImageSource,
        augment: AugmentConfig,
        *,
        ignore_index: int,
        seed: int,
        tags: Tensor | None = None,
        places: bool = False,
    ) -> None:
        self.source, self.augment, self.ignore_index, self.seed = source, augment, ignore_index, seed
        self.tags, self.places = tags, places

    def __getitem__(self, position: int) -> LabeledBatch:
        index = index_at(position, len(self.source), seed=self.seed, stream="labeled")
        geometry = draw_geometry(self.source.size(index), self.augment, view_rng(self.seed, "labeled", position))
        image, size = self.source.image(index, geometry.box), self.augment.crop_size
        mask = crop_mask(self.source.mask(index), geometry, size, self.ignore_index)
        return LabeledBatch(
            fit_image(image, geometry, size),
            mask,
            tags=None if self.tags is None else self.tags[index],
            place=geometry.place(index) if self.places else None,
        )


class UnlabeledStream(Dataset[UnlabeledBatch]):
    """Weak and strong view of each unlabelled crop, of S x S pixels. A second strong view leaves the first and the weak one as they are."""

    def __init__(
        self,
        source: ImageSource,
        augment: AugmentConfig,
        *,
        seed: int,
        strong_views: int = 1,
        tags: Tensor | None = None,
        places: bool = False,
    ) -> None:
        self.source, self.augment, self.seed, self.strong_views = source, augment, seed, strong_views
        self.tags, self.places = tags, places

    def __getitem__(self, position: int) -> UnlabeledBatch:
        index = index_at(position, len(self.source), seed=self.seed, stream="unlabeled")
        rng = view_rng(self.seed, "unlabeled", position)
        geometry = draw_geometry(self.source.size(index), self.augment, rng)
        weak = fit_image(self.source.image(index, geometry.box), geometry, self.augment.crop_size)
        first, *more = (strong_view(weak, self.augment, rng) for _ in range(self.strong_views))
        return UnlabeledBatch(
            weak,
            first,
            crop_valid(geometry, self.augment.crop_size),
            *self._labels(index, geometry),
            strong2=more[0] if more else None,
            tags=None if self.tags is None else self.tags[index],
            place=geometry.place(self._number(index)) if self.places else None,
        )

    def _labels(self, index: int, geometry: Geometry) -> tuple[Tensor | None, Tensor | None]:
        """Label and confidence of a crop, where they were made before. [S, S] uint8 each."""
        return None, None

    def _number(self, index: int) -> int:
        """Place of an image among all unlabelled ones."""
        return index


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """A batch, of images in channels_last."""
    shape = (len(tensors), *tensors[0].shape)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    batch = torch.empty(shape, dtype=tensors[0].dtype, memory_format=layout)
    for slot, tensor in zip(batch, tensors, strict=True):
        if len(shape) == 4 and tensor.stride(0) != 1:  # plane by plane, by numpy: a third of the time of torch's copy
            for into, plane in zip(slot.numpy(), tensor.numpy(), strict=True):
                into[...] = plane
        else:
            slot.copy_(tensor)
    return batch


def collate(items: Sequence[Batch]) -> Batch:
    """A batch of the crops of a stream."""
    columns = ([getattr(item, each.name) for item in items] for each in fields(items[0]))
    stacked: list[Any] = [None if column[0] is None else _stack(column) for column in columns]
    return type(items[0])(*stacked)


class _Positions:
    """A sampler that counts: this process's part of each batch."""

    def __init__(self, start: int, stop: int, batch_size: int, world: World) -> None:
        self.batches, self.batch_size = range(start, stop), batch_size
        self.own = range(batch_size)[world.part(batch_size)]

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from (batch * self.batch_size + place for place in self.own)

    def __len__(self) -> int:
        return len(self.batches) * len(self.own)


def make_loader(
    stream: Dataset[Any],
    collate: Callable[[Any], B],
    *,
    start: int,
    stop: int,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    world: World = ALONE,
) -> Iterable[B]:
    """Batches ``start`` to ``stop`` (exclusive) of a stream, in order.

    Args:
        stream: What to read.
        collate: Makes a typed batch of its samples.
        start: First batch.
        stop: One past the last batch.
        batch_size: Samples a batch, divided among the processes; batch n holds
            positions n * batch_size to (n + 1) * batch_size - 1.
        workers: Loader processes; their number does not change the batches.
        pin_memory: Whether batches lie in page-locked memory, for copies to a GPU.
        world: The processes among which each batch is divided; this one gets its part.
    """
    return DataLoader(
        stream,
        batch_size=batch_size // world.size,
        sampler=_Positions(start, stop, batch_size, world),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=start_worker if workers else None,
        generator=torch.Generator(),  # a loader draws when it begins; from the global one, a process's first step would leave another state
    )


def start_worker(worker: int) -> None:
    """Run first in each loader process."""
    leave_signals_to_the_main_process()
    keep_freed_memory()
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, batch: object) -> NoReturn:
    """Python would pass over a batch that cannot be handed on, as where /dev/shm is full, and the training wait for it for ever."""
    os.write(2, f"a loader process cannot hand on a batch: {one_line(error)}\n".encode())
    os._exit(1)


def leave_signals_to_the_main_process() -> None:
    """Whoever signals the whole group must not take the batch from under a step that is finished.

    The loader ends its processes itself, and they end when their parent has gone. A second SIGTERM still works.
    """

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first)


@contextmanager
def loader_failures() -> Iterator[None]:
    """What goes wrong in a loader process, in words for the user.

    Raises:
        ServiceError: A loader process was killed.
        CwbassError: What a loader process raised, without its traceback.
    """
    try:
        try:
            yield
        except CwbassError as error:
            text = str(error)
            if "Original Traceback" not in text:
                raise
            raise type(error)(text.rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # a batch of a process that is gone cannot be fetched
            if getattr(error, "filename", None):  # a file, and not the socket of that process
                raise
            raise RuntimeError(f"DataLoader worker: {type(error).__name__}") from error
    except RuntimeError as error:
        # Caught here, and not beside the others: torch raises it when the system tells of the death, at whatever line is running.
        if "DataLoader worker" not in str(error):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # told once is enough
        raise ServiceError(
            f"a loader process died ({one_line(error, 200)}). It was killed, mostly for want of memory: lower "
            "train.workers or the batch, or give the pod more memory and /dev/shm. Run the same command again: it goes on "
            "from the last saved state."
        ) from error
