"""Differences between the variants of a comparison, all on the same resamples of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwbass.comparison.results import Result
from cwbass.evaluation.statistics import (
    Difference,
    images_that_count,
    mean_over_classes,
    overlaps,
    paired_difference,
    resampled_iou,
)

Cells = Mapping[int, Result]  # of one variant, by seed


class Pairs:
    """Compares any two variants.

    Args:
        variants: Cells by name, on the same test images.
        draws: From ``draw_images``.
    """

    def __init__(self, variants: Mapping[str, Cells], draws: NDArray[np.int64]) -> None:
        self.variants, self.images = variants, draws.shape[1]
        self.overlaps = {
            name: {seed: overlaps(result.images.matrices) for seed, result in cells.items()} for name, cells in variants.items()
        }
        self.iou = {
            name: {seed: resampled_iou(each, draws) for seed, each in found.items()} for name, found in self.overlaps.items()
        }
        self.miou = {name: {seed: mean_over_classes(iou) for seed, iou in found.items()} for name, found in self.iou.items()}

    def matrix(self) -> dict[str, dict[str, dict[str, Any] | None]]:
        """mIoU of each variant less that of each other one."""
        return {name: {other: self._miou(name, other) for other in self.variants if other != name} for name in self.variants}

    def classes(self, name: str, other: str) -> dict[str, dict[str, Any] | None]:
        """IoU of each class less that of another variant; empty where that is missing, or the variant itself."""
        if name == other or other not in self.variants:
            return {}
        names = next(iter(self.variants[name].values())).images.class_names
        return {each: self._class(name, other, index, each) for index, each in enumerate(names)}

    def _miou(self, name: str, other: str) -> dict[str, Any] | None:
        values, others = ({seed: result.miou for seed, result in self.variants[each].items()} for each in (name, other))
        return _plain(paired_difference(self.miou[name], self.miou[other], values, others, images=self.images))

    def _class(self, name: str, other: str, index: int, class_name: str) -> dict[str, Any] | None:
        ours, theirs = ({seed: iou[:, index] for seed, iou in self.iou[each].items()} for each in (name, other))
        values, others = (class_iou(self.variants[each], class_name) for each in (name, other))
        common = ours.keys() & theirs.keys()
        counted = [self.overlaps[each][seed][..., [index]] for each in (name, other) for seed in common]
        images = int(images_that_count(*counted)[0]) if counted else 0
        return _plain(paired_difference(ours, theirs, values, others, images=images))


def class_iou(cells: Cells, name: str) -> dict[int, float | None]:
    """IoU of a class on all test images, by seed; None where none shows it and the network names it nowhere."""
    return {seed: result.metrics["per_class"][name]["iou"] for seed, result in cells.items()}


def _plain(found: Difference | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
