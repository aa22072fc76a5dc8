"""Scores of a dataset from counts that are added up image by image.

The state is a confusion matrix and three small histograms: its size depends on the classes alone,
never on how many images or pixels were seen. mIoU is that of the literature, one IoU per class
over all pixels of the dataset, and not a mean over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from cwbass.errors import DataError, ParamsError, WeightsError
from cwbass.evaluation.boundary import band_width, boundary_f1, confusion_and_bands, contour_counts, count_pairs
from cwbass.jsonfile import finite_or_none
from cwbass.pixels import highest
from cwbass.types import Reliability
from cwbass.world import World

TOLERANCES = (1, 3, 5)  # of boundary F1, pixels
CALIBRATION_BINS = 15
RELIABILITY_BINS = 100
_FINE_BINS = 300  # the least number both of the above divide


@dataclass(frozen=True, slots=True)
class Calibration:
    """How confidence compares with accuracy. Bin i of N holds confidences in [i/N, (i+1)/N); the last includes 1."""

    count: tuple[int, ...]  # pixels
    confidence: tuple[float, ...]  # their mean confidence; NaN where the bin is empty
    accuracy: tuple[float, ...]  # the share of them that is right; NaN where the bin is empty


@dataclass(frozen=True, slots=True, eq=False)
class EvalResult:
    """Scores of a dataset, all fractions in [0, 1].

    NaN means undefined: a class that is neither in the truth nor predicted has no IoU and is left
    out of every mean. A class that is predicted but not in the truth has IoU 0 and counts.
    """

    images: int
    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]  # [C]
    boundary_iou: float  # mean over classes; NaN where it was not asked for
    boundary_iou_per_class: tuple[float, ...]  # [C]
    boundary_f1: dict[int, float]  # tolerance in pixels -> mean over classes
    ece: float  # expected calibration error, 15 bins
    confusion: tuple[tuple[int, ...], ...]  # [C, C] pixels, a row per true class
    calibration: Calibration
    reliability: Reliability

    def scores(self) -> dict[str, float | None]:
        """Those of all classes and images together, by their names in metrics.json; None where undefined."""
        values = {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "boundary_iou": self.boundary_iou,
            **{f"boundary_f1_{tolerance}px": score for tolerance, score in self.boundary_f1.items()},
            "ece": self.ece,
        }
        return {name: finite_or_none(value) for name, value in values.items()}

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain JSON values; None where undefined. Per class, ``accuracy`` is the recall and ``pixels`` the truth's."""
        pixels = [sum(row) for row in self.confusion]
        return {
            "images": self.images,
            **self.scores(),
            "per_class": {
                name: {
                    "iou": finite_or_none(self.iou[index]),
                    "boundary_iou": finite_or_none(self.boundary_iou_per_class[index]),
                    "accuracy": self.confusion[index][index] / pixels[index] if pixels[index] else None,
                    "pixels": pixels[index],
                }
                for index, name in enumerate(class_names)
            },
            "absent_classes": [name for name, iou in zip(class_names, self.iou, strict=True) if isnan(iou)],
            "confusion": {"class_names": list(class_names), "matrix": [list(row) for row in self.confusion]},
            "calibration": {
                "count": list(self.calibration.count),
                "confidence": [finite_or_none(value) for value in self.calibration.confidence],
                "accuracy": [finite_or_none(value) for value in self.calibration.accuracy],
            },
        }


