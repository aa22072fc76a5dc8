"""Which unlabelled images to trust first, and the labels a network gives them.

Source: ST++ (Yang et al., "ST++: Make Self-training Work Better for Semi-supervised Semantic
Segmentation", CVPR 2022, arXiv:2106.05095), section 3.3: an image whose prediction hardly changed
while the network learned is more likely to be predicted right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cwbass.data.base import DatasetSpec
from cwbass.data.cache import ImageSource
from cwbass.data.offline import write_pseudo_label
from cwbass.evaluation.inference import Predictor
from cwbass.pixels import highest
from cwbass.world import ALONE, World


def agreement(one: Tensor, other: Tensor, num_classes: int) -> float:
    """mIoU of two label maps, over the classes that either of them names.

    Args:
        one: Class of each pixel. [H, W] integer.
        other: Likewise.
        num_classes: C.

    Returns:
        In [0, 1].
    """
    pairs = torch.bincount((one.long() * num_classes + other.long()).flatten(), minlength=num_classes**2)
    counts = pairs.view(num_classes, num_classes).double()
    both = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - both
    return (both / union).nanmean().item()  # 0 / 0 where neither names the class


def reliability(earlier: Sequence[Tensor], last: Tensor, num_classes: int) -> float:
    """How little a prediction changed: its mean agreement with earlier ones.

    Args:
        earlier: Label maps of snapshots of the network, at least one. [H, W] integer each.
        last: Label map of the network when it was done. [H, W] integer.
        num_classes: C.

    Returns:
        In [0, 1]; 1 where no pixel changed.
    """
    return sum(agreement(one, last, num_classes) for one in earlier) / len(earlier)


def measure_reliability(
    earlier: Sequence[nn.Module],
    last: nn.Module,
    source: ImageSource,
    *,
    num_classes: int,
    predictor: Predictor,
    world: World = ALONE,
) -> list[float]:
    """:func:`reliability` of every image of a source.

    Args:
        earlier: Snapshots of the network, on the predictor's device, in eval mode.
        last: The network when it was done, likewise.
        source: Images; no mask is asked for.
        num_classes: C.
        predictor: How to predict.
        world: Processes that share the work: each takes every n-th image, and all get the whole list.
    """
    found = []
    for index in range(world.rank, len(source), world.size):
        image = source.image(index)
        *before, after = (highest(predictor.probs(net, image))[1] for net in (*earlier, last))
        found.append(reliability(before, after, num_classes))
    parts = world.collect(found)
    return [parts[index % world.size][index // world.size] for index in range(len(source))]


def rank_by_reliability(reliabilities: Sequence[float]) -> list[int]:
    """Indices from the most to the least reliable; equals stay in order."""
    return sorted(range(len(reliabilities)), key=lambda index: -reliabilities[index])


def write_pseudo_labels(
    net: nn.Module,
    source: ImageSource,
    chosen: Sequence[int],
    ids: Sequence[str],
    out_dir: Path,
    *,
    spec: DatasetSpec,
    predictor: Predictor,
    world: World = ALONE,
) -> float:
    """Label images; see :mod:`cwbass.data.offline` for the files.

    Args:
        net: On the predictor's device, in eval mode.
        source: Images; no mask is asked for.
        chosen: Which of them, by index.
        ids: Id of each chosen image.
        out_dir: Where the files go.
        spec: Classes and palette.
        predictor: How to predict.
        world: Processes that share the work; the folder must be the same for all.

    Returns:
        Mean confidence of the labels, images alike. In [0, 1].
    """
    total = 0.0
    for index, sample_id in list(zip(chosen, ids, strict=True))[world.rank :: world.size]:
        confidence, label = highest(predictor.probs(net, source.image(index)))  # [H, W] each
        total += confidence.mean().item()
        scaled = (confidence * 255).round().clamp(max=255)  # a mean of probabilities can exceed 1 by a hair
        write_pseudo_label(out_dir, sample_id, _bytes(label), _bytes(scaled), spec)
    return sum(world.collect(total)) / max(1, len(chosen))  # all files are there once all have answered


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return values.to(torch.uint8).cpu().numpy()
