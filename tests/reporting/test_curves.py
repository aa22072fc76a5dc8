from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cwbass.reporting.curves import draw_curves, number

NAMES = ("road", "sky")


def train(**columns: list[Any]) -> list[dict[str, Any]]:
    length = len(next(iter(columns.values())))
    return [
        {"stage": "train", "step": 100 * (i + 1), **{key: values[i] for key, values in columns.items()}} for i in range(length)
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 1.0), (0.5, 0.5), (None, None), (math.nan, None), (math.inf, None), ("0.5", None), (True, None)]
)
def test_only_finite_numbers_are_drawn(value: object, expected: float | None) -> None:
    assert number(value) == expected


def test_every_curve_of_a_full_run_is_drawn(run: dict[str, Any]) -> None:
    curves = draw_curves(run["history"], run["spec"].class_names)
    assert [figure.title for figure in curves.figures] == [
        "Loss terms", "mIoU on the selection slice", "Pseudo-labels: how many, how sure, how right", "Threshold of each class",
        "Retention of each class", "Precision of each class", "Waiting for data",
    ]  # fmt: skip
    assert curves.missing == ()


def test_both_branches_start_where_the_warm_up_ends() -> None:
    history = [
        {"stage": "warmup", "step": 100, "selection_miou": 0.0},
        {"stage": "baseline", "step": 300, "selection_miou": 0.5},
        {"stage": "train", "step": 300, "selection_miou": 1.0},
    ]
    (figure,) = draw_curves(history, NAMES).figures
    assert figure.body.count('points="46,212') == 3  # warm-up, and the start of each branch
    assert 'points="46,212 438,114"' in figure.body
    assert 'points="46,212 438,16"' in figure.body
    assert "warm-up ends" in figure.body


def test_branches_go_on_from_the_last_epoch_of_the_warm_up_whose_losses_are_drawn_too() -> None:
    history = [
        {"stage": "warmup", "step": 0, "selection_miou": 0.5, "loss": 4.0},
        {"stage": "warmup", "step": 100, "selection_miou": 0.0, "loss": 2.0},
        {"stage": "baseline", "step": 200, "selection_miou": 0.5, "loss": 1.0},
        {"stage": "train", "step": 200, "selection_miou": 1.0, "loss": 0.0},
    ]
    losses, selection = draw_curves(history, NAMES).figures
    for line in ("46,114 242,212", "242,212 438,114", "242,212 438,16"):
        assert f'points="{line}"' in selection.body
    assert 'points="46,16 242,114 438,212"' in losses.body  # of one run: the baseline is a branch of it
    assert all('class="marker" x1="242" x2="242"' in figure.body for figure in (losses, selection))


def test_a_class_has_its_own_line_though_some_rows_lack_it() -> None:
    (figure,) = draw_curves(train(threshold=[[0.25, 0.75], [0.5]]), NAMES).figures
    for point in ("road, 100: 25.0%", "road, 200: 50.0%", "sky, 100: 75.0%"):
        assert f"<title>{point}</title>" in figure.body
    assert "sky, 200" not in figure.body


def test_waiting_for_data_is_seen_against_thirty_per_cent() -> None:
    (figure,) = draw_curves(train(data_wait=[0.01, 0.02]), NAMES).figures
    assert ">30%</text>" in figure.body


def test_both_trainings_of_a_second_stage_have_curves_of_their_own() -> None:
    history = [
        {"stage": "train", "step": 900, "loss": 1.0, "selection_miou": 0.5},
        *({"stage": "retrain_reliable", "step": s, "loss": 2.0, "selection_miou": m, "retention": 0.5} for s, m in ((50, 0.0), (100, 0.5))),
        *({"stage": "retrain_all", "step": s, "loss": 1.0, "selection_miou": m, "retention": 0.7} for s, m in ((50, 0.5), (100, 1.0))),
    ]  # fmt: skip
    figures = {figure.title: figure.body for figure in draw_curves(history, NAMES).figures}
    assert [title for title in figures if title.startswith("Second stage")] == [
        "Second stage: loss terms", "Second stage: mIoU on the selection slice", "Second stage: retention",
    ]  # fmt: skip
    # From the left edge to the right one, and over the whole height: 0 to 50 %, and 50 to 100 %.
    for line in ('points="46,212 438,114"', 'points="46,114 438,16"'):
        assert line in figures["Second stage: mIoU on the selection slice"]
    assert "total, on reliable images" in figures["Second stage: loss terms"]
    assert "on all images: 100.0% at the end" in figures["Second stage: mIoU on the selection slice"]
    assert figures["mIoU on the selection slice"].count("<polyline") <= 1  # the first stage's chart is as it was


def test_without_a_slice_a_sentence_stands_for_precision_and_selection() -> None:
    curves = draw_curves(train(loss=[1.0, 0.5], retention=[0.5, 0.6]), NAMES)
    assert "No selection slice: precision of the pseudo-labels was not measured." in curves.missing
    assert any("mIoU was not measured during training" in sentence for sentence in curves.missing)
    assert [figure.title for figure in curves.figures] == ["Loss terms", "Pseudo-labels: how many, how sure, how right"]


def test_a_slice_is_not_denied_where_nothing_of_it_was_kept_or_the_method_makes_no_labels() -> None:
    kept_nothing = draw_curves(train(selection_miou=[0.1, 0.2], retention=[0.0, 0.0], precision=[None, None]), NAMES)
    assert kept_nothing.missing[-1] == "No label of the selection slice was kept: of precision there is none."
    labels_alone = draw_curves(train(selection_miou=[0.1, 0.2]), NAMES)
    for curves in (kept_nothing, labels_alone):
        assert not any("No selection slice" in sentence for sentence in curves.missing)


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    history = [json.loads(line) for line in ('{"stage":"train","step":1,"loss":1}', '{"stage":"train","step":2,"loss":NaN}')]
    (figure,) = draw_curves(history, NAMES).figures
    assert "nan" not in figure.body


def test_one_threshold_for_all_classes_is_one_line() -> None:
    (figure,) = draw_curves(train(threshold=[0.9, 0.9]), NAMES).figures
    assert (figure.title, figure.body.count("<polyline")) == ("Threshold of each class", 1)


@pytest.mark.parametrize(("classes", "lines", "pictures"), [(8, 8, 0), (9, 0, 2)])  # the strip and its colour bar
def test_many_classes_become_a_heat_strip(classes: int, lines: int, pictures: int) -> None:
    names = [f"class {index}" for index in range(classes)]
    (figure,) = draw_curves(train(retention_per_class=[[0.5] * classes, [0.6] * classes]), names).figures
    assert (figure.body.count("<polyline"), figure.body.count("<image")) == (lines, pictures)


def test_rows_without_a_step_are_left_out() -> None:
    assert draw_curves([{"stage": "train", "loss": 1.0}], NAMES).figures == ()
