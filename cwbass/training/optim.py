"""Parameter groups of an optimiser, their rates, and moments that go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cwbass.config import OptimizerConfig
from cwbass.models.base import SegmentationNet
from cwbass.optimizers import make_optimizer


def build_optimizer(trainable: nn.Module, config: OptimizerConfig, *, batch_size: int) -> torch.optim.Optimizer:
    """Optimiser over encoder and decoder, norms and biases apart.

    Args:
        trainable: Network that is trained, or a ``ModuleList`` of networks and heads. Those of the list have
            groups of their own, in its order.
        config: Optimiser section.
        batch_size: Labelled images a step, over all processes and accumulated batches.

    Returns:
        Every group carries ``base_lr``: its rate at the first step.
    """
    lr = scaled_rate(config, batch_size)
    groups: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for index, part in enumerate(trainable if isinstance(trainable, nn.ModuleList) else [trainable]):
        encoder = {id(parameter) for parameter in part.encoder_parameters()} if isinstance(part, SegmentationNet) else set()
        for parameter in part.parameters():
            decays = config.decay_norm_and_bias or parameter.dim() > 1
            groups.setdefault((index, id(parameter) in encoder, decays), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": lr * (config.encoder_lr_factor if of_encoder else 1.0),
            "base_lr": lr * (config.encoder_lr_factor if of_encoder else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (_, of_encoder, decays), parameters in groups.items()
    ]
    return make_optimizer(settings, config)


def scaled_rate(config: OptimizerConfig, batch_size: int) -> float:
    """The decoder's learning rate for so many labelled images a step."""
    return config.lr * (batch_size / config.reference_batch if config.reference_batch else 1.0)


def set_learning_rate_(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Give every group ``base_lr * factor``.

    Returns:
        The highest rate of all groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


def load_moments_(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on with a saved optimiser's moments, at the rates and decays that the parameters give now.

    Args:
        optimizer: From :func:`build_optimizer`.
        state: ``state_dict`` of an optimiser over the same parameters, or over the first groups of them: a warm-up has
            trained the student alone, and what is trained beside it begins without moments.

    Raises:
        ValueError: It is of other parameters.
    """
    settings = [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups]
    known = state["param_groups"]
    optimizer.load_state_dict({**state, "param_groups": known + optimizer.state_dict()["param_groups"][len(known) :]})
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    # A fused step goes through memory, not through indices: a moment must lie as its parameter does.
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if torch.is_tensor(moment) and moment.shape == parameter.shape and moment.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(moment)
