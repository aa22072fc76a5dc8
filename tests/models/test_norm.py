from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cwbass.models.norm import frozen_statistics


def make_net(**settings: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **settings), nn.ReLU(), nn.BatchNorm2d(4, **settings)).train()


def batch(seed: int) -> Tensor:
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_inside_nothing_is_remembered(momentum: float | None) -> None:
    net = make_net(momentum=momentum)
    net(batch(0))
    before = {name: value.clone() for name, value in net.named_buffers()}
    with frozen_statistics(net):
        net(batch(1))
        net(batch(2))
    after = dict(net.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["1.num_batches_tracked"].item() == 1


def test_inside_a_batch_is_normalised_by_its_own_statistics() -> None:
    net = make_net()
    outside = make_net()(batch(1))
    with frozen_statistics(net):
        inside = net(batch(1))
    assert torch.equal(inside, outside)
    torch.testing.assert_close(inside.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_afterwards_statistics_are_remembered_as_before(momentum: float | None) -> None:
    net, reference = make_net(momentum=momentum), make_net(momentum=momentum)
    for seed in range(3):
        with frozen_statistics(net):
            net(batch(10 + seed))
        net(batch(seed))
        reference(batch(seed))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), reference.buffers(), strict=True))


def test_an_error_inside_does_not_leave_them_frozen() -> None:
    net = make_net()
    with pytest.raises(RuntimeError), frozen_statistics(net):
        net(torch.zeros(2, 5, 1, 1))  # wrong channels
    before = net[1].running_mean.clone()
    net(batch(0))
    assert net[1].momentum == 0.1
    assert not torch.equal(before, net[1].running_mean)


def test_gradients_flow_through_both_forwards() -> None:
    net = make_net()
    one = net(batch(0))
    with frozen_statistics(net):
        two = net(batch(1))
    (one.square().mean() + two.pow(3).mean()).backward()
    gradient = net[0].weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_norms_without_statistics_are_no_obstacle() -> None:
    net = make_net(track_running_stats=False)
    with frozen_statistics(net):
        assert net(batch(0)).isfinite().all()
