"""Optimisers and learning-rate schedules by name. A new one is a file beside this and a line in ``OPTIMIZERS`` or ``SCHEDULES``.

An optimiser is made of parameter groups, each with its ``lr`` and ``weight_decay``, and the section ``train.optimizer``. A
schedule gives the factor on the rate of every group at a step, from the steps taken before it, the steps of the whole run and
the section. It is a function of the step alone, so that there is no scheduler state to lose. What either takes by keyword
alone, ``train.optimizer.options`` may give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cwbass.config import OptimizerConfig, keyword_options
from cwbass.plugins import Registry

RateFactor = Callable[[int, int], float]  # step, total_steps -> factor on every group's base rate


def sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD with momentum 0.9."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=True)


def adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with torch's betas."""
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def poly(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """``(1 - step / total_steps) ** poly_power``."""
    factor: float = (1 - step / total_steps) ** config.poly_power
    return factor


OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry({"sgd": sgd, "adamw": adamw})

SCHEDULES: Registry[Callable[..., float]] = Registry({"poly": poly})


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config.name`` names, over parameter groups that have their rates and decays."""
    make = OPTIMIZERS[config.name]
    return make(groups, config, **keyword_options(make, config.options))


def rate_factor(config: OptimizerConfig) -> RateFactor:
    """The schedule that ``config.schedule`` names."""
    schedule = SCHEDULES[config.schedule]
    return partial(schedule, config=config, **keyword_options(schedule, config.options))
