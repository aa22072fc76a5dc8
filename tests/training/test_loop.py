from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from threads import in_threads

from cwbass.config import OptimizerConfig
from cwbass.errors import CwbassError
from cwbass.methods import METHODS, build_method
from cwbass.methods.base import Method
from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.methods.supervised import Supervised, SupervisedConfig
from cwbass.models.base import SegmentationNet
from cwbass.optimizers import RateFactor, rate_factor
from cwbass.training.loop import EpochRecord, Meter, Schedule, fit
from cwbass.training.optim import build_optimizer
from cwbass.training.seed import seed_everything
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch
from cwbass.world import ALONE, World

NAN = math.nan
Net = type[SegmentationNet]
MakeBatches = Callable[..., tuple[list[LabeledBatch], list[UnlabeledBatch]]]


def schedule(stop: int, *, start: int = 0, stage_start: int = 0, epoch_steps: int = 1000, total: int = 100) -> Schedule:
    return Schedule(start=start, stop=stop, total=total, epoch_steps=epoch_steps, stage_start=stage_start, pass_steps=7)


def sgd(method: Method, lr: float = 0.1, momentum: float = 0.0) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(method.student.parameters(), lr=lr, momentum=momentum)
    for group in optimizer.param_groups:
        group["base_lr"] = lr
    return optimizer


def poly(power: float) -> RateFactor:
    return rate_factor(OptimizerConfig(poly_power=power))


def train(
    method: Method, labeled: list[LabeledBatch], unlabeled: list[UnlabeledBatch] | None = None, **settings: Any
) -> list[EpochRecord]:
    """Run the loop and return its records."""
    records: list[EpochRecord] = []

    def on_epoch(record: EpochRecord) -> bool:
        records.append(record)
        return True

    defaults: dict[str, Any] = {
        "rate_factor": lambda step, total_steps: 1.0,
        "seed": 0,
        "device": torch.device("cpu"),
        "autocast_dtype": None,
        "on_epoch": on_epoch,
    }
    settings.setdefault("optimizer", sgd(method))
    fit(method, labeled, unlabeled, **{**defaults, **settings})
    return records


def supervised(net: Net) -> Supervised:
    torch.manual_seed(0)
    return Supervised(SupervisedConfig(), net, num_classes=3, ignore_index=255)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (schedule(10, epoch_steps=4), [(0, 4), (1, 8), (2, 10)]),  # the last epoch is short
        (schedule(8, epoch_steps=4), [(0, 4), (1, 8)]),
        (schedule(3, epoch_steps=4), [(0, 3)]),
        (schedule(10, start=6, epoch_steps=4), [(1, 8), (2, 10)]),  # continued in the middle of an epoch
        (schedule(10, start=3, stage_start=3, epoch_steps=4), [(0, 7), (1, 10)]),  # a second stage
        (schedule(5, start=5), []),
    ],
)
def test_epochs_end_where_the_schedule_says(
    scripted: Any, make_batches: MakeBatches, plan: Schedule, expected: list[tuple[int, int]]
) -> None:
    method = scripted([1.0] * 10)
    steps: list[int] = []
    records = train(method, make_batches(10)[0], schedule=plan, on_step=steps.append)
    assert [(record.epoch, record.step) for record in records] == expected
    assert steps == list(range(plan.start + 1, plan.stop + 1))
    assert [p.step for p in method.calls] == list(range(plan.start, plan.stop))
    assert [p.epoch for p in method.calls] == [
        (step - plan.stage_start) // plan.epoch_steps for step in range(plan.start, plan.stop)
    ]
    assert all((p.total_steps, p.start_step, p.pass_steps) == (100, plan.stage_start, 7) for p in method.calls)
    assert not expected or plan.epochs == expected[-1][0] + 1


