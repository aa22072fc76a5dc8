"""How sure a number is: intervals over seeds, and over resampled test images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwbass.evaluation.student_t import errors_of_95_percent

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean or a difference, with bounds that hold the true one in 95 % of such intervals; None where they cannot be told."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over seeds: how sure it is for these trained networks, and how sure for others trained alike."""

    value: float
    low: float | None  # bounds for these networks on other test images: a bootstrap; None where one image says it all
    high: float | None
    each: Mapping[int, float]  # by seed
    over_seeds: Interval  # the same mean, with bounds for other seeds on these test images: Student's t


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


def overlaps(matrices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Intersection and union of each class, which add up image by image as IoU does not.

    Args:
        matrices: Confusion matrices. [..., C, C] pixels, a row per true class.

    Returns:
        [..., 2, C] pixels.
    """
    hit = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack((hit, matrices.sum(-2) + matrices.sum(-1) - hit), axis=-2)


def images_that_count(*overlaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images have a say in the IoU of each class: they show it, or a network names it there. [N, 2, C] each -> [C].

    Of fewer than two, all resamples say the same, which is no reason to be sure.
    """
    found: NDArray[np.int64] = np.any([each[:, 1] > 0 for each in overlaps], axis=0).sum(0)
    return found


def resampled_iou(overlaps: NDArray[np.int64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of each class in each resample, from the summed intersections and unions of its images.

    Args:
        overlaps: Of each image. [N, 2, C] pixels.
        draws: From :func:`draw_images`; the same for all networks that are compared. [R, N].

    Returns:
        [R, C] in [0, 1]; NaN where no image of a resample shows a class and none was named so.
    """
    # Floats are exact for counts below 2**53, and fast.
    hits, unions = (draws.astype(np.float64) @ overlaps[:, part].astype(np.float64) for part in range(2))  # [R, C] each
    return np.divide(hits, unions, out=np.full_like(hits, np.nan), where=unions > 0)


def mean_over_classes(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """mIoU of each resample, over the classes that it has; 0 where it has none. [R, C] -> [R]."""
    mean: NDArray[np.float64] = np.nansum(iou, axis=1) / np.maximum((~np.isnan(iou)).sum(1), 1)
    return mean


def percentiles(resampled: NDArray[np.float64]) -> tuple[float, float] | None:
    """Bounds of the middle 95 % of a score of resamples; None where none has it.

    Args:
        resampled: NaN where a resample has no score. [R].

    Source:
        The percentile bootstrap (Efron, 1979).
    """
    known = resampled[~np.isnan(resampled)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(
    ours: Mapping[int, NDArray[np.float64]],
    theirs: Mapping[int, NDArray[np.float64]],
    values: Mapping[int, float | None],
    others: Mapping[int, float | None],
    *,
    images: int,
) -> Difference | None:
    """Ours minus theirs, mean over the seeds that both have, with an interval for each of two questions.

    Args:
        ours: A score of each resample, by seed; NaN where a resample has none. [R] each.
        theirs: Likewise, on the same resamples.
        values: Our score on all images, by seed; None where there is none.
        others: Theirs.
        images: That have a say in the score; fewer than two give no bounds.

    Returns:
        None where no seed is common, or no resample has the scores of all.

    Source:
        :func:`percentiles`, images being the units, and pairs of networks on one resample the statistic; and the paired t
        interval (Student, 1908), seeds being the units.
    """
    pairs = {seed: (values[seed], others[seed]) for seed in sorted(values.keys() & others.keys())}
    each = {seed: one - other for seed, (one, other) in pairs.items() if one is not None and other is not None}
    if not each:
        return None
    bounds = percentiles(np.mean([ours[seed] - theirs[seed] for seed in each], axis=0))
    if bounds is None:
        return None
    over_seeds = t_interval(list(each.values()))
    low, high = bounds if images > 1 else (None, None)
    return Difference(over_seeds.value, low, high, each, over_seeds)
