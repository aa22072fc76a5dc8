"""Along which dimension the classes of a map are read fastest."""

from __future__ import annotations

import torch
from torch import Tensor

MANY = 32  # classes from which a pixel's are read side by side; of fewer, planes are as fast or faster (benchmarks: losses.side_by_side)


def classes_together(maps: Tensor) -> bool:
    """Whether to go through a map pixel by pixel: its classes are many, and lie side by side (channels_last). [B, C, H, W].

    A plane of a class is not in one piece there, and torch turns the whole map to reduce over classes.
    """
    return maps.shape[1] >= MANY and maps.stride(1) == 1


def read_by_class(maps: Tensor) -> tuple[Tensor, int]:
    """A view of maps, and the dimension of its images' classes: [B, C, H, W] and 0, or [B, H, W, C] and -1."""
    return (maps.permute(0, 2, 3, 1), -1) if classes_together(maps) else (maps, 0)


def new_maps_like(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Unfilled maps in which :func:`read_by_class` chooses as it does in these. [B, C, H, W]."""
    order = torch.channels_last if classes_together(maps) else torch.contiguous_format
    return torch.empty(maps.shape, dtype=dtype, device=maps.device, memory_format=order)
