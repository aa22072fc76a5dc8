from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cwbass.errors import DataError
from cwbass.reporting.summary import confusion_matrix, decision_page, headline, read_decision, scores_page

METRICS: dict[str, Any] = {
    "miou": 0.5, "baseline_miou": 0.4, "miou_gain": 0.1, "miou_gain_interval": [-0.012, 0.2],
    "boundary_iou": 0.3, "baseline_boundary_iou": 0.25,
    "boundary_f1_3px": None, "ece": 0.05, "pixel_accuracy": 0.8, "split_hash": "0123456789abcdef", "images": 3,
    "protocol": "whole scale:1", "seed": 7, "absent_classes": ["tram"],
    "per_class": {"sky": {"iou": 0.75, "baseline_iou": 0.5}, "road": {"iou": 0.1999, "baseline_iou": 0.2},
                  "a|b<script>": {"iou": None, "baseline_iou": 0.1}},
    "confusion": {"class_names": ["sky", "road", "car", "tram"], "matrix": [[10, 1, 0, 2], [0, 50, 3, 0], [1, 0, 7, 4], [0, 0, 1, 0]]},
}  # fmt: skip
PARAMS = "train: {steps: 10, batch_labeled: 3, batch_unlabeled: 5, accumulate: 2}\n"


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    rows = [
        {"stage": "warmup", "step": 5, "step_seconds": 9.0},
        {"stage": "train", "step": 8, "retention": 0.2, "precision": 0.5, "step_seconds": 1.0},
        {"stage": "train", "step": 10, "retention": 0.6, "precision": None, "step_seconds": 0.25},
    ]
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def test_headline_takes_the_last_epoch_and_leaves_out_what_was_not_measured(reports: Path) -> None:
    assert headline(reports) == {
        "miou": 0.5,
        "baseline_miou": 0.4,
        "miou_gain": 0.1,
        "boundary_iou": 0.3,
        "ece": 0.05,
        "pixel_accuracy": 0.8,
        "pseudo_label_retention": 0.6,
        "images_per_second": 64.0,  # (3 + 5) crops x 2 batches in a quarter of a second
    }


def test_a_supervised_run_has_no_pseudo_labels_to_speak_of(reports: Path) -> None:
    (reports / "history.jsonl").write_text('{"stage": "train", "step": 10, "step_seconds": 1.0}\n')
    assert not [key for key in headline(reports) if key.startswith(("pseudo", "images"))]


def test_a_small_matrix_is_shown_as_it_is(reports: Path) -> None:
    assert confusion_matrix(reports) == (METRICS["confusion"]["class_names"], METRICS["confusion"]["matrix"])


def test_of_many_classes_the_rarest_are_added_up_and_no_pixel_is_lost(reports: Path) -> None:
    names, matrix = confusion_matrix(reports, max_classes=3)
    assert names == ["sky", "road", "(others)"]
    assert matrix == [[10, 1, 2], [0, 50, 3], [1, 0, 12]]
    assert sum(map(sum, matrix)) == sum(map(sum, METRICS["confusion"]["matrix"]))


def test_the_page_of_scores_is_a_table_in_per_cent(reports: Path) -> None:
    page = scores_page(reports).splitlines()
    assert page[0] == "Test split 0123456789ab, 3 images, whole scale:1, seed 7."
    assert page[2] == "|  | supervised | model | gain |"
    assert "| mIoU | 40.0 | 50.0 | +10.0 |" in page
    assert "| IoU of sky | 50.0 | 75.0 | +25.0 |" in page
    assert "| IoU of road | 20.0 | 20.0 | 0.0 |" in page  # a hair worse
    assert "95 % of resampled test images put the gain in mIoU between -1.2 and +20.0; another seed may do otherwise." in page
    assert page[-1] == "Absent from the test split: tram."


def test_a_class_that_no_test_image_shows_is_told_where_its_zero_lowers_the_mean(reports: Path) -> None:
    ghost = {"iou": 0.0, "pixels": 0}  # predicted, though nowhere to be seen
    missed = {"iou": 0.0, "pixels": 9}
    metrics = {**METRICS, "absent_classes": [], "per_class": {**METRICS["per_class"], "tram": ghost, "car": missed}}
    (reports / "metrics.json").write_text(json.dumps(metrics))
    assert scores_page(reports).splitlines()[-1] == "Absent, but predicted there, so 0 in the mean: tram."


def test_the_columns_are_named_by_what_is_compared(reports: Path) -> None:
    (reports / "metrics.json").write_text(json.dumps({**METRICS, "method": "unimatch", "baseline_method": "cw_bass"}))
    assert scores_page(reports).splitlines()[2] == "|  | baseline | unimatch | gain |"


def test_a_class_name_can_neither_break_the_table_nor_carry_html(reports: Path) -> None:
    assert "| IoU of a\\|b\\<script\\> | 10.0 | - | - |" in scores_page(reports)


def test_without_a_baseline_there_is_one_column(reports: Path) -> None:
    (reports / "metrics.json").write_text(json.dumps({**METRICS, "baseline_miou": None}))
    page = scores_page(reports).splitlines()
    assert "| mIoU | 50.0 |" in page and "| IoU of sky | 75.0 |" in page


def test_a_decision_says_what_and_why(tmp_path: Path) -> None:
    written = {"name": "shapes", "decision": "refused", "version": None, "reasons": ["miou is 0.1, below 0.2", "<b>"]}
    (tmp_path / "registration.json").write_text(json.dumps(written))
    page = decision_page(read_decision(tmp_path))
    assert page.startswith("# shapes is refused\n\n- miou is 0.1, below 0.2\n- \\<b\\>\n")
    registered = {**written, "decision": "registered", "version": "1.2.0", "uri": "s3://b/1.2.0", "manifest_sha256": "ab"}
    assert decision_page(registered).startswith("# shapes 1.2.0 is registered\n\ns3://b/1.2.0\n")
    assert decision_page({**written, "page": "# The gate's own page\n"}) == "# The gate's own page\n"


@pytest.mark.parametrize("content", ["", "[]", '{"decision": "perhaps"}'])
def test_a_file_without_a_decision_is_an_error_and_no_registration(tmp_path: Path, content: str) -> None:
    (tmp_path / "registration.json").write_text(content)
    with pytest.raises(DataError, match=r"registration\.json .*Run `cwbass register` again"):
        read_decision(tmp_path)