def test_a_record_holds_means_sums_and_rates_of_its_own_epoch(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([1.0, 3.0, 5.0])
    records = train(
        method,
        make_batches(3, size=5)[0],
        schedule=schedule(3, epoch_steps=2, total=4),
        optimizer=sgd(method, lr=0.0),
        rate_factor=poly(1.0),
    )
    first, second = records
    assert first.means == {"loss": 2.0, "grad_norm": 2.0}  # the gradient is the script's number
    assert second.means == {"loss": 5.0, "grad_norm": 5.0}
    assert (first.sums, second.sums) == ({"pixels": [2.0, 4.0]}, {"pixels": [1.0, 2.0]})
    assert (first.images, second.images) == (10, 5)
    assert 0 <= first.data_wait <= 1


def test_the_learning_rate_follows_the_whole_run(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([0.0] * 4)
    plan = schedule(7, start=4, stage_start=4, epoch_steps=1, total=8)
    records = train(method, make_batches(4)[0], schedule=plan, optimizer=sgd(method, lr=0.8), rate_factor=poly(1.0))
    assert [record.learning_rate for record in records] == pytest.approx([0.4, 0.3, 0.2])


def test_a_meter_counts_on_in_half_precision_and_keeps_numbers_of_its_own() -> None:
    meter, one = Meter(), torch.ones((), dtype=torch.bfloat16)
    pixels = torch.ones(2)
    for _ in range(300):  # bfloat16 has no 257
        meter.add({"loss": one}, {"pixels": pixels}, 2)
    pixels.zero_()
    record = meter.record(0, 300, 0.1, ALONE)
    assert (record.means, record.sums) == ({"loss": 1.0}, {"pixels": [300.0, 300.0]})


def test_a_saved_meter_gives_the_record_of_the_whole_epoch() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(3.0)}, {"pixels": torch.tensor([1, 2])}, 5)
    meter.steps, meter.nonfinite, meter.overflows, meter.nonfinite_in_a_row = 6, 2, 1, 2
    meter.wait_seconds, meter.started = 25.0, meter.started - 100
    again = Meter()
    again.load(meter.state(), torch.device("cpu"))
    assert again.nonfinite_in_a_row == 2
    before, after = (each.record(3, 9, 0.1, ALONE) for each in (meter, again))
    assert (after.seconds, after.data_wait, after.step_seconds) == pytest.approx((100, 0.25, 100 / 9), rel=0.01)
    times = {"seconds": 0.0, "data_wait": 0.0, "step_seconds": 0.0}
    assert replace(after, **times) == replace(before, **times)


def test_a_record_is_of_all_processes_together() -> None:
    def record(world: World) -> EpochRecord:
        meter = Meter()
        meter.add({"loss": torch.tensor(1.0 + 2 * world.rank)}, {"pixels": torch.tensor([1, 2 + world.rank])}, 3)
        return meter.record(0, 1, 0.1, world)

    for found in in_threads(2, record):
        assert (found.means, found.sums, found.images) == ({"loss": 2.0}, {"pixels": [2.0, 5.0]}, 6)


def test_global_draws_are_others_in_each_process_and_a_step_s_own_are_not(scripted: Any, make_batches: MakeBatches) -> None:
    class Drops(scripted):
        def training_step(self, *batches_and_progress: Any) -> StepOutput:
            self.dropped = float(torch.rand(()))
            return super().training_step(*batches_and_progress)

    class Second(World):
        rank = 1

    one, other = Drops([1.0]), Drops([1.0])
    train(one, make_batches(1)[0], schedule=schedule(1))
    train(other, make_batches(1)[0], schedule=schedule(1), world=Second())
    assert one.draws == other.draws
    assert one.dropped != other.dropped


