from __future__ import annotations

import io
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from cwbass.models.base import SegmentationNet
from cwbass.models.ema import decay_of_run, ema_decay_at, follow_, make_ema_teacher, update_ema_


class SmallNet(SegmentationNet):
    def __init__(self) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        return self.norm(features[0])

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.conv.parameters())


def train_a_bit_(net: SmallNet, seed: int) -> None:
    """Move weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    net.train()
    net(torch.rand(2, 3, 5, 5, generator=generator) * 255)


def test_a_teacher_is_a_frozen_copy_in_eval_mode() -> None:
    student = SmallNet()
    train_a_bit_(student, 0)
    teacher = make_ema_teacher(student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    own = {p.data_ptr() for p in teacher.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in student.parameters())


@pytest.mark.parametrize("ramp", [False, True])
def test_after_t_updates_the_teacher_is_the_closed_form(ramp: bool) -> None:
    student = SmallNet().double()
    teacher = make_ema_teacher(student)
    decays = [ema_decay_at(t, decay=0.9, ramp=ramp) for t in range(15)]
    states = [{name: p.detach().clone() for name, p in student.named_parameters()}]
    for t, decay in enumerate(decays):
        train_a_bit_(student, t)
        states.append({name: p.detach().clone() for name, p in student.named_parameters()})
        update_ema_(teacher, student, decay=decay, buffers="copy")
    # State i enters with 1 - d_i and is then kept by every later decay.
    keep = torch.tensor(decays, dtype=torch.float64)
    weights = [keep.prod().item(), *[((1 - keep[i]) * keep[i + 1 :].prod()).item() for i in range(15)]]
    assert sum(weights) == pytest.approx(1)
    for name, parameter in teacher.named_parameters():
        expected = torch.stack([weight * state[name] for weight, state in zip(weights, states, strict=True)]).sum(0)
        torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize(
    ("updates", "decay", "ramp", "expected"),
    [
        (0, 0.996, True, 0.0),
        (1, 0.996, True, 0.5),
        (3, 0.996, True, 0.75),
        (249, 0.996, True, 0.996),
        (10**6, 0.996, True, 0.996),
        (0, 0.999, False, 0.999),
    ],
)
def test_decay_of_an_update(updates: int, decay: float, ramp: bool, expected: float) -> None:
    assert ema_decay_at(updates, decay=decay, ramp=ramp) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("decay", "steps", "expected"),
    [
        ("auto", 10_000, 0.99),
        ("auto", 600, 0.99),  # 1 - 6/600
        ("auto", 300, 0.98),
        ("auto", 12, 0.5),
        ("auto", 6, 0.0),  # no average of less than one update
        ("auto", 4, 0.0),
        (0.996, 300, 0.996),
        (0.0, 10_000, 0.0),
    ],
)
def test_decay_of_a_run(decay: float | Literal["auto"], steps: int, expected: float) -> None:
    assert decay_of_run(decay, steps) == pytest.approx(expected)


def test_with_a_ramp_the_first_update_copies_and_the_early_ones_are_a_plain_mean() -> None:
    student = SmallNet()
    teacher = make_ema_teacher(student)
    seen: list[Tensor] = []
    for t in range(5):
        train_a_bit_(student, t)
        seen.append(student.conv.weight.detach().clone())
        follow_(teacher, student, updates=t, decay=0.99)
        torch.testing.assert_close(teacher.get_parameter("conv.weight"), torch.stack(seen).mean(0))
        if t == 0:
            assert torch.equal(teacher.get_parameter("conv.weight"), student.conv.weight)
            assert torch.equal(teacher.get_buffer("norm.running_var"), student.norm.running_var)


def test_float_buffers_are_averaged_or_copied_and_integer_buffers_always_copied() -> None:
    student = SmallNet()
    averaged, copied = make_ema_teacher(student), make_ema_teacher(student)
    before = student.norm.running_mean.clone()
    train_a_bit_(student, 0)
    update_ema_(averaged, student, decay=0.75, buffers="average")
    update_ema_(copied, student, decay=0.75, buffers="copy")
    torch.testing.assert_close(averaged.get_buffer("norm.running_mean"), 0.75 * before + 0.25 * student.norm.running_mean)
    assert torch.equal(copied.get_buffer("norm.running_mean"), student.norm.running_mean)
    for teacher in (averaged, copied):
        assert teacher.get_buffer("norm.num_batches_tracked").item() == 1
        assert torch.equal(teacher.pixel_mean, student.pixel_mean)


@pytest.mark.parametrize(("decay", "follows"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_range_copy_and_keep_bit_for_bit(decay: float, follows: bool) -> None:
    student = SmallNet()
    teacher = make_ema_teacher(student)
    before = teacher.get_parameter("conv.weight").clone()
    train_a_bit_(student, 0)
    update_ema_(teacher, student, decay=decay, buffers="average")
    assert torch.equal(teacher.get_parameter("conv.weight"), student.conv.weight if follows else before)


def test_an_update_leaves_the_student_alone_and_builds_no_graph() -> None:
    student = SmallNet()
    teacher = make_ema_teacher(student)
    train_a_bit_(student, 0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    update_ema_(teacher, student, decay=0.5, buffers="average")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.grad_fn is None and not p.requires_grad for p in teacher.parameters())


def test_a_saved_teacher_comes_back_bit_for_bit() -> None:
    student = SmallNet()
    teacher = make_ema_teacher(student)
    for t in range(3):
        train_a_bit_(student, t)
        update_ema_(teacher, student, decay=0.9, buffers="average")
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    fresh = make_ema_teacher(SmallNet())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), teacher.state_dict().values(), strict=True))
