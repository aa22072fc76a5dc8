from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cwbass.config import OptimizerConfig
from cwbass.models.base import SegmentationNet
from cwbass.optimizers import rate_factor
from cwbass.training.optim import build_optimizer, load_moments_, set_learning_rate_


def groups(net: SegmentationNet, **settings: Any) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of each parameter by name."""
    optimizer = build_optimizer(net, OptimizerConfig(**settings), batch_size=4)
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_norms_and_biases_do_not_decay_and_the_encoder_has_its_own_rate(tiny_net: type[SegmentationNet]) -> None:
    assert groups(tiny_net(), lr=0.1, encoder_lr_factor=0.25, weight_decay=0.01) == {  # type: ignore[call-arg]
        "encoder.0.weight": (0.025, 0.01),
        "encoder.0.bias": (0.025, 0.0),
        "encoder.1.weight": (0.025, 0.0),
        "encoder.1.bias": (0.025, 0.0),
        "head.weight": (0.1, 0.01),
        "head.bias": (0.1, 0.0),
    }


def test_everything_decays_where_the_papers_code_is_asked_for(tiny_net: type[SegmentationNet]) -> None:
    found = groups(tiny_net(), weight_decay=0.01, decay_norm_and_bias=True)  # type: ignore[call-arg]
    assert {decay for _, decay in found.values()} == {0.01}
    assert len(found) == 6


@pytest.mark.parametrize(("reference", "expected"), [(None, 0.1), (4, 0.1), (16, 0.025), (2, 0.2)])
def test_the_rate_is_scaled_by_the_batch(tiny_net: type[SegmentationNet], reference: int | None, expected: float) -> None:
    assert groups(tiny_net(), lr=0.1, reference_batch=reference)["head.weight"][0] == pytest.approx(expected)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "cls"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_one_named(tiny_net: type[SegmentationNet], name: str, cls: type[Any]) -> None:
    optimizer = build_optimizer(tiny_net(), OptimizerConfig(name=name), batch_size=1)  # type: ignore[call-arg]
    assert type(optimizer) is cls
    if name == "sgd":
        assert {g["momentum"] for g in optimizer.param_groups} == {0.9}


@pytest.mark.parametrize(
    ("step", "power", "expected"),
    [
        (0, 0.9, 0.1),
        (50, 0.9, 0.1 * 0.5**0.9),  # 0.0535887
        (99, 0.9, 0.1 * 0.01**0.9),  # 0.0015849
        (75, 1.0, 0.025),
        (99, 0.0, 0.1),
    ],
)
def test_poly_schedule(tiny_net: type[SegmentationNet], step: int, power: float, expected: float) -> None:
    config = OptimizerConfig(lr=0.1, encoder_lr_factor=0.5, poly_power=power)
    poly = rate_factor(config)
    optimizer = build_optimizer(tiny_net(), config, batch_size=1)  # type: ignore[call-arg]
    for other in (3, 80):  # there is no state: only the step counts
        set_learning_rate_(optimizer, poly(other, 100))
    assert set_learning_rate_(optimizer, poly(step, 100)) == pytest.approx(expected)
    assert {round(g["lr"] / expected, 9) for g in optimizer.param_groups} == {0.5, 1.0}


def conv(layout: torch.memory_format) -> nn.Conv2d:
    """A convolution whose weight has two layouts that differ."""
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3).to(memory_format=layout)


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: Sequence[int]) -> list[Tensor]:
    """Parameters after steps on random batches."""
    for seed in seeds:
        optimizer.zero_grad()
        net(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_those_of_torchs_plain_loop_over_parameters(name: Any, layout: torch.memory_format) -> None:
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "foreach": False, "fused": False}
    plain, fast = conv(torch.contiguous_format), conv(layout)
    loop = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    expected = steps(plain, loop(plain.parameters(), **settings, **({"momentum": 0.9} if name == "sgd" else {})), range(5))
    found = steps(fast, built(fast, name), range(5))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("saved_as", [torch.contiguous_format, torch.channels_last])
def test_moments_go_on_in_the_layout_of_the_parameters(name: Any, saved_as: torch.memory_format) -> None:
    before = conv(saved_as)
    first = built(before, name)
    steps(before, first, range(3))
    after = conv(torch.channels_last)
    after.load_state_dict(before.state_dict())
    second = built(after, name)
    load_moments_(second, copy.deepcopy(first.state_dict()))
    for one, other in zip(steps(after, second, (3, 4)), steps(before, first, (3, 4)), strict=True):
        torch.testing.assert_close(one, other)


def built(net: nn.Module, name: Any) -> torch.optim.Optimizer:
    net.encoder_parameters = lambda: []  # type: ignore[assignment]
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1, decay_norm_and_bias=True)
    return build_optimizer(net, config, batch_size=1)  # type: ignore[arg-type]


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """After a step along a gradient of ones."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_networks_of_a_list_have_groups_of_their_own_in_its_order(tiny_net: type[SegmentationNet]) -> None:
    first, second, head = tiny_net(), tiny_net(), torch.nn.Conv2d(1, 1, 1)  # type: ignore[call-arg]
    config = OptimizerConfig(lr=0.1, encoder_lr_factor=0.25, weight_decay=0.01)
    alone = build_optimizer(first, config, batch_size=4).param_groups
    together = build_optimizer(torch.nn.ModuleList([first, second, head]), config, batch_size=4).param_groups
    for own, other in zip(alone, together, strict=False):
        assert [id(p) for p in own["params"]] == [id(p) for p in other["params"]]
        assert (own["lr"], own["weight_decay"]) == (other["lr"], other["weight_decay"])
    assert len(together) == 2 * len(alone) + 2
    assert {group["lr"] for group in together[2 * len(alone) :]} == {0.1}


