"""What share of a CW-BASS step is not the network: losses, pseudo-labels, thresholds, boundaries.

    python benchmarks/step_share.py [--params params.yaml] [--repeats 20]

Both sides run in turn in one process on the same tensors: the whole of ``training_step`` with its
backward pass, and the same forward and backward passes with the cheapest loss there is (a mean of
the logits). What the first takes longer is the method's own work. Optimiser, teacher update and
data are outside of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cwbass.methods import build_method
from cwbass.methods.cw_bass import CwBass
from cwbass.models import build_model
from cwbass.models.norm import frozen_statistics
from cwbass.params import Params, load_params, read_params
from cwbass.training.seed import seed_everything
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    params = load_params(read_params(arguments.params, ["model.weights=null", *arguments.set]), Params)
    size, classes = params.augment.crop_size, arguments.classes
    x, u = params.train.batch_labeled, params.train.batch_unlabeled
    generator = seed_everything(0)
    method = build_method(params.method, lambda: build_model(params.model, classes), num_classes=classes, ignore_index=255)
    method.to(memory_format=torch.channels_last)
    method.student.train()
    assert isinstance(method, CwBass)
    labeled = LabeledBatch(images(x, size), torch.randint(0, classes, (x, size, size), dtype=torch.uint8))
    unlabeled = UnlabeledBatch(images(u, size), images(u, size), torch.ones(u, size, size, dtype=torch.bool))
    progress = Progress(1, 100, 0, 0, generator)
    joint = method.terms.norm == "joint"

    def whole() -> None:
        method.training_step(labeled, unlabeled, progress).loss.backward()

    def network() -> None:
        with torch.no_grad():
            method.teacher(unlabeled.weak)
        if joint:
            method.student(torch.cat((labeled.image, unlabeled.strong))).mean().backward()
            return
        one = method.student(labeled.image)
        with frozen_statistics(method.student):
            two = method.student(unlabeled.strong)
        (one.mean() + two.mean()).backward()

    times = alternate(whole, network, arguments.repeats)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    middle = statistics.median(ratios)
    low, high = statistics.quantiles(ratios, n=4)[::2]
    print(
        f"{params.model.arch}, {params.model.encoder}, {classes} classes, {size} px, {x}+{u} images, {torch.get_num_threads()} threads"
    )
    print(f"training_step and backward against its network passes alone: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    print(f"share of losses and pseudo-labels: {100 * (1 - 1 / middle):.1f} % of the step")


def images(count: int, size: int) -> torch.Tensor:
    batch = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return batch.contiguous(memory_format=torch.channels_last)


def alternate(one: Callable[[], None], other: Callable[[], None], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn, after two warm-ups each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        for function, own in zip((one, other), seconds, strict=True):
            started = time.perf_counter()
            function()
            if repeat >= 2:
                own.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
