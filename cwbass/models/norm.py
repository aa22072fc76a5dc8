"""Batch normalisation: whose images make the statistics that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Inside, running statistics stay as they are; batches are still normalised by their own.

    Strong views are not what the network meets when it is used, so their mean and variance
    should not be what it remembers.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    saved = [None if count is None else count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, before in zip(norms, momenta, counts, saved, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)
