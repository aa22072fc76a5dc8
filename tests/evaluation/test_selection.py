from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cwbass.evaluation.selection import ImageConfusions, LatestWithinOneError, mean_iou


def probs(label: list[list[int]]) -> torch.Tensor:
    return F.one_hot(torch.tensor(label), 2).permute(2, 0, 1).float()


def test_mean_iou_by_hand_leaves_out_a_class_that_is_nowhere() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert mean_iou(confusion) == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_an_image_is_counted_without_its_ignored_pixels() -> None:
    images = ImageConfusions(255)
    images.add(probs([[0, 1], [1, 1]]), np.array([[0, 0], [1, 255]], dtype=np.uint8))
    assert images.matrices[0].tolist() == [[1, 1], [0, 1]]


def test_equal_images_leave_no_doubt() -> None:
    images = ImageConfusions(255)
    for _ in range(3):
        images.add(probs([[0, 1]]), np.array([[0, 0]], dtype=np.uint8))
    assert images.standard_error() == 0.0


def test_the_error_of_two_images_is_that_of_their_three_mixtures() -> None:
    images = ImageConfusions(255)
    images.add(probs([[0, 1]]), np.array([[0, 1]], dtype=np.uint8))  # mIoU 1
    images.add(probs([[1, 0]]), np.array([[0, 1]], dtype=np.uint8))  # mIoU 0
    # Resamples: both twice right (1/4), both wrong (1/4), one of each (1/2: IoU 1/3 for both classes).
    values, weights = np.array([1.0, 0.0, 1 / 3]), np.array([0.25, 0.25, 0.5])
    mean = (values * weights).sum()
    expected = np.sqrt(((values - mean) ** 2 * weights).sum())
    assert images.standard_error() == pytest.approx(expected, rel=0.1)


def test_one_image_says_nothing_of_the_next() -> None:
    images = ImageConfusions(255)
    images.add(probs([[0, 1]]), np.array([[0, 0]], dtype=np.uint8))
    assert images.standard_error() == float("inf")


@pytest.mark.parametrize(
    ("scores", "error", "chosen"),
    [
        ([0.40, 0.50, 0.48, 0.49], 0.03, 3),  # all after the best are within its error: the latest
        ([0.40, 0.50, 0.48, 0.30], 0.03, 2),  # the last is really worse
        ([0.40, 0.50, 0.30, 0.40], 0.03, 1),
        ([0.40, 0.45, 0.50], 0.0, 2),
        ([0.50, 0.50], 0.0, 1),  # a tie goes to the later
        ([float("nan"), 0.2], 0.1, 1),
    ],
)
def test_the_latest_within_one_error_of_the_best_counts(scores: list[float], error: float, chosen: int) -> None:
    rule = LatestWithinOneError()
    said_yes = [index for index, score in enumerate(scores) if rule.counts(score, error)]
    assert said_yes[-1] == chosen


def test_epochs_without_gain_are_counted_from_the_best() -> None:
    rule = LatestWithinOneError()
    for score in (0.5, 0.5, 0.4, 0.6, 0.6):
        rule.counts(score, 0.2)
    assert rule.epochs_without_gain == 1
