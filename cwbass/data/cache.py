"""Decoded images and masks in one memory-mapped file, so that training never decodes twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cwbass.data.base import Box, DatasetSpec, Sample, check_same_size, read_image, read_mask, upright_size
from cwbass.data.parallel import map_ahead
from cwbass.errors import FULL, NOT_WRITABLE, DataError, ParamsError

logger = logging.getLogger(__name__)

FORMAT = 1
RESERVE_BYTES = 2 << 30  # disk that a cache must leave free
UNUSED_DAYS = 14  # a cache that nobody has opened for so long is deleted when another one is made
_AHEAD = 32  # images that are decoded before they are asked for
_OURS = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{32})?\.(bin|json)(\.tmp)?")  # the folder may hold files of others


class ImageSource(Protocol):
    """Images and masks of a fixed list of samples, by index."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, pixels."""

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        """[H, W, 3] uint8, of the part in ``box`` where it is given."""

    def mask(self, index: int) -> NDArray[np.uint8]:
        """[H, W] uint8 class index or ignore_index."""


class FileSource:
    """Decodes at every call."""

    def __init__(self, samples: Sequence[Sample], root: Path, spec: DatasetSpec) -> None:
        self.samples, self.root, self.spec = tuple(samples), root, spec
        self._sizes: dict[int, tuple[int, int]] = {}  # of what was asked for: a PNG must be decoded to know how it is turned

    def __len__(self) -> int:
        return len(self.samples)

    def size(self, index: int) -> tuple[int, int]:
        if index not in self._sizes:
            self._sizes[index] = upright_size(self.root / self.samples[index].image)
        return self._sizes[index]

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        image = read_image(self.root / self.samples[index].image, box)
        if box is None:
            self._sizes[index] = image.shape[0], image.shape[1]
        return image

    def mask(self, index: int) -> NDArray[np.uint8]:
        sample = self.samples[index]
        if sample.mask is None:
            raise DataError(f"{sample.image}: an unlabelled image has no mask to read.")
        mask = read_mask(self.root / sample.mask, self.spec)
        check_same_size(sample, self.size(index), mask)
        return mask


class CachedSource:
    """Reads slices of one memory-mapped file; processes share its pages."""

    def __init__(self, path: Path, samples: Sequence[Sample]) -> None:
        index = json.loads(path.with_suffix(".json").read_text())
        self.path = path
        self.sizes: list[tuple[int, int]] = [(h, w) for h, w in index["sizes"]]
        self.masked = [sample.mask is not None for sample in samples]
        lengths = [h * w * (4 if masked else 3) for (h, w), masked in zip(self.sizes, self.masked, strict=True)]
        self.offsets = [0, *accumulate(lengths)]
        self._bytes: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> dict[str, object]:
        # A worker maps the file itself; pickling a memmap would copy it.
        return {**self.__dict__, "_bytes": None}

    def _slice(self, start: int, length: int) -> NDArray[np.uint8]:
        if self._bytes is None:
            self._bytes = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))  # a plain array is cut faster
        return self._bytes[start : start + length]

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        height, width = self.sizes[index]
        image = self._slice(self.offsets[index], height * width * 3).reshape(height, width, 3)
        if box is None:
            return image
        left, top, right, bottom = box
        return image[top:bottom, left:right]

    def mask(self, index: int) -> NDArray[np.uint8]:
        if not self.masked[index]:
            raise DataError(f"image {index} of {self.path}: an unlabelled image has no mask to read.")
        height, width = self.sizes[index]
        return self._slice(self.offsets[index] + height * width * 3, height * width).reshape(height, width)


