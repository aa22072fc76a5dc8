"""What evaluation costs: a pass over a dataset against the network's forward passes, and metrics against one bincount."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import R50, Case, lite0
from benchmarks.harness import Pair, Row, at_least, at_most
from benchmarks.photos import CITY, VOC, write_photos
from cwbass.config import EvalConfig
from cwbass.data.base import DatasetSpec, default_palette, read_image
from cwbass.evaluation.evaluate import evaluate
from cwbass.evaluation.inference import Predictor, predict_probs
from cwbass.evaluation.metrics import Scores
from cwbass.memory import keep_freed_memory
from cwbass.models import build_model
from cwbass.pixels import highest, look_up
from cwbass.pseudo_labels import probabilities
from cwbass.training.device import place

IGNORE = 255
CPU = torch.device("cpu")

_keep: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def measure(case: Case, protocol: EvalConfig, images: int, repeats: int) -> Pair:
    """``evaluate`` with all its metrics, against the same batches through the network alone."""
    keep_freed_memory()  # as every command does
    _keep.append(tempfile.TemporaryDirectory(prefix="cwbass-bench-"))
    root = Path(_keep[-1].name)
    samples = write_photos(root, images, VOC, case.classes)
    torch.manual_seed(0)
    net = place(build_model(case.model, case.class_names), CPU).eval()
    spec = DatasetSpec(
        case.class_names,
        default_palette(case.classes),
        ids={**{index: index for index in range(case.classes)}, IGNORE: IGNORE},
    )
    batches: list[Tensor] = []

    def record(batch: Tensor) -> Tensor:
        batches.append(batch)
        return torch.zeros(len(batch), case.classes, *batch.shape[2:])

    for sample in samples:
        predict_probs(record, torch.tensor(read_image(root / sample.image))[None].permute(0, 3, 1, 2), protocol)  # type: ignore[arg-type]

    def ours() -> None:
        evaluate(net, samples, root=root, spec=spec, predictor=Predictor(protocol, CPU, case.dtype))

    @torch.inference_mode()
    def against() -> None:
        with torch.autocast("cpu", case.dtype, enabled=case.dtype is not None):
            for batch in batches:
                net(batch)

    return Pair(ours, against)


def score_map(size: tuple[int, int], num_classes: int, noise: float) -> tuple[Tensor, Tensor]:
    """A mask [H, W] uint8 of irregular regions, about 5 % of it ignored, and probabilities [C, H, W] that agree but for ``noise``.

    Contours take 2 % of the pixels of PASCAL VOC's masks and 4 % of CamVid's.
    """
    height, width = size
    generator = torch.Generator().manual_seed(0)

    def field(cell: int) -> Tensor:
        coarse = torch.randn(1, num_classes, height // cell, width // cell, generator=generator)
        return F.interpolate(coarse, (height, width), mode="bilinear")[0]

    regions = field(100)
    mask = regions.argmax(0).to(torch.uint8)
    mask[field(25)[0] > 1.1] = IGNORE
    probs = (4 * (regions + 0.1 * field(50) + noise * field(10))).softmax(0)
    return mask, probs.contiguous()


def measure_metrics(size: tuple[int, int], num_classes: int, noise: float, part: str, repeats: int) -> Pair:
    """Counting one image, against ``torch.bincount`` of its label map: CPU time on one thread."""
    keep_freed_memory()  # as every command does
    mask, probs = score_map(size, num_classes, noise)
    labels = mask.long().flatten()
    scores = Scores(num_classes, IGNORE)
    truth = scores._code_map(mask)
    pred = (probs.argmax(0).to(torch.uint8) + 1) * truth.clamp(max=1)
    plain = Scores(num_classes, IGNORE, boundary=False)
    calls = {
        "confusion": lambda: plain.count_labels(pred, plain._code_map(mask)),
        "boundary": lambda: scores.count_labels(pred, scores._code_map(mask)),
        "all": lambda: scores.update(probs, mask),
    }
    return Pair(
        _one_thread(calls[part]),
        _one_thread(lambda: torch.bincount(labels, minlength=num_classes)),
        calls=4,
        clock=time.process_time,
    )


def measure_many_classes(num_classes: int, repeats: int) -> Pair:
    """Probabilities and all scores of logits as a network writes them, against a softmax that makes planes first."""
    keep_freed_memory()  # as every command does
    mask, probs = score_map(VOC, num_classes, 0.05)
    logits, scores = probs.log()[None].contiguous(memory_format=torch.channels_last), Scores(num_classes, IGNORE)
    return Pair(
        _one_thread(lambda: scores.update(probabilities(logits)[0], mask)),
        _one_thread(lambda: scores.update(logits.softmax(1)[0], mask)),
        clock=time.process_time,
    )


def measure_highest(num_classes: int, plain: Callable[[Tensor, int], object], repeats: int) -> Pair:
    """Highest class and its probability of one image, against what torch has for it."""
    keep_freed_memory()  # as every command does
    _, probs = score_map(VOC, num_classes, 0.05)
    return Pair(_one_thread(lambda: highest(probs)), _one_thread(lambda: plain(probs, 0)), calls=4, clock=time.process_time)


def measure_look_up(repeats: int) -> Pair:
    """A class's value for each pixel of four masks of 176 pixels, against an index."""
    keep_freed_memory()  # as every command does
    table, index = torch.rand(11), torch.randint(0, 11, (4, 176, 176), generator=torch.Generator().manual_seed(0))
    return Pair(_one_thread(lambda: look_up(table, index)), _one_thread(lambda: table[index]), calls=4, clock=time.process_time)


