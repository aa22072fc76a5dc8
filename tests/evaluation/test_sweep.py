"""Thresholds and their reasons, by hand: ten bins, five classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cwbass.errors import DataError
from cwbass.evaluation.sweep import Suggestion, Sweep, SweepRule, read_sweep
from cwbass.pseudo_labels import thresholds_for_precision
from cwbass.types import Reliability

NAMES = ("sky", "road", "car", "bus", "train")
# Pixels and right ones by class and tenth of confidence.
PIXELS = {
    "sky": {4: (100, 50), 9: (900, 891)},
    "road": {3: (400, 200), 8: (600, 570)},
    "car": {6: (1000, 500), 9: (200, 160)},
    "bus": {9: (5, 5)},
}


@pytest.fixture
def sweep() -> Sweep:
    total, correct = torch.zeros(2, len(NAMES), 10, dtype=torch.float64)
    for index, name in enumerate(NAMES):
        for tenth, (pixels, right) in PIXELS.get(name, {}).items():
            total[index, tenth], correct[index, tenth] = pixels, right
    return Sweep(NAMES, Reliability(correct, total), {"network": "teacher", "step": 8}, SweepRule(pixels=10))


def test_each_class_gets_a_threshold_with_its_reason(sweep: Sweep) -> None:
    found = sweep.classes()
    assert found["sky"] == Suggestion(0.3, 0.941, 1.0, 1000, "reaches 90.0% at 0.00 already: the lowest threshold asked for")
    assert found["road"] == Suggestion(0.4, 0.95, 0.6, 600, "the lowest threshold whose precision reaches 90.0%")
    # 160 of 200 at 0.7 and above. In ten bins there is nothing at 0.95 and above.
    assert found["car"] == Suggestion(
        0.95, None, 0.0, 0, "never reaches 90.0%, at best 80.0% at 0.70: the highest threshold asked for"
    )
    # All classes together reach 1626 of 1705 at 0.7, and 2126 of 2705 below.
    assert sweep.overall() == Suggestion(
        0.7, pytest.approx(1626 / 1705), pytest.approx(1705 / 3205), 1705, "the lowest threshold whose precision reaches 90.0%"
    )
    assert found["bus"] == Suggestion(0.7, 1.0, 1.0, 5, "5 pixels are too few to judge: the threshold of all classes")
    assert found["train"] == Suggestion(0.7, None, None, 0, "never named on the slice: the threshold of all classes")


def test_a_target_that_is_reached_beyond_the_highest_threshold_is_said_so(sweep: Sweep) -> None:
    rule = replace(sweep.rule, high=0.35)
    assert replace(sweep, rule=rule).classes()["road"].reason == "reaches 90.0% at 0.40 only: the highest threshold asked for"


def test_a_few_lucky_pixels_are_no_reason() -> None:
    total, correct = torch.zeros(2, 1, 10, dtype=torch.float64)
    total[0, 4:9], correct[0, 4:9] = 100.0, 50.0
    total[0, 9] = correct[0, 9] = 49.0  # all right, and with fewer than 50 behind them
    found = Sweep(("pole",), Reliability(correct, total), {}, SweepRule(pixels=50)).classes()["pole"]
    assert found.threshold == 0.95
    assert found.reason == "never reaches 90.0%, at best 66.4% at 0.80: the highest threshold asked for"  # (50 + 49) of 149


def test_where_there_are_pixels_enough_the_rule_is_that_of_auto(sweep: Sweep) -> None:
    auto = thresholds_for_precision(sweep.reliability, target=0.9, low=0.3, high=0.95, prior=0.0).tolist()
    assert [sweep.classes()[name].threshold for name in NAMES[:3]] == auto[:3]


def test_curves_are_what_was_measured(sweep: Sweep) -> None:
    precision, retention = sweep.curves()
    assert precision[1] == [0.77] * 4 + [0.95] * 5 + [None]
    assert retention[1] == [1.0] * 4 + [0.6] * 5 + [0.0]
    assert (precision[4], retention[4]) == ([None] * 10, [0.0] * 10)


def test_a_file_holds_the_counts_so_that_another_target_can_be_asked_for(sweep: Sweep, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(sweep.to_dict(), allow_nan=False))
    again = read_sweep(path)
    assert again.to_dict() == sweep.to_dict()
    assert replace(again, rule=replace(again.rule, target=0.97)).classes()["sky"].threshold == 0.5  # 891 of 900


@pytest.mark.parametrize(
    "counts",
    [
        {"correct": [0] * 5, "total": [0] * 5},
        {"correct": [[0] * 10] * 4, "total": [[0] * 10] * 4},
        {"correct": [[0] * 9] * 5},
    ],
)
def test_counts_of_another_shape_are_refused(sweep: Sweep, tmp_path: Path, counts: dict[str, list[object]]) -> None:
    content = sweep.to_dict()
    (tmp_path / "sweep.json").write_text(json.dumps({**content, "counts": {**content["counts"], **counts}}))
    with pytest.raises(DataError, match=r"sweep\.json holds no sweep.*counts are not those of 5 classes"):
        read_sweep(tmp_path / "sweep.json")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": 2}', '{"schema": 1, "classes": {"a": 0}, "counts": {"correct": [], "total": []}}']
)
def test_another_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(DataError, match=r"sweep\.json holds no sweep"):
        read_sweep(tmp_path / "sweep.json")
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_sweep(tmp_path / "none.json")
