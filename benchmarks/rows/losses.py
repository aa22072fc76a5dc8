"""What boundaries, pseudo-labels and losses cost beside the least that could be done with the same maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.cases import R50, Case, lite0, student_logits
from benchmarks.harness import Pair, Row, Samples, at_least, at_most
from benchmarks.peak import peak_of_call
from benchmarks.plain import one_hot_sobel
from cwbass import memory_format
from cwbass.losses.boundary import boundary_mask
from cwbass.losses.confidence import soft_cross_entropy
from cwbass.models.base import SegmentationNet
from cwbass.pseudo_labels import probabilities
from cwbass.types import Progress

SIZE = (4, 321, 321)


def label_map(classes: int) -> Tensor:
    """Regions of random classes. [B, H, W] int64."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, classes, (SIZE[0], 41, 41), generator=generator)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : SIZE[1], : SIZE[2]].contiguous()


def _boundary(classes: int) -> Callable[[int], Pair]:
    def measure(repeats: int) -> Pair:
        label = label_map(classes)
        assert torch.equal(boundary_mask(label, frame="zero"), one_hot_sobel(label, classes))
        return Pair(lambda: boundary_mask(label, frame="zero"), lambda: one_hot_sobel(label, classes), note="maps are equal")

    return measure


def _boundary_memory(repeats: int) -> Samples:
    many, few = (peak_of_call(lambda k=k: boundary_mask(label_map(k), frame="zero")) for k in (150, 21))
    return Samples([many], [few], unit="MB")


class Known(SegmentationNet):
    """In a network's place: logits that are there already, and features of next to no size."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.logits = logits

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.logits.new_zeros(len(image), 1, 1, 1)]

    def decode(self, features: list[Tensor]) -> Tensor:
        assert len(features[0]) == len(self.logits)
        return self.logits

    def encoder_parameters(self) -> list[nn.Parameter]:
        return []


def step_without_networks(case: Case) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward part of a training step when all logits are known, and a softmax over each of their maps.

    They are laid out as the network lays them out: labelled and unlabelled images are one batch of the student.
    """
    method = case.method()
    labeled, unlabeled = case.batches()
    with torch.no_grad():
        teacher = method.teacher(unlabeled.weak)
        student = student_logits(method, torch.cat((labeled.image, unlabeled.strong)), len(labeled.image))
    method.teacher, method.student = Known(teacher), Known(student)
    progress = Progress(1, 100, 0, 0, torch.Generator())

    @torch.no_grad()
    def step() -> object:
        progress.generator.manual_seed(0)
        return method.training_step(labeled, unlabeled, progress).loss

    return step, lambda: [logits.softmax(1) for logits in (teacher, student)]


def _forward(case: Callable[[], Case]) -> Callable[[int], Pair]:
    def measure(repeats: int) -> Pair:
        return Pair(*step_without_networks(case()), note=case().name)

    return measure


def _side_by_side(classes: int) -> Callable[[int], Pair]:
    """A teacher's probabilities, the cross-entropy with them and its gradient, of logits as a network writes them."""

    def measure(repeats: int) -> Pair:
        generator = torch.Generator().manual_seed(0)
        teacher, student = (
            torch.randn(4, classes, 96, 96, generator=generator).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )
        student.requires_grad_()

        def read_from(many: int) -> None:
            before, memory_format.MANY = memory_format.MANY, many
            try:
                soft_cross_entropy(student, probabilities(teacher)).sum().backward()
            finally:
                memory_format.MANY = before
            assert student.grad is not None
            student.grad = None

        return Pair(lambda: read_from(0), lambda: read_from(classes + 1), note="4 images of 96 px")

    return measure


def _forward_memory(repeats: int) -> Samples:
    step, _ = step_without_networks(replace(lite0(), classes=150, size=96))
    softmax = torch.zeros(4, 150, 96, 96)
    return Samples([peak_of_call(step)], [softmax.nbytes / 1e6], unit="MB", note="150 classes, 4+4 images of 96 px")


SOBEL = "one-hot planes and a Sobel pair by grouped convolution"
SOFTMAX = "one softmax over the same logits: the teacher's, and the student's of both kinds of images"

ROWS: tuple[Row, ...] = (
    Row("losses.boundary.21", "boundary of a label map, 21 classes", SOBEL, at_least(20), _boundary(21)),
    Row("losses.boundary.150", "boundary of a label map, 150 classes", SOBEL, at_least(20), _boundary(150), repeats=7),
    Row("losses.boundary.memory", "memory for a boundary, 150 classes", "21 classes", at_most(1.0), _boundary_memory, repeats=1),
    Row("losses.r50", "all of a step's forward part but the networks", SOFTMAX, at_most(3), _forward(lambda: R50)),
    Row("losses.lite0", "all of a step's forward part but the networks", SOFTMAX, at_most(3), _forward(lite0)),
    *(
        Row(
            f"losses.side_by_side.{classes}",
            f"probabilities, cross-entropy and its gradient, {classes} classes read side by side",
            "the same, read plane by plane",
            at_least(1) if classes >= memory_format.MANY else None,
            _side_by_side(classes),
        )
        for classes in (11, 21, 32, 150)
    ),
    Row(
        "losses.memory",
        "memory of the same",
        "one map of probabilities",
        at_most(1.75),
        _forward_memory,
        repeats=1,
    ),
)
