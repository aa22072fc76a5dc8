"""What an epoch's row says of pseudo-labels, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cwbass.data.base import DatasetSpec, Sample
from cwbass.training.flight import HISTOGRAM_BINS, SliceRecord, unlabeled_row
from cwbass.world import ALONE

SPEC = DatasetSpec(("sky", "road"), ((0, 0, 0), (1, 1, 1)))
SAMPLE = Sample("a", "a.jpg", "a.png")


def test_sums_over_unlabelled_pixels_become_shares_and_counts() -> None:
    counts = [[0.0] * 100 for _ in range(3)]
    counts[0][44], counts[0][45], counts[0][99] = 2.0, 3.0, 5.0
    counts[1][0] = 10.0
    row = unlabeled_row(
        {"seen": [10.0, 10.0, 0.0], "kept": [5.0, 0.0, 0.0], "confidence": [8.0, 1.0, 0.0], "confidence_counts": counts}
    )
    histogram = row.pop("confidence_histogram")
    assert row == {
        "retention": 0.25,
        "retention_per_class": [0.5, 0.0, None],
        "mean_confidence": 0.45,
        "pseudo_label_share": [1.0, 0.0, 0.0],
        "seen_per_class": [10, 10, 0],
        "kept_per_class": [5, 0, 0],
    }
    assert [len(line) for line in histogram] == [HISTOGRAM_BINS] * 3
    assert [{bin: count for bin, count in enumerate(line) if count} for line in histogram] == [{8: 2, 9: 3, 19: 5}, {0: 10}, {}]


def probs(label: list[int], confidence: list[float]) -> Tensor:
    """One row of pixels. -> [2, 1, W]."""
    sure = torch.tensor(confidence)
    first = torch.where(torch.tensor(label) == 0, sure, 1 - sure)
    return torch.stack((first, 1 - first))[:, None]


def test_precision_inside_and_near_boundaries_by_hand() -> None:
    """24 pixels of sky and 8 of road: 5 on each side of the border at 24 are near it; the last one is unknown."""
    mask = torch.tensor([0] * 24 + [1] * 7 + [255], dtype=torch.uint8)[None]
    label = [0] * 20 + [1] * 12  # the last four pixels of sky are taken for road
    sure = [0.9] * 10 + [0.6] * 10 + [0.9] * 2 + [0.6] * 2 + [0.9] * 8  # ten of sky and two of the mistakes are rejected
    record = SliceRecord(SPEC, torch.device("cpu"), lambda confidence, label: confidence > 0.8)
    record.teacher(SAMPLE, mask, probs(label, sure))
    record.add_up(ALONE)
    row = record.row()
    # Kept as road: 2 mistakes and 5 right ones near the border, 2 right ones inside. Near it, one pixel of sky is dropped.
    assert row == {
        "precision": pytest.approx(17 / 19),
        "precision_per_class": [1.0, pytest.approx(7 / 9)],
        "interior_precision": 1.0,
        "interior_precision_per_class": [1.0, 1.0],
        "interior_retention_per_class": [pytest.approx(10 / 19), 1.0],
        "boundary_precision": pytest.approx(5 / 7),
        "boundary_precision_per_class": [None, pytest.approx(5 / 7)],
        "boundary_retention_per_class": [0.0, pytest.approx(7 / 9)],
    }


def test_disagreement_is_counted_by_the_class_that_the_teacher_names() -> None:
    mask = torch.tensor([[0, 0, 0, 1, 255]], dtype=torch.uint8)
    record = SliceRecord(SPEC, torch.device("cpu"), None)
    record.student(SAMPLE, mask, probs([0, 1, 1, 1, 0], [0.9] * 5))
    record.teacher(SAMPLE, mask, probs([0, 0, 1, 0, 1], [0.9] * 5))
    assert record.row() == {"disagreement": 0.5, "disagreement_per_class": [pytest.approx(2 / 3), 0.0]}


def test_without_a_student_beside_it_nothing_is_said_of_disagreement() -> None:
    record = SliceRecord(SPEC, torch.device("cpu"), None)
    record.teacher(SAMPLE, torch.zeros(1, 2, dtype=torch.uint8), probs([0, 0], [0.9, 0.9]))
    assert record.row() == {}
