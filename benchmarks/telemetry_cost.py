"""What share of a training step is telemetry.

    python benchmarks/telemetry_cost.py [--params params.yaml] [--repeats 20]

Times what a step tells (two batches that pass, one step that ends) over many calls, and a training step of the same
parameters with optimiser and teacher update, in one process. Also: a scrape, while which a step cannot run Python.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry, generate_latest

from cwbass.methods import build_method
from cwbass.models import build_model
from cwbass.params import Params, load_params, read_params
from cwbass.telemetry.metrics import Exposed, Metrics
from cwbass.telemetry.recorder import Recorder
from cwbass.training.optim import build_optimizer
from cwbass.training.seed import seed_everything
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch

CALLS = 20000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    params = load_params(read_params(arguments.params, ["model.weights=null", *arguments.set]), Params)

    metrics = Metrics(CollectorRegistry())
    recorder = Recorder(metrics, stage="train")
    names = [f"class{index}" for index in range(arguments.classes)]
    recorder.start_phase("train", epochs=1, class_names=names, labeled_classes=names, device=torch.device("cpu"))
    labeled = iter(recorder.watch(repeat(None), "labeled", 4))
    unlabeled = iter(recorder.watch(repeat(None), "unlabeled", 4))

    def tell() -> None:
        next(labeled)
        next(unlabeled)
        recorder.step_done()

    shown = CollectorRegistry()
    shown.register(Exposed(metrics.registry))
    told = sum(seconds(tell, CALLS)) / CALLS
    scrape = statistics.median(seconds(lambda: generate_latest(shown), 50))
    step = statistics.median(seconds(training_step(params, arguments.classes), arguments.repeats))
    print(f"{params.model.arch}, {params.model.encoder}, {arguments.classes} classes, {params.augment.crop_size} px")
    print(f"telemetry {1e6 * told:.1f} us of a step of {1e3 * step:.1f} ms: {100 * told / step:.4f} %")
    print(f"a scrape {1e3 * scrape:.2f} ms; one in 15 s: {100 * scrape / 15:.4f} %")


def training_step(params: Params, classes: int) -> Callable[[], None]:
    size, x, u = params.augment.crop_size, params.train.batch_labeled, params.train.batch_unlabeled
    generator = seed_everything(0)
    method = build_method(params.method, lambda: build_model(params.model, classes), num_classes=classes, ignore_index=255)
    method.to(memory_format=torch.channels_last)
    method.student.train()
    optimizer = build_optimizer(method.student, params.train.optimizer, batch_size=x)
    labeled = LabeledBatch(images(x, size), torch.randint(0, classes, (x, size, size), dtype=torch.uint8))
    unlabeled = UnlabeledBatch(images(u, size), images(u, size), torch.ones(u, size, size, dtype=torch.bool))
    progress = Progress(1, 100, 0, 0, generator)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.training_step(labeled, unlabeled, progress).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_optimizer_step(progress)

    return step


def images(count: int, size: int) -> torch.Tensor:
    batch = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return batch.contiguous(memory_format=torch.channels_last)


def seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Of each call, after two warm-ups."""
    found = []
    for number in range(repeats + 2):
        started = time.perf_counter()
        function()
        if number >= 2:
            found.append(time.perf_counter() - started)
    return found


if __name__ == "__main__":
    main()
