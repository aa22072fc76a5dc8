"""Several processes, one training: joining them as torchrun starts them, and what they exchange.

Nothing here runs in a single process: without torchrun's variables, or with WORLD_SIZE=1, there is
no process group and torch.distributed is not touched.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous as meet

from cwbass.errors import CwbassError, ParamsError, ServiceError, counted
from cwbass.world import ALONE, World

T = TypeVar("T")

RENDEZVOUS = timedelta(minutes=5)  # for all processes to start
COLLECTIVE = timedelta(minutes=30)  # the longest anybody waits: the first process decodes the data
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of how many this is."""

    rank: int
    size: int
    local_rank: int  # on this machine: the number of its GPU


def read_place(environ: Mapping[str, str]) -> Place | None:
    """What torchrun says of this process; None where it is the only one.

    Args:
        environ: The process's environment.

    Raises:
        ParamsError: Some of torchrun's variables are missing or no possible numbers.
    """
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return None
    if missing := [name for name in _VARIABLES if not environ.get(name)]:
        raise ParamsError(
            f"the environment has some of torchrun's variables, but {', '.join(missing)} is missing. "
            "Start with `torchrun --nproc-per-node N -m cwbass ...`, or unset RANK and WORLD_SIZE to train in one process."
        )
    try:
        rank, size, local_rank, _ = (int(environ[name]) for name in _VARIABLES if name != "MASTER_ADDR")
    except ValueError as error:
        seen = ", ".join(f"{name}={environ[name]}" for name in _VARIABLES)
        raise ParamsError(f"torchrun's variables must be whole numbers: {seen} ({error}).") from error
    if not 0 <= rank < size or local_rank < 0:
        raise ParamsError(f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank}: ranks run from 0 to WORLD_SIZE - 1.")
    return Place(rank, size, local_rank) if size > 1 else None


@contextmanager
def joined(device: str, environ: Mapping[str, str], *, rendezvous: timedelta = RENDEZVOUS) -> Iterator[World]:
    """Join the other processes, if there are any; inside, the world is theirs.

    After an error nobody is waited for: this process ends, and torchrun ends the others.

    Args:
        device: ``train.device``: auto, cpu or cuda.
        environ: The process's environment. The address to meet at is read by torch from ``os.environ``.
        rendezvous: How long to wait for the others to start.

    Raises:
        ParamsError: The environment is wrong, or not every process has the GPU that is asked for. Every
            process raises it, within seconds.
        ServiceError: The others did not come in time.
    """
    place = read_place(environ)
    if place is None:
        yield ALONE
        return
    try:
        store, _, _ = next(meet("env://", rank=place.rank, world_size=place.size, timeout=rendezvous))
        gpus = _everybodys_gpus(store, place, device)
    except (RuntimeError, ValueError) as error:
        raise ServiceError(
            f"process {place.rank} of {place.size} did not meet the others at {environ['MASTER_ADDR']}:{environ['MASTER_PORT']} "
            f"within {rendezvous.total_seconds():.0f} s ({_first_line(error)}). Start as many as WORLD_SIZE says."
        ) from error
    on_gpu = _agree_on_device(gpus, device)
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    # Plain values travel by gloo on GPUs too.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    with _others_may_be_gone():
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=COLLECTIVE)
    yield ProcessGroup(place)
    dist.destroy_process_group()


class ProcessGroup(World):
    """One of several processes, on torch's default process group.

    Args:
        place: Which one.
    """

    def __init__(self, place: Place) -> None:
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank

    def total(self, value: Tensor) -> Tensor:
        summed = value.detach().clone()
        with _others_may_be_gone():
            dist.all_reduce(summed)
        return summed

    def gather(self, rows: Tensor) -> Tensor:
        # Not every backend sends bool.
        sent = rows.detach().contiguous().to(torch.uint8 if rows.dtype == torch.bool else rows.dtype)
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        with _others_may_be_gone():
            dist.all_gather(parts, sent)
        whole = torch.cat(parts).to(rows.dtype)
        return whole.contiguous(memory_format=torch.channels_last) if whole.dim() == 4 else whole

    def collect(self, value: T) -> list[T]:
        values: list[T | None] = [None] * self.size
        with _others_may_be_gone():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def agree(self, wanted: int) -> int:
        highest = torch.tensor(wanted)
        with _others_may_be_gone():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def barrier(self) -> None:
        self.collect(None)

    def average_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """One message for all gradients.

        It begins with the share of processes that have each of them: a parameter that no process used keeps no
        gradient, as in a single process, and one that some did not use counts as zero there.
        """
        parameters = list(parameters)
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        message = self.total(torch.cat((used, *flat))).div_(self.size)
        shares, *gradients = torch.split(message, [len(parameters), *(p.numel() for p in parameters)])
        for parameter, share, gradient in zip(parameters, shares.tolist(), gradients, strict=True):
            if share:
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(gradient.view_as(parameter))


def check_same(world: World, what: str, value: str) -> None:
    """Raise, in every process, unless all see the same.

    Args:
        world: All processes.
        what: The thing, for the message.
        value: It, or its digest.

    Raises:
        ParamsError: Some process differs from the first.
    """
    values = world.collect(value)
    if other := [rank for rank, each in enumerate(values) if each != values[0]]:
        raise ParamsError(
            f"{what} is {values[0][:12]} in process 0 and {values[other[0]][:12]} in process {other[0]}. "
            "All machines need the same code, parameters and files."
        )


def _everybodys_gpus(store: Any, place: Place, device: str) -> list[str]:
    """A line of each process about its GPU; empty where it has one."""
    count = 0 if device == "cpu" else torch.cuda.device_count()
    line = "" if place.local_rank < count else f"process {place.rank} on {socket.gethostname()} sees {counted(count, 'GPU')}"
    if line and count:
        line += f" and is the one with local rank {place.local_rank}"
    store.set(f"cwbass/gpu/{place.rank}", line)
    return [store.get(f"cwbass/gpu/{rank}").decode() for rank in range(place.size)]


def _agree_on_device(lines: list[str], device: str) -> bool:
    """Whether training runs on GPUs."""
    without = [line for line in lines if line]
    if without and (device == "cuda" or (device == "auto" and len(without) < len(lines))):
        raise ParamsError(
            f"train.device is {device}, but {'; '.join(without)}. "
            "Each process needs a GPU of its own: check drivers, nvidia.com/gpu limits and --nproc-per-node, or use device: cpu."
        )
    return not without


@contextmanager
def _others_may_be_gone() -> Iterator[None]:
    """A collective fails when another process has died; the cause is what that one said."""
    try:
        yield
    except RuntimeError as error:
        raise CwbassError(
            f"the other processes are gone or too slow ({_first_line(error)}); look for the first error."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
