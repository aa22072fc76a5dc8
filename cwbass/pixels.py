"""What is asked of every pixel, in forms that are fast on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def highest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """``max`` over the classes; on a CPU in half of torch's time or less (benchmarks: metrics.highest).

    torch compares the classes of one pixel after the other there, and takes several times as long again for ``argmax``.

    Args:
        maps: Logits or probabilities of one image or of several. [C, H, W] or [B, C, H, W] float.

    Returns:
        Values and classes, the latter int64, without a gradient. [H, W] or [B, H, W] each. Of equal values the first class
        counts. Where one is NaN, so is the value, and the class is any.
    """
    maps = maps.detach()
    if maps.device.type != "cpu" or maps.shape[-3] > 255 or maps.dtype == torch.float64:
        value, label = maps.max(-3)
    elif maps.dim() == 4:
        value = maps.new_empty(len(maps), *maps.shape[2:])
        label = torch.empty_like(value, dtype=torch.int64)
        for row, image in enumerate(maps):
            value[row], label[row] = highest(image)
    elif not maps[0].is_contiguous():
        value, label = maps.max(-3)
    else:
        planes = maps.float()  # numpy knows no bfloat16
        value = planes.amax(0)
        label = torch.from_numpy(_first_equal(planes.numpy(), value.numpy()))
        value = value.to(maps.dtype)
    return value, label


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``, which torch takes longer for (benchmarks: metrics.look_up). [K], [...] int64 -> [...] of the table's type."""
    return table.index_select(0, index.flatten()).view(index.shape)


def _first_equal(planes: NDArray[np.float32], value: NDArray[np.float32]) -> NDArray[np.int64]:
    """The first plane that has the value; the last one where none has. planes [C, H, W], value [H, W] -> [H, W]."""
    count = len(planes)
    behind = np.ones(value.shape, np.uint8)  # how many planes are left from the one that was found on, itself included
    found = np.empty(value.shape, np.bool_)
    left = found.view(np.uint8)
    for index in range(count - 1):
        np.equal(planes[index], value, out=found)
        np.multiply(left, np.uint8(count - index), out=left)
        np.maximum(behind, left, out=behind)
    return np.subtract(count, behind, dtype=np.int64)
