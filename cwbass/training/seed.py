"""Randomness that depends on (seed, step) alone, so that a step is the same in any process."""

from __future__ import annotations

import numpy as np
import torch


def seed_everything(seed: int, *, step: int = 0, rank: int = 0) -> torch.Generator:
    """Seed torch for a step (dropout, initial weights) and return a generator for explicit draws.

    Args:
        seed: The run's seed, >= 0.
        step: Optimiser steps taken; 0 before the first.
        rank: Of this process. Dropout must not be the same on every process's images; explicit draws
            are made for the whole batch and must be.

    Returns:
        A CPU generator on another stream than torch's global one, the same for every rank.
    """
    first, second = np.random.SeedSequence([seed, step]).generate_state(2, dtype=np.uint64)
    if rank:
        first = np.random.SeedSequence([seed, step, rank]).generate_state(1, dtype=np.uint64)[0]
    torch.manual_seed(int(first >> np.uint64(1)))
    return torch.Generator().manual_seed(int(second >> np.uint64(1)))
