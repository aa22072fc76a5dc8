"""Processes that are threads: the collectives of ``World`` without a process group, for the tests of what is exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cwbass.world import World

T = TypeVar("T")


class ThreadWorld(World):
    """One of several threads; a collective is a table that all write and then all read."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: Barrier) -> None:
        self.rank, self.size, self.local_rank = rank, size, rank
        self.table, self.turn = table, barrier

    def collect(self, value: T) -> list[T]:
        self.table[self.rank] = value
        self.turn.wait(60)
        values = list(self.table)
        self.turn.wait(60)
        return values

    def total(self, value: Tensor) -> Tensor:
        return torch.stack(self.collect(value.detach().clone())).sum(0).to(value.dtype)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat(self.collect(rows.detach().clone()))  # what was sent stays as it was

    def agree(self, wanted: int) -> int:
        return max(self.collect(wanted))

    def barrier(self) -> None:
        self.collect(None)

    def average_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self.total(parameter.grad) / self.size


def in_threads(size: int, work: Callable[[World], T]) -> list[T]:
    """Results of ``work`` in ``size`` threads, by rank; the first error of a thread is raised."""
    table, barrier = [None] * size, Barrier(size)

    def one(rank: int) -> T:
        try:
            return work(ThreadWorld(rank, size, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(one, rank) for rank in range(size)]]
