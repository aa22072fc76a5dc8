from __future__ import annotations

from typing import Any

import pytest

from cwbass.headline import false_classes, points, score_table

METRICS: dict[str, Any] = {
    **{"miou": 0.5, "boundary_iou": 0.25, "boundary_f1_3px": None, "pixel_accuracy": 0.75, "ece": 0.08, "method": "cw_bass"},
    "per_class": {"road": {"iou": 0.6, "pixels": 9}, "sky": {"iou": None, "pixels": 0}, "ghost": {"iou": 0.0, "pixels": 0}},
}
BASELINE = {"miou": 0.4, "boundary_iou": 0.2504, "boundary_f1_3px": 0.3, "pixel_accuracy": 0.75, "ece": 0.1}


def test_a_gain_is_the_models_score_less_the_baselines() -> None:
    classes = {name: {**row, "baseline_iou": 0.7 if name == "road" else None} for name, row in METRICS["per_class"].items()}
    found = score_table({**METRICS, **{f"baseline_{key}": score for key, score in BASELINE.items()}, "per_class": classes})
    assert found.header == ["", "supervised", "cw_bass", "gain"]
    assert found.scores == [
        ["mIoU", "40.0", "50.0", "+10.0"],
        ["boundary IoU", "25.0", "25.0", "0.0"],
        ["boundary F1, 3 px", "30.0", "-", "-"],
        ["pixel accuracy", "75.0", "75.0", "0.0"],
        ["calibration error", "10.0", "8.0", "-2.0"],
    ]
    assert found.classes == [["road", "70.0", "60.0", "-10.0"], ["sky", "-", "-", "-"], ["ghost", "-", "0.0", "-"]]


def test_a_model_that_is_alone_has_one_column() -> None:
    found = score_table(METRICS)
    assert (found.header, found.scores[0], found.classes[0]) == (["", "cw_bass"], ["mIoU", "50.0"], ["road", "60.0"])


def test_a_class_that_was_named_and_is_nowhere_counts_as_false() -> None:
    assert false_classes(METRICS) == ["ghost"]


@pytest.mark.parametrize(
    ("difference", "said"), [(0.0004, "0.0"), (-0.0004, "0.0"), (0.0006, "+0.1"), (-0.1234, "-12.3"), (0.0, "0.0")]
)
def test_points_have_a_sign_where_there_is_one_to_see(difference: float, said: str) -> None:
    assert points(difference) == said