class Scores:
    """Adds up what :class:`EvalResult` is made of, one image at a time.

    Args:
        num_classes: C.
        ignore_index: Mask value of pixels that take no part.
        boundary: Whether boundary scores are counted too; they cost more than all the others.
        device: Where the counts live, and where images are expected.

    Raises:
        ParamsError: There are no classes, or more than a mask can hold.
    """

    def __init__(self, num_classes: int, ignore_index: int, *, boundary: bool = True, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_classes <= 255:
            raise ParamsError(f"{num_classes} classes cannot be scored: a mask of 8 bits holds 1 to 255; merge some.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.boundary = boundary
        self.images = 0
        # Never synchronised behind our back: whoever spreads images over processes adds the counts up.
        self.confusion = _Confusion(num_classes, validate_args=False, sync_on_compute=False).to(device)
        self.outcomes = torch.zeros(2, num_classes, _FINE_BINS, dtype=torch.int64, device=device)  # wrong and right
        self.confidences = torch.zeros(_FINE_BINS, dtype=torch.float64, device=device)  # sums
        self.bands = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
        self.contours = torch.zeros(2, len(TOLERANCES) + 1, num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, probs: Tensor, mask: Tensor) -> None:
        """Count one image.

        Args:
            probs: Softmax probabilities. [C, H, W] float.
            mask: Class index, or ``ignore_index``. [H, W] uint8 or int64.

        Raises:
            ParamsError: ``probs`` has another number of classes.
            DataError: The mask holds a value that is neither a class nor ``ignore_index``, or its size differs.
            WeightsError: The probabilities are not finite.
        """
        if probs.shape[0] != self.num_classes:
            raise ParamsError(
                f"the network gives {probs.shape[0]} classes and the dataset has {self.num_classes}; "
                "score it on the classes it was trained on."
            )
        if probs.shape[1:] != mask.shape:
            raise DataError(f"the mask is {_size(mask)} and the probabilities are {_size(probs)}; resize one to the other.")
        truth = self._code_map(mask)
        confidence, label = highest(probs)
        if not bool(torch.isfinite(confidence.sum())):
            raise WeightsError("the network's probabilities are not finite; its weights are damaged, use another checkpoint.")
        valid = truth.clamp(max=1)  # [H, W] uint8, 0 or 1
        pred = (label.to(torch.uint8) + 1) * valid
        self._count_confidence(confidence * valid, pred, truth)
        self.count_labels(pred, truth)
        self.images += 1

    def count_labels(self, pred: Tensor, truth: Tensor) -> None:
        """Count code maps: class + 1, and 0 in both where ignored. [H, W] uint8 each."""
        if not self.boundary:
            self.confusion.update(pred, truth)
            return
        confusion, bands = confusion_and_bands(truth, pred, self.num_classes, band_width(*truth.shape))
        self.confusion.confmat += confusion
        self.bands += bands
        self.contours += contour_counts(truth, pred, self.num_classes, TOLERANCES)

    def add_up(self, world: World) -> None:
        """Take in the counts of all processes, once each has counted its images."""
        self.confusion.confmat = world.total(self.confusion.confmat)
        for name in ("outcomes", "confidences", "bands", "contours"):
            setattr(self, name, world.total(getattr(self, name)))
        self.images = sum(world.collect(self.images))

    def result(self) -> EvalResult:
        """The scores of all images so far."""
        confusion = self.confusion.confmat.cpu()
        right = confusion.diagonal()
        iou = _ratio(right, confusion.sum(0) + confusion.sum(1) - right)
        intersection, union = self.bands.cpu()
        boundary_iou = _ratio(intersection, union)
        f1 = boundary_f1(self.contours.cpu())
        calibration, ece = self._calibration()
        return EvalResult(
            images=self.images,
            miou=iou.nanmean().item(),
            pixel_accuracy=_ratio(right.sum(), confusion.sum()).item(),
            iou=tuple(iou.tolist()),
            boundary_iou=boundary_iou.nanmean().item(),
            boundary_iou_per_class=tuple(boundary_iou.tolist()),
            boundary_f1=dict(zip(TOLERANCES, f1.nanmean(1).tolist(), strict=True)),
            ece=ece,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            calibration=calibration,
            reliability=self._reliability(),
        )

    def _code_map(self, mask: Tensor) -> Tensor:
        """The mask as class + 1, and 0 where ignored. [H, W] uint8."""
        if mask.dtype == torch.uint8 and self.ignore_index == 255:
            codes = mask + 1  # 255 wraps to 0
            highest, lowest = int(codes.max()), 0
        else:
            ignored = (mask == self.ignore_index).int()
            wide = (mask.int() + 1) * (1 - ignored)
            lowest, highest = (int(value) for value in wide.aminmax())
            codes = wide.to(torch.uint8)
        if lowest < 0 or highest > self.num_classes:
            raise DataError(
                f"the mask holds {(lowest if lowest < 0 else highest) - 1}, but classes are 0..{self.num_classes - 1} "
                f"and {self.ignore_index} is ignored; map the value to one of them."
            )
        return codes

    def _count_confidence(self, confidence: Tensor, pred: Tensor, truth: Tensor) -> None:
        """Count code maps [H, W] uint8 and confidence [H, W] float; all three are 0 where ignored."""
        side = self.num_classes + 1
        fine = (confidence * _FINE_BINS).int().clamp_(max=_FINE_BINS - 1)
        key = (pred == truth).int().mul_(side).add_(pred).mul_(_FINE_BINS).add_(fine).flatten()
        self.outcomes += torch.bincount(key, minlength=2 * side * _FINE_BINS).view(2, side, _FINE_BINS)[:, 1:]
        # Not bincount with weights: on a GPU that has no deterministic form.
        self.confidences.index_add_(0, fine.flatten(), confidence.double().flatten())

    def _calibration(self) -> tuple[Calibration, float]:
        wrong, right = self.outcomes.sum(1).view(2, CALIBRATION_BINS, -1).sum(2).cpu()
        confidence = self.confidences.view(CALIBRATION_BINS, -1).sum(1).cpu()
        count = wrong + right
        ece = _ratio((confidence - right).abs().sum(), count.sum()).item()
        return Calibration(
            count=tuple(count.tolist()),
            confidence=tuple(_ratio(confidence, count).tolist()),
            accuracy=tuple(_ratio(right, count).tolist()),
        ), ece

    def _reliability(self) -> Reliability:
        wrong, right = self.outcomes.view(2, self.num_classes, RELIABILITY_BINS, -1).sum(3).double().cpu()
        return Reliability(correct=right, total=wrong + right)


class _Confusion(MulticlassConfusionMatrix):
    """torchmetrics' state, counted in one pass.

    Its own ``update`` copies the pixels that are not ignored, and under
    ``torch.use_deterministic_algorithms`` makes a [H x W, C x C] table of every image.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count code maps: class + 1, and 0 in both where ignored. [H, W] uint8 each."""
        self.confmat += count_pairs(target, preds, self.num_classes + 1)[1:, 1:]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in float64, NaN where whole is 0."""
    return torch.where(whole > 0, part.double() / whole, torch.nan)


def _size(x: Tensor) -> str:
    height, width = x.shape[-2:]
    return f"{width}x{height}"