def _one_thread(call: Callable[[], object]) -> Callable[[], object]:
    def wrapped() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            call()
        finally:
            torch.set_num_threads(threads)

    return wrapped


def _metric_rows() -> tuple[Row, ...]:
    rows = []
    bincount = "torch.bincount of the label map"
    for place_, size, num_classes in (("voc", VOC, 21), ("city", CITY, 19)):
        shape = f"{size[1]} x {size[0]}, {num_classes} classes"
        for part, what, goal in (
            ("confusion", "confusion matrix", at_most(2)),
            ("boundary", "confusion matrix, Boundary IoU and boundary F1", at_most(15)),
            ("all", "all scores, from probabilities", None),
        ):
            run = partial(measure_metrics, size, num_classes, 0.05, part)
            rows.append(Row(f"metrics.{place_}_{part}", f"{what}, {shape}", bincount, goal, run, 15))
        run = partial(measure_metrics, size, num_classes, 0.5, "boundary")
        what = f"the same, {shape}, of a prediction full of speckles"
        rows.append(Row(f"metrics.{place_}_speckles", what, bincount, at_most(15), run, 15))
    for num_classes in (40, 150):
        what = f"all scores, from logits side by side, 500 x 375, {num_classes} classes"
        run = partial(measure_many_classes, num_classes)
        rows.append(Row(f"metrics.side_by_side.{num_classes}", what, "the same by planes", at_least(1), run, 7))
    for num_classes in (11, 21):
        for name, plain in (("max", torch.max), ("argmax", torch.argmax)):
            what = f"highest class of each pixel and its probability, 500 x 375, {num_classes} classes"
            run = partial(measure_highest, num_classes, plain)
            rows.append(Row(f"metrics.highest.{num_classes}.{name}", what, f"torch.{name}", at_least(1), run, 15))
    what = "value of each pixel's class, 4 masks of 176 x 176 pixels"
    rows.append(Row("metrics.look_up", what, "an index", at_least(1), measure_look_up, 15))
    return tuple(rows)


ROWS = (
    Row(
        "eval.whole",
        "evaluation, DeepLabV3+ R50, 21 classes, 500 x 375",
        "its forward passes",
        at_most(1.1),
        partial(measure, R50, EvalConfig(), 4),
        8,
    ),
    Row(
        "eval.slide",
        "evaluation by windows of 321 px, DeepLabV3+ R50, 21 classes, 500 x 375",
        "its forward passes",
        at_most(1.1),
        partial(measure, R50, EvalConfig(protocol="slide", window=321, stride=214), 2),
        8,
    ),
    Row(
        "eval.lite0",
        "evaluation, U-Net Lite0, 11 classes, 500 x 375",
        "its forward passes",
        at_most(1.1),
        lambda repeats: measure(lite0(), EvalConfig(), 8, repeats),
        10,
    ),
    *_metric_rows(),
)