def test_on_epoch_can_end_the_stage(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([1.0] * 10)
    ended: list[int] = []

    def on_epoch(record: EpochRecord) -> bool:
        ended.append(record.step)
        return record.step < 4

    train(method, make_batches(10)[0], schedule=schedule(10, epoch_steps=2), on_epoch=on_epoch)
    assert ended == [2, 4]
    assert len(method.calls) == 4


def test_the_student_trains_again_after_it_was_scored(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([1.0] * 4)
    method.student.eval()

    def on_epoch(record: EpochRecord) -> bool:
        method.student.eval()
        return True

    train(method, make_batches(4)[0], schedule=schedule(4, epoch_steps=2), on_epoch=on_epoch)
    assert method.training_at == [True] * 4


def test_two_batches_accumulated_are_one_of_double_size(tiny_net: Net, make_batches: MakeBatches) -> None:
    small, _ = make_batches(4)
    large = [
        LabeledBatch(torch.cat((a.image, b.image)), torch.cat((a.mask, b.mask)))
        for a, b in zip(small[::2], small[1::2], strict=True)
    ]
    one, other = supervised(tiny_net), supervised(tiny_net)
    (accumulated,) = train(one, small, schedule=schedule(2), accumulate=2)
    (whole,) = train(other, large, schedule=schedule(2))
    for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert accumulated.means["loss"] == pytest.approx(whole.means["loss"])
    assert accumulated.images == whole.images == 8
    assert accumulated.step_seconds == pytest.approx(accumulated.seconds / 2)  # of a step, and not of a batch


class InTwoParts(Supervised):
    """Settles half of its loss; it notes what the student's gradient was by then."""

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        half = super().training_step(labeled, unlabeled, progress).loss / 2
        settled = progress.settle(half)
        self.settled = settled.requires_grad, next(self.student.parameters()).grad is not None
        del half
        rest = super().training_step(labeled, unlabeled, progress).loss / 2
        return StepOutput(settled + rest, {"loss": settled + rest.detach()})


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_part_that_is_settled_early_counts_as_it_would_in_the_end(
    tiny_net: Net, make_batches: MakeBatches, dtype: torch.dtype | None
) -> None:
    batches, _ = make_batches(4)
    plain = supervised(tiny_net)
    torch.manual_seed(0)
    parts = InTwoParts(SupervisedConfig(), tiny_net, num_classes=3, ignore_index=255)
    records = [train(method, batches, schedule=schedule(2), accumulate=2, autocast_dtype=dtype)[0] for method in (plain, parts)]
    assert parts.settled == (False, True)
    assert records[0].means["loss"] == pytest.approx(records[1].means["loss"])
    for a, b in zip(plain.student.parameters(), parts.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    scripted: Any, make_batches: MakeBatches, caplog: pytest.LogCaptureFixture
) -> None:
    method = scripted([1.0, NAN, 3.0, math.inf])
    steps: list[int] = []
    skipped: list[int] = []
    with caplog.at_level(logging.WARNING):
        (record,) = train(method, make_batches(4)[0], schedule=schedule(4), on_step=steps.append, on_skip=skipped.append)
    assert skipped == [1, 3]
    weight = 1 - 0.1 * 1.0 - 0.1 * 3.0  # steps 1 and 3 alone
    assert method.student.weight.item() == pytest.approx(weight)
    assert method.updates == [0, 2]  # nor does the teacher follow
    assert steps == [1, 2, 3, 4]
    assert record.nonfinite == 2
    assert record.means["loss"] == pytest.approx((1.0 + 3.0 * 0.9) / 2)  # and no NaN gets into the record
    assert record.sums == {"pixels": [2.0, 4.0]}
    assert record.images == 4
    assert "step 1: loss or gradient is not finite; the step is skipped" in caplog.text


def test_an_infinite_loss_whose_gradient_is_finite_is_skipped_too(make_batches: MakeBatches, tiny_net: Net) -> None:
    class Impossible(Supervised):
        """Says of some pixels that their class cannot be: minus infinity, as half precision has it from 65,504 on."""

        def supervised_loss(self, logits: torch.Tensor, *others: Any) -> torch.Tensor:
            return super().supervised_loss(torch.cat((logits[:, :1], logits[:, 1:] - math.inf), 1), *others)

    method = Impossible(SupervisedConfig(), tiny_net, num_classes=3, ignore_index=255)
    before = copy.deepcopy(method.state_dict())
    (record,) = train(method, make_batches(1)[0], schedule=schedule(1))
    assert record.nonfinite == 1
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_one_bad_batch_of_several_skips_their_step(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([1.0, NAN, 2.0, 4.0])
    (record,) = train(method, make_batches(4)[0], schedule=schedule(2), accumulate=2)
    assert method.student.weight.item() == pytest.approx(1 - 0.1 * 3.0)
    assert record.nonfinite == 1
    assert record.means["loss"] == pytest.approx(3.0)
    assert record.means["grad_norm"] == pytest.approx(3.0)  # of the mean of both batches


def test_too_many_bad_steps_in_a_row_are_an_error(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([1.0, NAN, NAN, NAN, 1.0])
    with pytest.raises(CwbassError, match=r"3 steps in a row \(the last is 3\).*Lower train\.optimizer\.lr"):
        train(method, make_batches(5)[0], schedule=schedule(5, epoch_steps=2), max_nonfinite=3)
    assert len(method.calls) == 4


def test_a_good_step_forgives_the_bad_ones_before_it(scripted: Any, make_batches: MakeBatches) -> None:
    method = scripted([NAN, NAN, 1.0, NAN, NAN, 1.0])
    (record,) = train(method, make_batches(6)[0], schedule=schedule(6), max_nonfinite=3)
    assert record.nonfinite == 4


@pytest.mark.parametrize(("limit", "moved"), [(None, 5.0), (2.0, 2.0), (100.0, 5.0)])
def test_the_gradient_is_clipped_to_its_norm(scripted: Any, make_batches: MakeBatches, limit: float | None, moved: float) -> None:
    method = scripted([5.0])
    train(method, make_batches(1)[0], schedule=schedule(1), optimizer=sgd(method, lr=1.0), max_grad_norm=limit)
    assert method.student.weight.item() == pytest.approx(1 - moved, abs=1e-5)


def test_every_step_draws_its_own_numbers_from_seed_and_step(scripted: Any, make_batches: MakeBatches) -> None:
    whole, tail, other = scripted([1.0] * 6), scripted([1.0] * 3), scripted([1.0] * 6)
    batches = make_batches(6)[0]
    train(whole, batches, schedule=schedule(6), seed=1)
    train(tail, batches[3:], schedule=schedule(6, start=3), seed=1)
    train(other, batches, schedule=schedule(6), seed=2)
    assert len(set(whole.draws)) == 6
    assert tail.draws == whole.draws[3:]
    assert set(other.draws).isdisjoint(whole.draws)


def test_six_steps_are_three_and_a_continued_three(tiny_net: Net, make_batches: MakeBatches) -> None:
    labeled, unlabeled = make_batches(6)

    def make() -> tuple[CwBass, torch.optim.Optimizer]:
        seed_everything(0)
        config = CwBassConfig.model_validate({"cwbass": {"cutmix": 1.0, "threshold": {"rule": "per_class", "low": 0.1}}})
        method = CwBass(config, tiny_net, num_classes=3, ignore_index=255)
        return method, sgd(method, momentum=0.9)

    whole, optimizer = make()
    train(whole, labeled, unlabeled, schedule=schedule(6), optimizer=optimizer, rate_factor=poly(0.9))

    first, optimizer = make()
    train(first, labeled[:3], unlabeled[:3], schedule=schedule(3), optimizer=optimizer, rate_factor=poly(0.9))
    second, fresh = make()
    second.load_state_dict(first.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    torch.rand(7)  # what the process drew in between does not matter
    train(second, labeled[3:], unlabeled[3:], schedule=schedule(6, start=3), optimizer=fresh, rate_factor=poly(0.9))

    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    start = make()[0]
    assert not torch.equal(start.student.get_parameter("head.weight"), whole.student.get_parameter("head.weight"))


def test_bfloat16_autocast_keeps_weights_and_losses_in_float32(tiny_net: Net, make_batches: MakeBatches) -> None:
    labeled, unlabeled = make_batches(2)
    torch.manual_seed(0)
    method = CwBass(CwBassConfig.model_validate({"recipe": "paper"}), tiny_net, num_classes=3, ignore_index=255)
    seen: list[torch.dtype] = []
    method.student.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    (record,) = train(method, labeled, unlabeled, schedule=schedule(2), autocast_dtype=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in method.parameters())
    assert isinstance(record.means["loss_unsup"], float)
    assert math.isfinite(record.means["loss_unsup"])
    assert record.nonfinite == 0
    assert record.images == 8


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_bfloat16(name: str, tiny_net: Net, make_batches: MakeBatches) -> None:
    labeled, unlabeled = make_batches(3)
    unlabeled = [replace(batch, strong2=batch.strong) for batch in unlabeled]
    torch.manual_seed(0)
    config = METHODS[name].config_cls.model_validate({"name": name})
    method = build_method(config, lambda **other: tiny_net(), num_classes=3, ignore_index=255)  # type: ignore[call-arg]
    before = copy.deepcopy(method.trainable().state_dict())
    optimizer = build_optimizer(method.trainable(), OptimizerConfig(lr=0.01), batch_size=2)
    batches = unlabeled if method.needs_unlabeled else None
    (record,) = train(
        method, labeled, batches, schedule=schedule(3), optimizer=optimizer, autocast_dtype=torch.bfloat16, max_grad_norm=1.0
    )
    assert record.nonfinite == 0
    assert math.isfinite(record.means["loss"])  # type: ignore[arg-type]
    after = method.trainable().state_dict()
    assert all(value.dtype == torch.float32 for value in after.values())
    for key in (key for key in before if key.endswith("head.weight")):  # of each network
        assert not torch.equal(after[key], before[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_logits_that_are_not_finite_are_a_step_to_skip_for_every_method(
    name: str, tiny_net: Net, make_batches: MakeBatches
) -> None:
    labeled, unlabeled = make_batches(2)
    unlabeled = [replace(batch, strong2=batch.strong) for batch in unlabeled]
    config = METHODS[name].config_cls.model_validate({"name": name})
    method = build_method(config, lambda **other: tiny_net(), num_classes=3, ignore_index=255)  # type: ignore[call-arg]
    with torch.no_grad():
        for key, parameter in method.named_parameters():
            if key.endswith("head.weight"):
                parameter[0] = math.inf
    batches = unlabeled if method.needs_unlabeled else None
    optimizer = build_optimizer(method.trainable(), OptimizerConfig(), batch_size=2)
    with pytest.raises(CwbassError, match=r"2 steps in a row \(the last is 1\) had a loss or gradient that is not finite"):
        train(method, labeled, batches, schedule=schedule(2), optimizer=optimizer, max_nonfinite=2)


def test_all_that_is_trained_trains_again_after_the_student_was_scored(tiny_net: Net, make_batches: MakeBatches) -> None:
    method = build_method(METHODS["cps"].config_cls(name="cps"), tiny_net, num_classes=3, ignore_index=255)
    second, seen = method.get_submodule("second"), []
    second.register_forward_pre_hook(lambda module, args: seen.append(module.training))

    def on_epoch(record: EpochRecord) -> bool:
        method.eval()
        return True

    method.eval()
    optimizer = build_optimizer(method.trainable(), OptimizerConfig(), batch_size=2)
    train(method, *make_batches(4), schedule=schedule(4, epoch_steps=2), optimizer=optimizer, on_epoch=on_epoch)
    assert seen == [True] * 12
