"""The processes that train together: what one may ask of the others.

``train.batch_labeled`` and ``train.batch_unlabeled`` count the images of a step over all processes;
process r of n holds the r-th of n equal parts of each batch. A method that divides by
:meth:`World.share`, adds up statistics with :meth:`World.total` and draws for the whole batch before
it takes :meth:`World.own` gives the same result from any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class World:
    """A single process, which holds the whole batch and asks nobody.

    :class:`cwbass.training.distributed.ProcessGroup` is the one of several processes. Everything
    but :meth:`part` and :meth:`own` is a collective there: all processes must call it, in the same
    order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """Which images of a whole batch of so many are this process's."""
        count = batch // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def own(self, rows: Tensor) -> Tensor:
        """This process's part of something made for the whole batch. [B, ...] -> [B / size, ...]."""
        return rows[self.part(len(rows))]

    def total(self, value: Tensor) -> Tensor:
        """The sum of all processes' values, detached; any shape."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows in the order of the whole batch, detached. [B / size, ...] -> [B, ...]."""
        return rows

    def collect(self, value: T) -> list[T]:
        """All processes' plain Python values, by rank."""
        return [value]

    def agree(self, wanted: int) -> int:
        """The highest of all processes' numbers: what one wants, all do."""
        return wanted

    def barrier(self) -> None:
        """Wait until every process is here."""

    def once_per_machine(self, work: Callable[[], T]) -> T:
        """Let one process of each machine make a file; the others find it made.

        Args:
            work: Makes the file unless it is there, and reads it.
        """
        if self.local_rank:
            self.barrier()
            return work()
        result = work()
        self.barrier()
        return result

    def average_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""

    def share(self, count: Tensor) -> Tensor:
        """What a process divides its sum of pixel losses by, so that the mean over processes is the whole batch's mean.

        Args:
            count: Pixels that take part here, or the sum of their weights. [].

        Returns:
            That of all processes, or 1 where it is 0, over the number of processes. [].
        """
        count = self.total(count)
        count = torch.where(count > 0, count, 1)
        return count / self.size if self.size > 1 else count


ALONE = World()
