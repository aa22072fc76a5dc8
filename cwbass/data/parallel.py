"""Maps over files in threads; Pillow and the file system release the interpreter lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PART = 16  # items a future: to hand one over takes as long as to read a small file
CHUNK = 4096  # items whose results are alive at once: a million would cost a gigabyte


def map_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results of ``function`` in the order of ``items``; the first exception is raised here."""

    def part(start: int) -> list[Result]:
        return [function(item) for item in items[start : start + PART]]

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            for results in pool.map(part, range(start, min(start + CHUNK, len(items)), PART)):
                yield from results


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int) -> Iterator[Result]:
    """The same for results that take much memory: at most ``ahead`` are made before they are asked for."""
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
