"""A step that is skipped leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cwbass.methods.base import Method
from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.methods.supervised import Supervised, SupervisedConfig
from cwbass.models.base import SegmentationNet
from cwbass.training.loop import Schedule, fit
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch

MakeBatches = Callable[..., tuple[list[LabeledBatch], list[UnlabeledBatch]]]


class Poisoned(nn.Conv2d):
    """Once switched on, its answer is not finite."""

    on = False

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (math.nan if self.on else 1.0)


def make(name: str, net: type[SegmentationNet]) -> Method:
    torch.manual_seed(0)
    if name == "supervised":
        return Supervised(SupervisedConfig(), net, num_classes=3, ignore_index=255)
    config = CwBassConfig.model_validate({"cwbass": {"threshold": {"rule": "floor"}}})
    return CwBass(config, net, num_classes=3, ignore_index=255)


@pytest.mark.parametrize("name", ["supervised", "cw_bass"])
def test_weights_statistics_and_thresholds_are_those_of_a_run_without_the_step(
    name: str, normed_net: type[SegmentationNet], make_batches: MakeBatches
) -> None:
    labeled, unlabeled = make_batches(3)

    def run(method: Method, steps: list[tuple[int, int]], bad: int | None = None) -> dict[str, Tensor]:
        if bad is not None:
            poison(method, bad)
        optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1, momentum=0.9)
        optimizer.param_groups[0]["base_lr"] = 0.1
        for start, stop in steps:
            fit(
                method,
                labeled[start:stop],
                unlabeled[start:stop] if method.needs_unlabeled else None,
                optimizer=optimizer,
                schedule=Schedule(start, stop, 3, 3, 0),
                rate_factor=lambda step, total_steps: 1.0,
                seed=0,
                device=torch.device("cpu"),
                autocast_dtype=None,
                on_epoch=lambda record: True,
            )
        return method.state_dict()

    skipped, without = run(make(name, normed_net), [(0, 3)], bad=1), run(make(name, normed_net), [(0, 1), (2, 3)])
    assert any("running_var" in key for key in without)
    for key, value in without.items():
        assert torch.equal(skipped[key], value), key


def poison(method: Method, bad: int) -> None:
    """Let activations before the batch norm be NaN in one step."""
    conv = method.student.encoder[0]  # type: ignore[index]
    conv.__class__ = Poisoned
    step: Any = method.training_step

    def training_step(labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        conv.on = progress.step == bad
        output: StepOutput = step(labeled, unlabeled, progress)
        conv.on = False
        return output

    method.training_step = training_step  # type: ignore[method-assign]