def open_source(samples: Sequence[Sample], root: Path, spec: DatasetSpec, cache_dir: Path | None) -> ImageSource:
    """Images of ``samples``, from a cache that is made on first use.

    The cache's name is a digest of every file's path, size and time of change, so that an
    edited file is decoded anew. Without room on the disk, files are decoded at every use. Making
    a cache deletes those of the folder that nobody has opened for ``UNUSED_DAYS``. A file that is
    missing is found here in any case, and not when its turn comes.

    Args:
        samples: What to serve, in this order.
        root: Folder that the samples' paths are relative to.
        spec: Maps mask values.
        cache_dir: Where caches lie; None decodes at every use.

    Raises:
        DataError: A file is missing or wrong.
        ParamsError: A cache cannot be made there.
    """
    plain = FileSource(samples, root, spec)
    if not samples:
        return plain
    digest = _digest(samples, root, spec)
    if cache_dir is None:
        return plain
    path = cache_dir / f"{digest}.bin"
    if (cached := _open_whole(path, samples)) is not None:
        _mark_used(path)
        return cached
    try:
        return CachedSource(path, samples) if _make(plain, path) else plain
    except OSError as error:
        if error.errno in FULL:  # a quota, or another process that writes there
            logger.warning("no cache of decoded images: %s: %s", cache_dir, error.strerror)
            return plain
        if error.errno in NOT_WRITABLE:
            raise ParamsError(
                f"train.cache: {cache_dir}: {error.strerror}. Name a folder that can be written to, or null, "
                "which decodes images at every use."
            ) from error
        raise


def _make(plain: FileSource, path: Path) -> bool:
    """Make a cache where there is room for it; returns whether there was."""
    cache_dir = path.parent
    needed = sum(prod(upright_size(plain.root / sample.image)) * (3 if sample.mask is None else 4) for sample in plain.samples)
    cache_dir.mkdir(parents=True, exist_ok=True)
    _delete_unused(cache_dir)
    free = shutil.disk_usage(cache_dir).free
    if needed + RESERVE_BYTES > free:
        logger.warning(
            "no cache of decoded images: it needs %.1f GB and %s has %.1f GB free, of which %.1f GB are left alone",
            needed / 1e9,
            cache_dir,
            free / 1e9,
            RESERVE_BYTES / 1e9,
        )
        return False
    _write(plain, path)
    return True


def _open_whole(path: Path, samples: Sequence[Sample]) -> CachedSource | None:
    """The cache, or None where there is none or a crash has left it short."""
    try:
        cached = CachedSource(path, samples)
        return cached if path.stat().st_size == cached.offsets[-1] else None
    except (OSError, ValueError, KeyError):
        return None


def _mark_used(path: Path) -> None:
    with suppress(OSError):  # of somebody else, or on a disk that cannot be written to
        for file in (path, path.with_suffix(".json")):
            os.utime(file)


def _delete_unused(cache_dir: Path) -> None:
    """Delete caches, and what killed processes left of some, that were last used too long ago.

    A process that has one open goes on reading it.
    """
    oldest = time.time() - UNUSED_DAYS * 86400
    for file in cache_dir.iterdir():
        with suppress(OSError):  # another process may have deleted it
            if _OURS.fullmatch(file.name) and (stat := file.stat()).st_mtime < oldest:
                file.unlink()
                logger.info("deleted %s (%.2f GB), unused for %d days", file, stat.st_size / 1e9, UNUSED_DAYS)


def _digest(samples: Sequence[Sample], root: Path, spec: DatasetSpec) -> str:
    state = hashlib.sha256(json.dumps([FORMAT, str(root.resolve()), spec.to_dict()]).encode())
    for sample in samples:
        for name in (sample.image, sample.mask):
            if name is not None:
                try:
                    stat = os.stat(root / name)
                except FileNotFoundError as error:
                    raise DataError(f"{root / name}: no such file. Run `cwbass split` again if files were moved.") from error
                state.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return state.hexdigest()[:32]


def _write(source: FileSource, path: Path) -> None:
    # Not the process id: two pods that share a volume have the same one.
    partial, index = (path.with_suffix(f".{uuid.uuid4().hex}.{kind}.tmp") for kind in ("bin", "json"))
    sizes: list[tuple[int, int]] = []
    try:
        threads = min(8, (os.cpu_count() or 1) * 2)
        with partial.open("wb") as file:
            for arrays in map_ahead(lambda index: _decode(source, index), range(len(source)), threads=threads, ahead=_AHEAD):
                sizes.append((arrays[0].shape[0], arrays[0].shape[1]))
                for array in arrays:
                    file.write(array.tobytes())
            os.fsync(file.fileno())
        index.write_text(json.dumps({"sizes": sizes}))
        os.replace(index, path.with_suffix(".json"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        index.unlink(missing_ok=True)


def _decode(source: FileSource, index: int) -> list[NDArray[np.uint8]]:
    image = source.image(index)
    return [image] if source.samples[index].mask is None else [image, source.mask(index)]
