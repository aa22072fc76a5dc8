from __future__ import annotations

import torch

from cwbass.training.seed import seed_everything


def draws(seed: int, step: int) -> tuple[float, float]:
    generator = seed_everything(seed, step=step)
    return float(torch.rand(())), float(torch.rand((), generator=generator))


def test_draws_follow_from_seed_and_step_alone() -> None:
    first = draws(3, 7)
    torch.rand(100)
    draws(3, 8)
    assert draws(3, 7) == first


def test_every_seed_step_and_stream_draws_on_its_own() -> None:
    values = [value for seed in range(5) for step in range(20) for value in draws(seed, step)]
    assert len(set(values)) == 200
    assert abs(sum(values) / 200 - 0.5) < 0.08


def test_explicit_draws_do_not_move_the_global_stream() -> None:
    seed_everything(0, step=1)
    expected = torch.rand(3)
    generator = seed_everything(0, step=1)
    torch.rand(50, generator=generator)
    assert torch.equal(torch.rand(3), expected)


def test_the_default_step_is_the_one_before_the_first() -> None:
    seed_everything(5)
    expected = torch.rand(())
    seed_everything(5, step=0)
    assert torch.equal(torch.rand(()), expected)
