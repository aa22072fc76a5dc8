"""How sure a number is: intervals over seeds, and differences over resampled test images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwbass.evaluation.selection import mean_iou
from cwbass.evaluation.student_t import errors_of_95_percent

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK = 100  # resamples that are added up at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean or a difference, with bounds that hold the true one in 95 % of such intervals; None where they cannot be told."""

    value: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, and its 95 % interval by Student's t; a lone value has no bounds.

    Args:
        values: One of each seed.
    """
    mean = statistics.mean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = errors_of_95_percent(len(values)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def draw_images(count: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """How often each image is in each resample of as many images. [R, N], rows add up to N."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples)


def resampled_miou(matrices: NDArray[np.int64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """mIoU of each resample, from the sum of its images' confusion matrices.

    Args:
        matrices: Of each image. [N, C, C] pixels, a row per true class.
        draws: From :func:`draw_images`; the same for all networks that are compared. [R, N].

    Returns:
        [R] in [0, 1].
    """
    count, classes, _ = matrices.shape
    flat = matrices.reshape(count, -1).astype(np.float64)  # exact for counts below 2**53, and fast
    summed = (block @ flat for block in np.array_split(draws.astype(np.float64), math.ceil(len(draws) / _BLOCK)))
    return np.array([mean_iou(one.reshape(classes, classes)) for block in summed for one in block])


def paired_difference(
    ours: Mapping[int, NDArray[np.float64]],
    theirs: Mapping[int, NDArray[np.float64]],
    values: Mapping[int, float],
    others: Mapping[int, float],
) -> Interval | None:
    """Ours minus theirs, mean over the seeds that both have; the interval is that of the images, drawn alike for all.

    Args:
        ours: mIoU of each resample, by seed. [R] each.
        theirs: Likewise, on the same resamples.
        values: Our mIoU on all images, by seed.
        others: Theirs.

    Returns:
        None where no seed is common.

    Source:
        The percentile bootstrap (Efron, 1979), images being the units, and pairs of networks on one resample the statistic.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = np.mean([ours[seed] - theirs[seed] for seed in seeds], axis=0)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(statistics.mean(values[seed] - others[seed] for seed in seeds), float(low), float(high))
