"""Seconds a step of one process and of several on this machine (gloo, CPU), and what the difference is spent on.

All take the same global batch on the same cores, so the best that can be had on one machine's CPU is a ratio of 1: what is
lost to it is the price of dividing a step. On GPUs each process brings its own device; nothing here speaks of them.
``python -m benchmarks --only step.processes`` starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.cases import CPU, lite0
from cwbass.models.norm import synchronize_norms_
from cwbass.optimizers import rate_factor
from cwbass.training.distributed import ProcessGroup, joined
from cwbass.training.loop import Schedule, fit
from cwbass.training.optim import build_optimizer
from cwbass.types import LabeledBatch, UnlabeledBatch
from cwbass.world import World

WARM, STEPS = 3, 10  # steps that are not counted, and that are


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


def steps_of(processes: int) -> dict[str, Any]:
    """What the first of several processes measured: seconds and messages a step, and the share of time spent on messages."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launcher = [sys.executable, "-m", "cwbass.training.torchrun", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run([*launcher, "-m", "benchmarks.processes", str(out)], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def work(out: Path) -> None:
    """Train on random images as one of the processes, and write what was measured."""
    case = lite0()
    with joined("cpu", os.environ) as world:
        watch = Stopwatch(world) if world.size > 1 else world
        method = case.method()
        synchronize_norms_(method, watch)
        labeled, unlabeled = case.batches()
        own_x = LabeledBatch(world.own(labeled.image), world.own(labeled.mask))
        own_u = UnlabeledBatch(world.own(unlabeled.weak), world.own(unlabeled.strong), world.own(unlabeled.valid))
        begun: dict[str, float] = {}

        def on_step(taken: int) -> None:
            if taken == WARM:
                begun.update(at=time.perf_counter(), waited=getattr(watch, "seconds", 0.0), sent=getattr(watch, "messages", 0))

        fit(
            method,
            [own_x] * (WARM + STEPS),
            [own_u] * (WARM + STEPS),
            optimizer=build_optimizer(method.student, case.optimizer, batch_size=case.labeled),
            schedule=Schedule(0, WARM + STEPS, 1000, 1000, 0),
            rate_factor=rate_factor(case.optimizer),
            seed=0,
            device=CPU,
            autocast_dtype=case.dtype,
            on_epoch=lambda record: True,
            on_step=on_step,
            world=watch,
        )
        seconds = time.perf_counter() - begun["at"]
        if world.main:
            found = {
                "step_seconds": seconds / STEPS,
                "waiting": (getattr(watch, "seconds", 0.0) - begun["waited"]) / seconds,
                "messages": (getattr(watch, "messages", 0) - begun["sent"]) / STEPS,
            }
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
