from __future__ import annotations

from typing import Any

from cwbass.reporting.findings import find_concerns

NAMES = ("road", "sky")


def epochs(**columns: list[Any]) -> list[dict[str, Any]]:
    """Rows of the train stage, from columns."""
    length = len(next(iter(columns.values())))
    return [
        {"stage": "train", "step": 100 * (i + 1), **{key: values[i] for key, values in columns.items()}} for i in range(length)
    ]


def test_a_healthy_run_raises_nothing() -> None:
    history = epochs(
        precision=[0.90, 0.92, 0.93], retention=[0.5, 0.6, 0.7], retention_per_class=[[0.5, 0.1]] * 3,
        data_wait=[0.1] * 3, nonfinite=[0] * 3,
    )  # fmt: skip
    assert find_concerns(history, NAMES) == []


def test_an_empty_history_raises_nothing() -> None:
    assert find_concerns([], NAMES) == []


def test_skipped_steps_are_summed_over_all_stages() -> None:
    history = [{"stage": "warmup", "nonfinite": 2}, *epochs(nonfinite=[0, 3])]
    assert find_concerns(history, NAMES) == ["5 steps had a loss that was not finite and were skipped."]


def test_falling_precision_with_rising_retention_is_a_collapse() -> None:
    (sentence,) = find_concerns(epochs(precision=[0.95, 0.90, 0.80], retention=[0.5, 0.6, 0.9]), NAMES)
    assert "from 95.0% to 80.0% while retention rose from 50.0% to 90.0%" in sentence


def test_falling_precision_alone_is_not_a_collapse() -> None:
    assert find_concerns(epochs(precision=[0.95, 0.80], retention=[0.6, 0.5]), NAMES) == []


def test_a_threshold_that_rejects_nothing_is_reported() -> None:
    (sentence,) = find_concerns(epochs(retention=[0.5, 0.998]), NAMES)
    assert "99.8% of the unlabelled pixels were kept" in sentence


def test_a_class_starves_after_three_epochs_without_a_pixel() -> None:
    assert find_concerns(epochs(retention_per_class=[[0.4, 0.0]] * 2), NAMES) == []
    assert find_concerns(epochs(retention_per_class=[[0.4, 0.0], [0.4, 0.1], [0.4, 0.0]]), NAMES) == []
    (sentence,) = find_concerns(epochs(retention_per_class=[[0.4, 0.0]] * 3), NAMES)
    assert sentence == "No pseudo-label was kept in the last 3 epochs for: sky."


def test_an_incident_of_the_collapse_guard_is_told_with_what_was_done() -> None:
    incident = {"signs": ["miou"], "reasons": ["mIoU fell"], "unsup_scale": 0.0625, "back_to": 100}
    history = epochs(nonfinite=[0, 0, 0])
    history[1]["incident"] = incident
    history[2]["incident"] = {**incident, "back_to": None}
    acted = "the collapse guard acted: mIoU fell. The unlabelled loss had 6.25% of its weight from there"
    assert find_concerns(history, NAMES) == [
        f"At step 200 {acted}, and training went on with the weights of step 100.",
        f"At step 300 {acted}.",
    ]


def test_long_waits_for_data_are_reported() -> None:
    (sentence,) = find_concerns(epochs(data_wait=[0.5, 0.3]), NAMES)
    assert sentence.startswith("Training waited for data 40% of the time")
