"""What scoring an image costs, against one ``torch.bincount`` pass over its label map.

    python benchmarks/evaluation_cost.py

CPU time on one thread, so that other work on the machine disturbs little. Every repeat times all
rows in turn, and a row's ratio is taken to the bincount of the same repeat.

The truth is a map of irregular regions with about 5 % of ignored pixels. There are two predictions,
a usual one and one full of speckles as a network makes in its first steps: the cost should not
depend on it. (Contours take 2 % of the pixels of PASCAL VOC's masks and 4 % of CamVid's.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cwbass.evaluation.boundary import band_counts, band_width, close_gaps, contour, contour_counts
from cwbass.evaluation.metrics import TOLERANCES, Scores

IGNORE = 255
REPEATS = 15


def main() -> None:
    torch.set_num_threads(1)
    for height, width, num_classes in ((375, 500, 21), (1024, 2048, 19)):
        for name, noise in (("usual prediction", 0.05), ("speckled prediction", 0.5)):
            mask, probs = make_image(height, width, num_classes, noise)
            print(f"\n{width}x{height}, {num_classes} classes, {name}: {describe(mask, probs, num_classes)}")
            report(make_rows(mask, probs, num_classes))


def make_image(height: int, width: int, num_classes: int, noise: float) -> tuple[Tensor, Tensor]:
    """A mask [H, W] uint8 and probabilities [C, H, W] that agree with it but for ``noise``."""
    generator = torch.Generator().manual_seed(0)

    def field(cell: int) -> Tensor:
        coarse = torch.randn(1, num_classes, height // cell, width // cell, generator=generator)
        return F.interpolate(coarse, (height, width), mode="bilinear")[0]

    regions = field(100)
    mask = regions.argmax(0).to(torch.uint8)
    mask[field(25)[0] > 1.1] = IGNORE
    probs = (4 * (regions + 0.1 * field(50) + noise * field(10))).softmax(0)
    return mask, probs.contiguous()


def describe(mask: Tensor, probs: Tensor, num_classes: int) -> str:
    """Shares that decide the cost."""
    scores = Scores(num_classes, IGNORE, boundary=False)
    scores.update(probs, mask)
    pred = probs.argmax(0).to(torch.uint8) + 1
    on_contour = [float((contour(close_gaps(codes)) > 0).float().mean()) for codes in (scores._code_map(mask), pred)]
    return (
        f"{float((mask == IGNORE).float().mean()):.0%} ignored, {scores.result().pixel_accuracy:.0%} right, "
        f"contours {on_contour[0]:.1%} of the truth and {on_contour[1]:.1%} of the prediction"
    )


def report(rows: dict[str, Callable[[], object]]) -> None:
    print(f"{'':44s}{'median ms':>10s}{'x bincount':>12s}{'quartiles':>16s}")
    seconds = time_in_turn(list(rows.values()))
    for name, own in zip(rows, seconds, strict=True):
        ratios = [a / b for a, b in zip(own, seconds[0], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:44s}{statistics.median(own) * 1e3:10.2f}{middle:12.2f}{f'{low:.2f} - {high:.2f}':>16s}")


def make_rows(mask: Tensor, probs: Tensor, num_classes: int) -> dict[str, Callable[[], object]]:
    labels = mask.long().flatten()
    plain = Scores(num_classes, IGNORE, boundary=False)
    full = Scores(num_classes, IGNORE)
    truth = plain._code_map(mask)
    confidence, highest = probs.max(0)
    pred = (highest.to(torch.uint8) + 1) * truth.clamp(max=1)
    distance = band_width(*mask.shape)

    def confusion() -> None:
        plain.confusion.update(pred, plain._code_map(mask))

    def without_boundary() -> None:
        confusion()
        plain._count_confidence(confidence, pred, truth)

    def with_boundary() -> None:
        without_boundary()
        band_counts(truth, pred, num_classes, distance)
        contour_counts(truth, pred, num_classes, TOLERANCES)

    return {
        "torch.bincount of the label map (int64)": lambda: torch.bincount(labels, minlength=num_classes),
        "confusion matrix": confusion,
        "+ calibration": without_boundary,
        "+ Boundary IoU and F1 at 1, 3, 5 px": with_boundary,
        "  of which Boundary IoU": lambda: band_counts(truth, pred, num_classes, distance),
        "  of which boundary F1": lambda: contour_counts(truth, pred, num_classes, TOLERANCES),
        "highest of the probabilities (probs.max)": lambda: probs.max(0),
        "Scores.update, all of the above": lambda: full.update(probs, mask),
    }


def time_in_turn(calls: list[Callable[[], object]]) -> list[list[float]]:
    """Seconds of each call in each repeat, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 1):
        for own, call in zip(seconds, calls, strict=True):
            start = time.process_time()
            call()
            if repeat:
                own.append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
