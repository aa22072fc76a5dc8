"""The loss scale of float16. Its logic is the same in float32, where a power of two changes no bit of a result."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from threads import in_threads

from cwbass.errors import CwbassError
from cwbass.methods import METHODS, build_method
from cwbass.models.base import SegmentationNet
from cwbass.training.loop import EpochRecord, Schedule, fit
from cwbass.training.loss_scale import LossScale
from cwbass.types import LabeledBatch, StepOutput, UnlabeledBatch
from cwbass.world import World

MakeBatches = Callable[..., tuple[list[LabeledBatch], list[UnlabeledBatch]]]
FINE = torch.tensor(1.0)


def run(
    method: Any,
    batches: list[LabeledBatch],
    scale: LossScale | None,
    *,
    unlabeled: list[UnlabeledBatch] | None = None,
    lr: float = 0.1,
    **settings: Any,
) -> EpochRecord:
    records: list[EpochRecord] = []
    optimizer = torch.optim.SGD(method.student.parameters(), lr=lr)
    optimizer.param_groups[0]["base_lr"] = lr
    steps = len(batches) // settings.get("accumulate", 1)
    fit(
        method,
        batches,
        unlabeled,
        optimizer=optimizer,
        schedule=Schedule(0, steps, steps, steps, 0),
        rate_factor=lambda step, total_steps: 1.0,
        seed=0,
        device=torch.device("cpu"),
        autocast_dtype=None,
        on_epoch=lambda record: records.append(record) is None,
        loss_scale=scale,
        **settings,
    )
    return records[0]


def cliff(scripted: Any) -> Any:
    """A method whose loss is 0 and whose gradient is infinite, at any scale."""

    class Cliff(scripted):
        def training_step(self, *batches_and_progress: Any) -> StepOutput:
            output = super().training_step(*batches_and_progress)
            return replace(output, loss=(self.student.weight - self.student.weight.detach()).sqrt())

    return Cliff([1.0] * 9)


@pytest.mark.parametrize("seed", range(5))
def test_it_grows_and_shrinks_as_torchs_does(seed: int) -> None:
    """The reference: torch.amp.GradScaler, told of the same overflows."""
    draw = random.Random(seed)
    own, theirs = LossScale(2.0**10, growth_interval=3), torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    seen = set()
    for _ in range(60):
        overflows = own.value > 4 and draw.random() < 0.3  # torch's goes below 1
        theirs.scale(parameter * (math.inf if overflows else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        own.step_overflowed(FINE) if overflows else own.step_taken()
        assert own.value == theirs.get_scale()
        seen.add(own.value)
    assert len(seen) > 4


def test_a_loss_in_half_precision_is_scaled_in_single() -> None:
    scaled = LossScale().scale(torch.tensor(2.0, dtype=torch.float16))  # which ends at 65,504
    assert (scaled.dtype, scaled.item()) == (torch.float32, 2.0**17)


def test_steps_of_the_search_are_skipped_and_are_no_incident(
    scripted: Any, make_batches: MakeBatches, caplog: pytest.LogCaptureFixture
) -> None:
    """1e18 * 2^70 and 2^69 overflow float32, 1e18 * 2^68 = 2.95e38 does not."""
    method, scale, incidents = scripted([1e18] * 4), LossScale(2.0**70), []
    with caplog.at_level(logging.INFO):
        record = run(method, make_batches(4)[0], scale, lr=1e-19, on_skip=incidents.append, max_nonfinite=1)
    assert (scale.value, record.overflows, record.nonfinite, incidents) == (2.0**68, 2, 0, [])
    assert method.student.weight.item() == pytest.approx(1 - 2 * 0.1)  # steps 2 and 3, at the gradient's own size
    assert method.updates == [2, 3]
    assert record.means["grad_norm"] == pytest.approx(1e18)
    assert record.sums == {"pixels": [2.0, 4.0]}
    assert caplog.text.count("its gradient overflows; skipped, the loss scale is") == 2


def test_a_loss_that_is_not_finite_is_an_incident_at_any_scale(scripted: Any, make_batches: MakeBatches) -> None:
    scale, incidents = LossScale(), []
    record = run(scripted([1.0, math.nan, 1.0]), make_batches(3)[0], scale, on_skip=incidents.append)
    assert (incidents, record.nonfinite, record.overflows, scale.value) == ([1], 1, 0, 2.0**16)


def test_at_the_lowest_scale_overflows_are_incidents_and_end_the_run(scripted: Any, make_batches: MakeBatches) -> None:
    scale, incidents = LossScale(4.0), []
    method = cliff(scripted)
    with pytest.raises(CwbassError, match=r"3 steps in a row \(the last is 4\)"):
        run(method, make_batches(9)[0], scale, on_skip=incidents.append, max_nonfinite=3)
    assert (scale.value, incidents, len(method.calls)) == (1.0, [2, 3, 4], 5)


@pytest.mark.parametrize(("limit", "moved"), [(None, 5.0), (2.0, 2.0)])
def test_gradients_are_clipped_at_their_own_size(
    scripted: Any, make_batches: MakeBatches, limit: float | None, moved: float
) -> None:
    method = scripted([5.0])
    run(method, make_batches(1)[0], LossScale(), lr=1.0, max_grad_norm=limit)
    assert method.student.weight.item() == pytest.approx(1 - moved, abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["supervised", "cw_bass"])  # the latter takes the gradient of its loss in two parts
def test_a_scale_changes_no_bit_of_float32(
    tiny_net: type[SegmentationNet], make_batches: MakeBatches, name: str, accumulate: int
) -> None:
    def trained(scale: LossScale | None) -> tuple[dict[str, torch.Tensor], EpochRecord]:
        torch.manual_seed(0)
        config = METHODS[name].config_cls.model_validate({"name": name})
        method = build_method(config, tiny_net, num_classes=3, ignore_index=255)
        labeled, unlabeled = make_batches(6)
        given = unlabeled if method.needs_unlabeled else None
        record = run(method, labeled, scale, unlabeled=given, accumulate=accumulate, max_grad_norm=0.05)
        return method.state_dict(), record

    (plain, first), (scaled, second) = trained(None), trained(LossScale(2.0**16, growth_interval=2))
    assert all(torch.equal(value, scaled[name]) for name, value in plain.items())
    assert first.means == second.means


def test_going_on_from_a_saved_scale_is_going_on() -> None:
    whole, first, second = (LossScale(2.0**4, growth_interval=3) for _ in range(3))
    steps = [True, True, False, True, True, True, True]
    values = []
    for taken in steps:
        whole.step_taken() if taken else whole.step_overflowed(FINE)
        values.append(whole.value)
    assert values == [16, 16, 8, 8, 8, 16, 16]
    for taken in steps[:5]:
        first.step_taken() if taken else first.step_overflowed(FINE)
    second.load(first.state())
    second.step_taken()
    assert second.value == 16


def test_all_processes_have_one_scale_and_agree_on_who_is_to_blame(scripted: Any, make_batches: MakeBatches) -> None:
    """Of two processes, the second alone has a gradient that overflows (step 0), and a loss that is not finite (step 2)."""
    batches = make_batches(4)[0]

    def train(world: World) -> tuple[Any, ...]:
        scale, incidents = LossScale(2.0**69), []
        method = scripted([1.0, 1.0, 1.0, 1.0] if world.main else [1e18, 1e18, math.nan, 1.0])
        record = run(method, batches, scale, lr=1e-19, on_skip=incidents.append, world=world)
        return scale.state(), incidents, record.overflows, method.student.weight.item()

    first, second = in_threads(2, train)
    assert first == second
    assert first[:3] == ({"value": 2.0**68, "clean": 2}, [2], 1)
