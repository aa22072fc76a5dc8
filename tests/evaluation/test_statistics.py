from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cwbass.evaluation.selection import mean_iou
from cwbass.evaluation.statistics import (
    Difference,
    Interval,
    draw_images,
    images_that_count,
    mean_over_classes,
    overlaps,
    paired_difference,
    percentiles,
    resampled_iou,
    t_interval,
)

RIGHT = [[2, 0], [0, 2]]
HALF = [[1, 1], [1, 1]]


def miou(matrices: NDArray[np.int64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    return mean_over_classes(resampled_iou(overlaps(matrices), draws))


def test_an_interval_over_three_seeds_is_that_of_student() -> None:
    found = t_interval([0.4, 0.5, 0.6])  # deviation 0.1, 2 degrees of freedom
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert found == Interval(pytest.approx(0.5), pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_two_seeds_have_an_interval_that_says_little() -> None:
    found = t_interval([0.6, 0.4])  # deviation 0.2 / 2 ** 0.5, so an error of 0.1, and 1 degree of freedom
    assert found == Interval(0.5, pytest.approx(0.5 - 1.27062), pytest.approx(0.5 + 1.27062))


def test_one_seed_has_no_interval() -> None:
    assert t_interval([0.4]) == Interval(0.4, None, None)


def test_draws_are_whole_resamples_and_repeat() -> None:
    draws = draw_images(5, resamples=300)
    assert draws.shape == (300, 5)
    assert (draws.sum(1) == 5).all()
    assert np.array_equal(draws, draw_images(5, resamples=300))
    assert not np.array_equal(draws, draw_images(5, resamples=300, seed=1))


def test_scores_of_resamples_come_from_summed_matrices() -> None:
    matrices = np.array([RIGHT, [[2, 0], [1, 1]]])
    # both: [[4, 0], [1, 3]]; the first twice: all right; the second twice: [[4, 0], [2, 2]]
    iou = resampled_iou(overlaps(matrices), np.array([[1, 1], [2, 0], [0, 2]]))
    assert iou == pytest.approx(np.array([[4 / 5, 3 / 4], [1, 1], [4 / 6, 2 / 4]]))
    assert mean_over_classes(iou) == pytest.approx([31 / 40, 1, 7 / 12])


def test_a_class_that_no_image_of_a_resample_shows_does_not_count_in_it() -> None:
    matrices = np.array([[[4, 0], [0, 0]], [[2, 0], [1, 1]], [[0, 0], [0, 0]]])
    iou = resampled_iou(overlaps(matrices), np.array([[3, 0, 0], [1, 1, 1], [0, 0, 3]]))
    assert iou == pytest.approx(np.array([[1, math.nan], [6 / 7, 1 / 2], [math.nan, math.nan]]), nan_ok=True)
    assert mean_over_classes(iou) == pytest.approx([1.0, (6 / 7 + 1 / 2) / 2, 0.0])


def test_a_class_that_is_shown_and_never_found_counts_as_0() -> None:
    iou = resampled_iou(overlaps(np.array([[[3, 0], [1, 0]]])), np.array([[1]]))
    assert iou.tolist() == [[0.75, 0.0]]
    assert mean_over_classes(iou).tolist() == [0.375]


def test_bounds_leave_one_resample_in_forty_on_each_side() -> None:
    scores = np.arange(41) / 40
    assert percentiles(np.random.default_rng(0).permutation(scores)) == pytest.approx((1 / 40, 39 / 40))
    assert percentiles(np.concatenate([scores, np.full(99, math.nan)])) == pytest.approx((1 / 40, 39 / 40))
    assert percentiles(np.full(3, math.nan)) is None


def test_many_resamples_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 9, (7, 3, 3))
    draws = draw_images(7, resamples=230)
    plain = [mean_iou(np.sum([matrices[index] * count for index, count in enumerate(draw)], axis=0)) for draw in draws]
    assert miou(matrices, draws) == pytest.approx(plain)


def test_a_paired_difference_draws_images_jointly_for_both_and_over_seeds() -> None:
    draws = draw_images(2)  # of two images: one twice (0.25 each) or both (0.5)
    good, bad = (miou(np.array([RIGHT, second]), draws) for second in (RIGHT, HALF))
    # differences: 0 where the first image came twice, 0.4 with both, 2/3 where the second came twice
    found = paired_difference({0: good, 7: good}, {0: bad, 1: bad, 7: bad}, {0: 1.0, 7: 1.0}, {0: 0.6, 1: 0.1, 7: 0.8}, images=2)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.0, 2 / 3))
    assert found.each == {0: pytest.approx(0.4), 7: pytest.approx(0.2)}
    # A network against itself has no doubt, however few images: the pairs are drawn alike.
    assert paired_difference({0: bad}, {0: bad}, {0: 0.6}, {0: 0.6}, images=2) == Difference(
        0.0, 0.0, 0.0, {0: 0.0}, Interval(0.0, None, None)
    )
    assert paired_difference({0: good}, {1: bad}, {0: 1.0}, {1: 0.6}, images=2) is None


