from __future__ import annotations

import copy

import pytest
import torch
from threads import in_threads
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from cwbass.models.norm import HostBatchNorm, frozen_statistics, synchronize_norms_
from cwbass.world import ALONE, World


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


def whole_and_parts(net: nn.Module, images: Tensor, processes: int) -> tuple[Tensor, Tensor, list[nn.Module]]:
    """Outputs of the whole batch, of its parts put together, and the networks that saw the parts."""
    nets = [copy.deepcopy(net) for _ in range(processes)]

    def run(world: World) -> Tensor:
        synchronize_norms_(nets[world.rank], world)
        output = nets[world.rank](world.own(images))
        output.square().sum().backward()
        world.average_gradients_(nets[world.rank].parameters())
        return output.detach()

    parts = torch.cat(in_threads(processes, run))
    whole = net(images)
    (whole.square().sum() / processes).backward()
    return whole.detach(), parts, nets


@pytest.mark.parametrize("processes", [2, 3, 6])  # with six, a process has one image
@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_processes_normalise_by_the_whole_batch(settings: dict[str, object], processes: int) -> None:
    net = make_net(**settings).double()
    images = torch.randn(6, 3, 1, 2, dtype=torch.float64) * 3 + 1
    whole, parts, nets = whole_and_parts(net, images, processes)
    torch.testing.assert_close(parts, whole)
    for own in nets:
        for one, other in zip(own.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        assert own.state_dict().keys() == net.state_dict().keys()
        for one, other in zip(own.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(own.eval()(images), copy.deepcopy(net).eval()(images))


def test_the_activation_inside_a_norm_of_timm_is_kept_and_nothing_is_wrapped_twice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.SiLU, inplace=False)).double()
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    whole, parts, (one, _) = whole_and_parts(net, images, 2)
    torch.testing.assert_close(parts, whole)
    assert parts.min() < 0 < parts.max()
    before = list(one.modules())
    in_threads(2, lambda world: synchronize_norms_(one, world))
    assert list(one.modules()) == before


def test_a_single_process_keeps_its_norms() -> None:
    net = make_net()
    synchronize_norms_(net, ALONE)
    assert [type(module) for module in net] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.BatchNorm2d]


def test_half_precision_is_normalised_in_single() -> None:
    norm = HostBatchNorm(nn.BatchNorm2d(2), ALONE).train()
    images = torch.randn(4, 2, 8, 8) * 3 + 100
    expected = nn.BatchNorm2d(2)(images.bfloat16().float())
    found = norm(images.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)
    torch.testing.assert_close(norm.running_mean, images.bfloat16().float().mean((0, 2, 3)) * 0.1)


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_statistics_of_synchronised_norms_can_be_frozen(kind: str) -> None:
    if kind == "torch":  # it runs on GPUs alone; what is frozen are its settings
        norm: nn.Module = nn.SyncBatchNorm(3, momentum=0.2)
        with frozen_statistics(norm):
            norm.num_batches_tracked.add_(1)
            assert norm.momentum == 0.0
        assert (norm.momentum, norm.num_batches_tracked.item()) == (0.2, 0)
        return
    norm = HostBatchNorm(nn.BatchNorm2d(3), ALONE).train()
    norm(batch(0))
    before = [value.clone() for value in norm.buffers()]
    with frozen_statistics(norm):
        norm(batch(1))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
