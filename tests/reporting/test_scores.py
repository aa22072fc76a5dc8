from __future__ import annotations

from typing import Any

import pytest

from cwbass.evaluation.metrics import Scores
from cwbass.reporting import scores
from cwbass.reporting.svg import NONE

METRICS: dict[str, Any] = {
    "miou": 0.5,
    "baseline_miou": 0.45,
    "images": 1200,
    "per_class": {
        "road": {"iou": 0.8, "baseline_iou": 0.68, "pixels": 300},
        "sky": {"iou": 0.2, "baseline_iou": 0.22, "pixels": 100},
        "tram": {"iou": None, "baseline_iou": None, "pixels": 0},
    },
}


def test_the_verdict_names_score_gain_and_extremes() -> None:
    assert scores.verdict(METRICS) == (
        "CW-BASS reaches 50.0% mIoU on 1,200 test images, 5.0 points above training on the labelled images alone. "
        "1 of 2 classes improve: best road (+12.0), worst sky (\N{MINUS SIGN}2.0)."
    )


def test_every_score_of_the_test_images_has_a_printed_name() -> None:
    assert set(scores.SCORES) == set(Scores(2, 255).result().scores())


def test_another_method_goes_by_its_own_name() -> None:
    metrics = METRICS | {"method": "unimatch"}
    assert scores.verdict(metrics).startswith("unimatch reaches 50.0% mIoU")
    assert scores.tiles(metrics)[0].label == "unimatch mIoU"
    assert "unimatch" in str(scores.class_chart(metrics)) and "CW-BASS" not in str(scores.class_chart(metrics))


def test_a_champion_to_compare_with_is_not_called_supervised() -> None:
    metrics = METRICS | {"baseline_method": "cw_bass", "boundary_iou": 0.3, "baseline_boundary_iou": 0.2}
    assert "5.0 points above the baseline. " in scores.verdict(metrics)
    tiles = {tile.label: tile.note for tile in scores.tiles(metrics)}
    assert (tiles["Baseline mIoU"], tiles["Boundary IoU"]) == ("", "+10.0 points against baseline")
    assert scores.theirs(metrics) == "baseline"
    assert scores.theirs(METRICS) == scores.theirs(METRICS | {"baseline_method": "supervised"}) == "supervised only"


def test_the_verdict_does_not_hide_a_loss() -> None:
    assert "2.0 points below training" in scores.verdict({"miou": 0.43, "baseline_miou": 0.45})


def test_without_a_baseline_there_is_no_gain() -> None:
    lone = {"miou": 0.5, "ece": 0.04}
    assert "No supervised baseline was scored" in scores.verdict(lone)
    assert [tile.label for tile in scores.tiles(lone)] == ["mIoU", "Calibration error"]
    assert scores.verdict({}) == "No score was measured."
    assert scores.tiles({}) == []


@pytest.mark.parametrize(
    ("key", "ours", "theirs", "change", "tone"),
    [
        ("miou", 0.5, 0.4, "+10.0", "up"),
        ("miou", 0.4, 0.5, "\N{MINUS SIGN}10.0", "down"),
        ("ece", 0.04, 0.06, "\N{MINUS SIGN}2.0", "up"),  # less error is better
        ("miou", 0.5001, 0.5, "0.0", ""),
        ("miou", 0.5, None, NONE, ""),
        ("miou", float("nan"), 0.5, NONE, ""),
    ],
)
def test_a_change_is_judged_by_its_direction(key: str, ours: float, theirs: float | None, change: str, tone: str) -> None:
    pair = scores.compare({key: ours, f"baseline_{key}": theirs}, key)
    assert (pair.change, pair.tone) == (change, tone)


def test_absent_classes_stay_in_the_table_with_dashes() -> None:
    road, sky, tram = scores.class_table(METRICS)
    assert (road.iou.ours, road.iou.change, road.share) == ("80.0", "+12.0", "75.0")
    assert (sky.iou.tone, sky.boundary_iou.ours) == ("down", NONE)
    assert (tram.iou.ours, tram.share) == (NONE, "0.0")


def test_confusion_is_divided_by_the_true_class() -> None:
    found = scores.confusion({"confusion": {"class_names": ["a", "b", "c"], "matrix": [[3, 1, 0], [2, 2, 0], [0, 0, 0]]}})
    assert found is not None
    assert found.rows == [("a", [0.75, 0.25, 0.0]), ("b", [0.5, 0.5, 0.0]), ("c", [0.0, 0.0, 0.0])]
    assert found.pairs == [("b", "a", 0.5), ("a", "b", 0.25)]


def test_checkpoints_show_the_scores_that_any_of_them_has() -> None:
    columns, rows = scores.checkpoint_table(
        {"checkpoints": {"last": {"miou": 0.5}, "selected": {"miou": 0.6, "ece": 0.1, "step": 9}}}
    )
    assert columns == ["mIoU", "ECE (lower is better)"]
    assert rows == {"last": ["50.0", NONE], "selected": ["60.0", "10.0"]}
