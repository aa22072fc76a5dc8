"""Batches with nothing to learn from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.methods.supervised import Supervised, SupervisedConfig
from cwbass.models.base import SegmentationNet
from cwbass.training.loop import EpochRecord, Schedule, fit
from cwbass.types import LabeledBatch, UnlabeledBatch

MakeBatches = Callable[..., tuple[list[LabeledBatch], list[UnlabeledBatch]]]


def nothing_valid(
    make_batches: MakeBatches, *, labeled: bool, unlabeled: bool
) -> tuple[list[LabeledBatch], list[UnlabeledBatch]]:
    """Three batches, of which the second has no labelled, or no unlabelled pixel that takes part."""
    batches_x, batches_u = make_batches(3)
    if labeled:
        batches_x[1] = LabeledBatch(batches_x[1].image, torch.full_like(batches_x[1].mask, 255))
    if unlabeled:
        batches_u[1] = UnlabeledBatch(batches_u[1].weak, batches_u[1].strong, torch.zeros_like(batches_u[1].valid))
    return batches_x, batches_u


def learn(method: CwBass | Supervised, batches_x: list[LabeledBatch], batches_u: list[UnlabeledBatch] | None) -> EpochRecord:
    records: list[EpochRecord] = []
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    optimizer.param_groups[0]["base_lr"] = 0.1
    fit(
        method,
        batches_x,
        batches_u,
        optimizer=optimizer,
        schedule=Schedule(0, 3, 3, 3, 0),
        rate_factor=lambda step, total_steps: 1.0,
        seed=0,
        device=torch.device("cpu"),
        autocast_dtype=None,
        on_epoch=lambda record: records.append(record) is None,
    )
    return records[0]


@pytest.mark.parametrize(("labeled", "unlabeled"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("recipe", ["cwbass", "paper"])
def test_a_batch_without_a_valid_pixel_is_a_step_and_not_an_error(
    recipe: str, labeled: bool, unlabeled: bool, tiny_net: type[SegmentationNet], make_batches: MakeBatches
) -> None:
    torch.manual_seed(0)
    config = CwBassConfig.model_validate({"recipe": recipe, "cwbass": {"threshold": {"rule": "strict", "strict": 0.0}}})
    method = CwBass(config, tiny_net, num_classes=3, ignore_index=255)
    record = learn(method, *nothing_valid(make_batches, labeled=labeled, unlabeled=unlabeled))
    assert record.nonfinite == 0
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    seen = 3 * 2 * 36 - (2 * 36 if unlabeled and recipe == "cwbass" else 0)  # the paper's recipe takes padding for image
    assert sum(record.sums["seen"]) == seen  # type: ignore[arg-type]


def test_supervised_training_learns_nothing_from_a_batch_without_a_label(
    tiny_net: type[SegmentationNet], make_batches: MakeBatches
) -> None:
    torch.manual_seed(0)
    method = Supervised(SupervisedConfig(), tiny_net, num_classes=3, ignore_index=255)
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    batches = [LabeledBatch(batch.image, torch.full_like(batch.mask, 255)) for batch in make_batches(3)[0]]
    record = learn(method, batches, None)
    assert record.means["loss"] == 0
    assert all(torch.equal(value, before[name]) for name, value in method.student.state_dict().items())