def test_seeds_that_disagree_show_over_seeds_however_sure_the_images_are() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy: pip install -c constraints.txt -e '.[dev]'")
    ours, theirs = {0: 0.450, 1: 0.374, 2: 0.465}, {0: 0.464, 1: 0.464, 2: 0.464}
    sure = [{seed: np.full(9, score) for seed, score in each.items()} for each in (ours, theirs)]
    found = paired_difference(*sure, ours, theirs, images=9)
    assert found is not None
    # -1.4, -9.0 and +0.1 points: mean -3.43, deviation 4.88, so 4.3027 x 4.88 / 3 ** 0.5 = 12.1 to both sides
    assert (found.over_seeds.low, found.over_seeds.high) == (pytest.approx(-0.1555, abs=1e-4), pytest.approx(0.0868, abs=1e-4))
    assert (found.low, found.high) == (pytest.approx(found.value), pytest.approx(found.value))
    interval = stats.ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx(tuple(interval), rel=1e-4)


def test_a_score_that_some_resamples_lack_is_compared_in_the_others() -> None:
    some = np.array([math.nan, 0.5, math.nan])
    found = paired_difference({0: some, 1: some}, {0: np.zeros(3), 1: np.zeros(3)}, {0: 0.4, 1: None}, {0: 0.1, 1: 0.3}, images=3)
    assert found == Difference(pytest.approx(0.3), 0.5, 0.5, {0: pytest.approx(0.3)}, Interval(pytest.approx(0.3), None, None))


def test_a_resample_counts_where_every_seed_has_both_scores() -> None:
    ours = {0: np.array([0.5, 0.9, 0.7]), 1: np.array([0.7, math.nan, 0.5])}
    theirs = {seed: np.zeros(3) for seed in ours}
    found = paired_difference(ours, theirs, {0: 0.6, 1: 0.6}, {0: 0.1, 1: 0.3}, images=3)
    assert found is not None and (found.low, found.high) == pytest.approx((0.6, 0.6))  # not 0.9, which one seed alone has
    lacking = paired_difference(ours, theirs, {0: 0.6, 1: 0.6}, {0: 0.1, 1: None}, images=3)
    assert lacking is not None and lacking.each == {0: pytest.approx(0.5)}
    assert (lacking.low, lacking.high) == pytest.approx((0.51, 0.89))  # of 0.5, 0.7 and 0.9


def test_without_a_resample_that_has_both_scores_there_is_no_difference() -> None:
    one, other = np.array([0.5, math.nan]), np.array([math.nan, 0.5])
    assert paired_difference({0: one}, {0: other}, {0: 0.4}, {0: 0.3}, images=2) is None


def test_one_image_says_the_same_in_every_resample_and_so_how_sure_of_nothing() -> None:
    draws = draw_images(1)
    good, bad = (miou(np.array([matrix]), draws) for matrix in (RIGHT, HALF))
    found = paired_difference({0: good}, {0: bad}, {0: 1.0}, {0: 1 / 3}, images=1)
    assert found == Difference(
        pytest.approx(2 / 3), None, None, {0: pytest.approx(2 / 3)}, Interval(pytest.approx(2 / 3), None, None)
    )


def test_an_image_counts_for_a_class_that_it_shows_or_that_a_network_names_there() -> None:
    # Class 0 is shown in both images; class 1 is shown in none and named in the second; class 2 is neither.
    ours = overlaps(np.array([np.diag([4, 0, 0]), np.diag([3, 0, 0])]))
    theirs = overlaps(np.array([np.diag([4, 0, 0]), [[2, 1, 0], [0, 0, 0], [0, 0, 0]]]))
    assert images_that_count(ours, theirs).tolist() == [2, 1, 0]
    assert images_that_count(ours).tolist() == [2, 0, 0]
