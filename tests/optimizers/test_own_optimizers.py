"""An optimiser and a schedule of one's own: a function each, and a line in the registry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from cwbass.config import OptimizerConfig
from cwbass.errors import ParamsError
from cwbass.optimizers import OPTIMIZERS, SCHEDULES, rate_factor
from cwbass.params import Params, load_params
from cwbass.training.optim import build_optimizer, set_learning_rate_


def cosine(step: int, total_steps: int, config: OptimizerConfig, *, floor: float = 0.0, ramp: int = 1) -> float:
    """Half a cosine from 1 to ``floor``, after ``ramp`` steps of a straight rise."""
    return min(1.0, (step + 1) / ramp) * (floor + (1 - floor) * (1 + math.cos(math.pi * step / total_steps)) / 2)


def nesterov(groups: list[dict[str, Any]], config: OptimizerConfig, *, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=True)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "cosine", cosine)
    monkeypatch.setitem(OPTIMIZERS, "nesterov", nesterov)


def load(**optimizer: Any) -> OptimizerConfig:
    return load_params({"train": {"steps": 8, "optimizer": optimizer}}, Params).train.optimizer


def test_the_parameters_name_them_and_give_each_its_own_options() -> None:
    config = load(name="nesterov", schedule="cosine", lr=0.5, options={"momentum": 0.8, "floor": 0.2, "ramp": 4})
    net = nn.Linear(2, 3)
    optimizer = build_optimizer(net, config, batch_size=1)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.8, True)}
    rates = [set_learning_rate_(optimizer, rate_factor(config)(step, 8)) for step in (0, 4, 8)]
    assert rates == pytest.approx([0.5 * 1 / 4, 0.5 * (0.2 + 0.8 / 2), 0.5 * 0.2])


def test_an_option_that_is_left_out_is_at_the_functions_default() -> None:
    assert rate_factor(load(schedule="cosine"))(0, 8) == 1.0
    assert rate_factor(load(schedule="cosine"))(8, 8) == pytest.approx(0.0)


def test_an_option_of_neither_is_refused_as_are_names_that_nobody_registered() -> None:
    with pytest.raises(ParamsError, match=r"^train\.optimizer\.options\.flor: is no option of adamw or cosine$"):
        load(schedule="cosine", options={"flor": 0.1})
    with pytest.raises(ParamsError, match=r"^train\.optimizer\.schedule: is 'cosin', should be one of poly, cosine$"):
        load(schedule="cosin")
    with pytest.raises(ParamsError, match=r"^train\.optimizer\.options\.momentum: is required by nesterov and not given$"):
        load(name="nesterov")