def test_what_is_trained_beside_the_student_begins_without_moments(tiny_net: type[SegmentationNet]) -> None:
    first, second = tiny_net(), tiny_net()  # type: ignore[call-arg]
    warm = stepped(build_optimizer(first, OptimizerConfig(), batch_size=4))
    pair = build_optimizer(torch.nn.ModuleList([first, second]), OptimizerConfig(lr=0.5, weight_decay=0.3), batch_size=4)
    load_moments_(pair, warm.state_dict())
    for parameter in first.parameters():
        assert torch.equal(pair.state[parameter]["exp_avg"], warm.state[parameter]["exp_avg"])
    assert not any(parameter in pair.state for parameter in second.parameters())
    assert {(group["base_lr"], group["weight_decay"]) for group in pair.param_groups} == {
        (0.5, 0.3),
        (0.5, 0.0),
    }  # as asked for now
    stepped(pair)
    again = build_optimizer(torch.nn.ModuleList([first, second]), OptimizerConfig(), batch_size=4)
    load_moments_(again, pair.state_dict())
    assert all(parameter in again.state for net in (first, second) for parameter in net.parameters())


def test_moments_of_other_networks_are_refused(tiny_net: type[SegmentationNet]) -> None:
    whole = stepped(build_optimizer(torch.nn.ModuleList([tiny_net(), tiny_net()]), OptimizerConfig(), batch_size=4))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="different number of parameter groups"):
        load_moments_(build_optimizer(tiny_net(), OptimizerConfig(), batch_size=4), whole.state_dict())  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="doesn't match the size"):
        load_moments_(build_optimizer(torch.nn.Conv2d(1, 1, 1), OptimizerConfig(), batch_size=4), warm_groups(tiny_net()))  # type: ignore[call-arg]


def warm_groups(net: SegmentationNet) -> dict[str, Any]:
    """A state of two groups that fit no convolution's."""
    state = stepped(build_optimizer(net, OptimizerConfig(decay_norm_and_bias=True), batch_size=4)).state_dict()
    assert len(state["param_groups"]) == 2
    return state
