"""Batch normalisation: whose images make the statistics, and which of them are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cwbass.world import World


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Inside, running statistics stay as they are; batches are still normalised by their own.

    Strong views are not what the network meets when it is used, so their mean and variance
    should not be what it remembers.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    saved = torch.stack(counts) if counts else None
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        if saved is not None:
            torch._foreach_copy_(counts, list(saved))


def synchronize_norms_(net: nn.Module, world: World) -> None:
    """Let every batch norm of a network see the whole batch, not this process's part of it.

    Parameters and buffers stay the same objects under the same names. In a single process, and
    where it was done before, nothing happens.

    Args:
        net: On its device; changed in place.
        world: All processes.
    """
    if world.size == 1:
        return
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm | HostBatchNorm):
                setattr(module, name, _synchronized(child, world))


class HostBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes on a CPU, where torch's own SyncBatchNorm does not run.

    For proofs and small machines: it is made of plain operations, with two messages forward and two back.

    Args:
        norm: Whose parameters, buffers and settings it takes over; timm's has an activation too.
        world: All processes; each has as many values as any other.
    """

    def __init__(self, norm: _BatchNorm, world: World) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.world = world
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            plain: Tensor = self.act(self.drop(super().forward(input)))
            return plain
        values = input.float() if input.element_size() < 4 else input  # [B, C, H, W]
        count = values.numel() // values.shape[1] * self.world.size
        axes = (0, 2, 3)
        mean = _Total.apply(values.sum(axes), self.world) / count  # [C]
        centred = values - mean[:, None, None]
        variance = _Total.apply(centred.square().sum(axes), self.world) / count  # [C]
        with torch.no_grad():
            self._remember(mean, variance * (count / max(1, count - 1)))
        normal = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        result: Tensor = self.act(self.drop(normal.to(input.dtype)))
        return result

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance, factor)


class _Total(torch.autograd.Function):
    """The sum over processes, with its gradient: what each makes of the sum, summed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.total(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.world.total(gradient), None


def _synchronized(norm: _BatchNorm, world: World) -> nn.Module:
    device = next(iter((*norm.parameters(), *norm.buffers()))).device
    if device.type != "cuda":
        return HostBatchNorm(norm, world)
    from timm.layers.norm_act import convert_sync_batchnorm  # torch's own drops the activation inside timm's norms

    converted: nn.Module = convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
    return converted
