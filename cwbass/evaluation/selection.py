"""Choosing a checkpoint on few images: how much of a difference in mIoU is luck.

A selection slice has a handful of images, and the best of many epochs on it is mostly the luckiest
one. So the *latest* checkpoint counts that is within one standard error of the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cwbass.pixels import highest
from cwbass.world import World

RESAMPLES = 200


def confusion_of(probs: Tensor, mask: NDArray[np.uint8], ignore_index: int) -> NDArray[np.int64]:
    """Confusion matrix of an image: [C, C] pixels, a row per true class.

    Args:
        probs: Or anything else whose highest is the prediction. [C, H, W] float.
        mask: True classes. [H, W].
        ignore_index: Its value that takes no part.
    """
    num_classes = len(probs)
    label = highest(probs)[1].cpu().numpy()
    known = mask != ignore_index
    counts = np.bincount(mask[known].astype(np.int64) * num_classes + label[known], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


class ImageConfusions:
    """One confusion matrix an image, to resample images from.

    Args:
        ignore_index: Mask value that takes no part.
    """

    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.matrices: list[NDArray[np.int64]] = []  # [C, C] each, a row per true class

    def add(self, probs: Tensor, mask: NDArray[np.uint8]) -> None:
        """Count an image. probs [C, H, W], mask [H, W]."""
        self.matrices.append(confusion_of(probs, mask, self.ignore_index))

    def add_up(self, world: World) -> None:
        """Take in the images of all processes, of which each had every n-th, in the order of all."""
        parts = world.collect(self.matrices)
        self.matrices = [part[turn] for turn in range(len(parts[0])) for part in parts if turn < len(part)]

    def standard_error(self) -> float:
        """Standard deviation of the mIoU over resamples of the images; infinite for fewer than two.

        Source:
            The bootstrap (Efron, 1979), images being the units.
        """
        count = len(self.matrices)
        if count < 2:
            return float("inf")
        stacked = np.stack(self.matrices)
        rng = np.random.default_rng(0)
        draws = rng.integers(0, count, size=(RESAMPLES, count))
        return float(np.std([mean_iou(stacked[draw].sum(0)) for draw in draws], ddof=1))


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean over classes that are in the truth or predicted. [C, C] -> fraction in [0, 1]."""
    hit = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float((hit[union > 0] / union[union > 0]).mean()) if (union > 0).any() else 0.0


class LatestWithinOneError:
    """The one-standard-error rule, for scores that come one after the other.

    After every epoch it says whether that epoch's checkpoint is now the one that counts. What it
    said yes to last is the latest of all epochs within one standard error of the best.

    Source:
        Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """

    def __init__(self) -> None:
        self.best = float("-inf")
        self.error = 0.0
        self.epochs_without_gain = 0

    def state(self) -> dict[str, float | int]:
        """What :meth:`load` takes to go on from here."""
        return {"best": self.best, "error": self.error, "epochs_without_gain": self.epochs_without_gain}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state` gave."""
        self.best, self.error, self.epochs_without_gain = (state[name] for name in ("best", "error", "epochs_without_gain"))

    def counts(self, miou: float, error: float) -> bool:
        """Whether this epoch's checkpoint counts.

        Args:
            miou: Score on the slice; NaN never counts.
            error: Its standard error.
        """
        if miou > self.best:
            self.best, self.error, self.epochs_without_gain = miou, error, 0
            return True
        self.epochs_without_gain += 1
        return miou >= self.best - self.error
