"""The memory of a long training: resident megabytes every so many steps, and their slope.

    python benchmarks/memory.py [--steps 5000] [--every 250] [--workers 0] [--limit 1.0] [--json]

The real training step with teacher, selection slice, checkpoints, saved states and metrics, on a tiny network and generated images.
The slope is the least-squares line after the first fifth, in which caches fill. Exit code 1 where it exceeds the limit, in MB for
1,000 steps. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from cwbass.data.synthetic import write_shapes
from cwbass.params import load_params
from cwbass.steps.split import SplitParams, split
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import WarmupParams
from cwbass.steps.warmup import warmup
from cwbass.telemetry.metrics import Metrics
from cwbass.telemetry.recorder import Recorder

PARAMS: dict[str, Any] = {
    "split": {"selection": 0.34, "min_selection": 2},
    "augment": {"crop_size": 32},
    "model": {
        "arch": "unet", "encoder": "tu-mobilenetv4_conv_small_050", "options": {"encoder_depth": 2, "decoder_channels": [8, 8]},
    },
    "train": {
        "warmup_steps": 10, "baseline": False, "batch_labeled": 2, "batch_unlabeled": 2, "epoch_steps": 100, "save_minutes": 0.05,
        "cache": None, "precision": "float32", "optimizer": {"lr": 0.001},
    },
}  # fmt: skip


class Scales(Recorder):
    """Metrics as a run has them, and a look at this process's memory now and then."""

    def __init__(self, every: int) -> None:
        super().__init__(Metrics(CollectorRegistry()), stage="train")
        self.every, self.taken, self.started = every, 0, time.monotonic()
        self.seen: list[tuple[int, float]] = []  # steps, MB

    def step_done(self) -> None:
        super().step_done()
        self.taken += 1
        if self.taken % self.every == 0:
            self.seen.append((self.taken, resident_mb()))
            print(f"{self.taken:7} steps {self.seen[-1][1]:8.1f} MB {time.monotonic() - self.started:7.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=250, help="steps between two looks")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; their memory is not counted")
    parser.add_argument("--limit", type=float, default=1.0, help="MB for 1,000 steps")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    scales = Scales(arguments.every)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.steps, arguments.workers, scales)
    settled = [(step, memory) for step, memory in scales.seen if step > arguments.steps / 5]
    slope = 1000 * float(np.polyfit(*zip(*settled, strict=True), 1)[0])
    if arguments.json:
        print(json.dumps({"steps": arguments.steps, "mb": scales.seen, "mb_per_1000_steps": slope}))
    else:
        (first, at_first), (last, at_last) = settled[0], settled[-1]
        print(f"{at_first:.1f} MB after {first} steps, {at_last:.1f} MB after {last}: {slope:+.2f} MB for 1,000 steps")
    sys.exit(slope > arguments.limit)


def run(root: Path, steps: int, workers: int, scales: Scales) -> None:
    """Split, warm up for a moment, and train."""
    write_shapes(root / "data", seed=0, labeled=12, unlabeled=16, test=2, size=(48, 48))
    warm = PARAMS["train"]["warmup_steps"]
    values = {
        **PARAMS,
        "data": {"root": str(root / "data")},
        "train": {**PARAMS["train"], "steps": steps + warm, "workers": workers},
    }
    places = {"manifest": root / "split" / "manifest.json", "data_root": root / "data"}
    split(load_params(values, SplitParams), data_root=root / "data", out_dir=root / "split")
    warmup(load_params(values, WarmupParams), out_dir=root / "warmup", **places)
    start = root / "warmup" / "warmup.pt"
    train(load_params(values, TrainParams), warmup=start, out_dir=root / "train", telemetry=scales, **places)


def resident_mb() -> float:
    """Resident memory of this process, 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
