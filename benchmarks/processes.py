"""Steps per second of one process against several on this machine (gloo, CPU), and what the difference is spent on.

    python benchmarks/processes.py [--params params.yaml] [--processes 2] [--steps 10]

All take the same global batch with the same number of cores in total, so the best that can be had on one machine's CPU is
a ratio of 1: what is lost to it is the price of dividing a step. On GPUs each process brings its own device; this script
says nothing of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cwbass.config import OptimizerConfig
from cwbass.methods import build_method
from cwbass.models import build_model
from cwbass.models.norm import synchronize_norms_
from cwbass.params import Params, load_params, read_params
from cwbass.training.distributed import ProcessGroup, joined
from cwbass.training.loop import EpochRecord, Schedule, fit
from cwbass.training.optim import build_optimizer
from cwbass.types import LabeledBatch, UnlabeledBatch
from cwbass.world import World

WARM = 3  # steps that are not counted


class Stopwatch(ProcessGroup):
    """A process group that knows how long it waited for messages."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.local_rank = world.rank, world.size, world.local_rank
        self.seconds, self.messages = 0.0, 0

    def total(self, value: Tensor) -> Tensor:
        started = time.perf_counter()
        summed = super().total(value)
        self.seconds += time.perf_counter() - started
        self.messages += 1
        return summed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        one, many = (start(count, Path(folder) / str(count)) for count in (1, arguments.processes))
    print(f"one process:  {one['rate']:.2f} steps/s on {one['threads']} threads")
    print(f"{arguments.processes} processes: {many['rate']:.2f} steps/s on {many['threads']} threads each")
    print(f"ratio {many['rate'] / one['rate']:.2f} (1 is the best on shared cores)")
    print(
        f"of a step, {100 * many['waiting']:.0f} % is waiting for sums: gradients ({many['megabytes']:.1f} MB in one message), "
        f"batch norm and counts ({many['messages'] - 1:.0f} small messages); it includes waiting for the slower process"
    )


def start(count: int, out: Path) -> dict[str, Any]:
    """Run the workers and read what the first one measured."""
    command = [sys.executable, "-m", "cwbass.training.torchrun", "--standalone", f"--nproc-per-node={count}", __file__]
    subprocess.run([*command, *sys.argv[1:], "--worker", str(out)], check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def work(arguments: argparse.Namespace) -> None:
    """Train on random images, and write what was measured."""
    params = load_params(read_params(arguments.params, ["model.weights=null", *arguments.set]), Params)
    with joined("cpu", os.environ) as world:
        watch = Stopwatch(world) if world.size > 1 else world
        torch.manual_seed(0)
        method = build_method(params.method, lambda: build_model(params.model, 21), num_classes=21, ignore_index=255)
        method.to(memory_format=torch.channels_last)
        synchronize_norms_(method, watch)
        x, u = (count // world.size for count in (params.train.batch_labeled, params.train.batch_unlabeled))
        size, steps = params.augment.crop_size, WARM + arguments.steps
        batch_x = LabeledBatch(images(x, size), torch.randint(0, 21, (x, size, size), dtype=torch.uint8))
        batch_u = UnlabeledBatch(images(u, size), images(u, size), torch.ones(u, size, size, dtype=torch.bool))
        begun: dict[str, float] = {}

        def on_step(taken: int) -> None:
            if taken == WARM:
                begun.update(
                    at=time.perf_counter(), waited=getattr(watch, "seconds", 0.0), messages=getattr(watch, "messages", 0)
                )

        def on_epoch(record: EpochRecord) -> bool:
            return True

        fit(
            method,
            [batch_x] * steps,
            [batch_u] * steps if method.needs_unlabeled else None,
            optimizer=build_optimizer(method.student, OptimizerConfig(), batch_size=params.train.batch_labeled),
            schedule=Schedule(0, steps, steps, steps + 1, 0),
            poly_power=0.9,
            seed=0,
            device=torch.device("cpu"),
            autocast_dtype=None,
            on_epoch=on_epoch,
            on_step=on_step,
            world=watch,
        )
        seconds = time.perf_counter() - begun["at"]
        if world.main:
            found = {
                "rate": arguments.steps / seconds,
                "threads": torch.get_num_threads(),
                "waiting": (getattr(watch, "seconds", 0.0) - begun["waited"]) / seconds,
                "messages": (getattr(watch, "messages", 0) - begun["messages"]) / arguments.steps,
                "megabytes": parameters(method.student) * 4 / 1e6,
            }
            arguments.worker.write_text(json.dumps(found))


def images(count: int, size: int) -> Tensor:
    batch = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return batch.contiguous(memory_format=torch.channels_last)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


if __name__ == "__main__":
    main()
