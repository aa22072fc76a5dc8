"""The collapse guard on epochs made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwbass.config import GuardConfig
from cwbass.telemetry.metrics import SIGNS
from cwbass.training.collapse import CollapseGuard, Incident, effective_classes

NAMES = ("sky", "road", "tree")
EVEN = (100.0, 100.0, 100.0)


def new_guard(**config: Any) -> CollapseGuard:
    guard = CollapseGuard(GuardConfig(**config), NAMES, labeled=(1, 1, 0), images=5)
    guard.start(10, 0.40, 0.02)
    return guard


def epoch(
    step: int, miou: float | None = 0.40, *, precision: float = 0.9, retention: float = 0.5, **values: Any
) -> dict[str, Any]:
    row = {"step": step, "retention": retention, "pseudo_label_share": [0.5, 0.3, 0.2]}
    measured = {} if miou is None else {"selection_miou": miou, "selection_error": 0.02, "precision": precision}
    return {**row, **measured, **values}


def judged(guard: CollapseGuard, rows: list[dict[str, Any]], seen: tuple[float, ...] = EVEN) -> list[Incident | None]:
    return [guard.judge(row, seen) for row in rows]


def test_the_effective_number_of_classes_is_that_of_equally_frequent_ones() -> None:
    assert effective_classes((5, 5, 5, 5)) == pytest.approx(4)
    assert effective_classes((7, 0, 0)) == pytest.approx(1)
    # -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.5623 nats
    assert effective_classes((3, 1)) == pytest.approx(math.exp(0.5623351446188083))
    assert effective_classes((0, 0)) is None
    assert effective_classes(()) is None


def test_a_score_that_stays_far_below_the_best_leads_back_to_the_last_healthy_epoch() -> None:
    guard = new_guard()
    rows = [epoch(20, 0.48), epoch(30, 0.37), epoch(40, 0.35), epoch(50, 0.30), epoch(60, 0.20)]
    # A quarter of 0.48 is 0.12: 0.37 is no sign, and later ones are. But it is not within an error, 0.02, of the best.
    *quiet, incident = judged(guard, rows)
    assert quiet == [None] * 4
    reason = "mIoU on the selection slice fell from 48.0% to 20.0%"
    assert incident == Incident(("miou",), (reason,), unsup_scale=0.25, back_to=20)
    assert (guard.unsup_scale, guard.healthy_step) == (0.25, 20)


def test_the_score_that_the_stage_begins_with_counts_as_healthy() -> None:
    incident = judged(new_guard(), [epoch(20, 0.1), epoch(30, 0.1), epoch(40, 0.1)])[-1]
    assert incident is not None and incident.back_to == 10


def test_a_sign_must_last_without_a_break() -> None:
    rows = [epoch(20, 0.1), epoch(30, 0.1), epoch(40, 0.4), epoch(50, 0.1), epoch(60, 0.1)]
    assert judged(new_guard(), rows) == [None] * 5


def test_each_incident_lowers_the_weight_and_needs_its_own_epochs() -> None:
    guard = new_guard(patience=2, factor=0.5)
    found = judged(guard, [epoch(step, 0.1) for step in (20, 30, 40, 50, 60)])
    assert [None if each is None else each.unsup_scale for each in found] == [None, 0.5, None, 0.25, None]


def test_the_latest_epoch_within_one_standard_error_of_the_best_is_healthy() -> None:
    falling = [epoch(step, 0.2) for step in (50, 60, 70)]
    incident = judged(new_guard(), [epoch(20, 0.48), epoch(30, 0.465), epoch(40, 0.455), *falling])[-1]
    assert incident is not None and incident.back_to == 30  # 40 is near the one before it, but not near the best
    incident = judged(new_guard(), [epoch(20, 0.385), *falling])[-1]
    assert incident is not None and incident.back_to == 20  # of the score that the stage began with


@pytest.mark.parametrize(("error", "luck"), [(0.100, False), (0.102, True), (math.inf, True)])
def test_a_fall_within_student_s_t_of_its_images_is_luck(error: float, luck: bool) -> None:
    """0.28, of five images: t of four degrees of freedom is 2.7764. Infinite is the error of a slice of one image."""
    found = judged(new_guard(), [epoch(step, 0.12, selection_error=error) for step in (20, 30, 40)])
    assert found[:2] == [None] * 2
    assert (found[2] is None) == luck
    guard = new_guard()
    guard.start(10, 0.40, error)  # or the error of the best
    assert (judged(guard, [epoch(step, 0.12, selection_error=0.0) for step in (20, 30, 40)])[2] is None) == luck


def test_a_slice_without_a_labelled_pixel_has_no_score_that_could_fall() -> None:
    guard = new_guard()
    guard.start(10, math.nan, 0.0)
    rows = [epoch(step, math.nan, selection_error=0.0) for step in (20, 30, 40)]
    assert judged(guard, [{**row, "precision": None} for row in rows]) == [None] * 3


def test_precision_that_falls_while_more_is_kept_and_the_score_falls_is_a_sign() -> None:
    # 0.06 below the best, and luck of five images is 2.7764 x 0.02 = 0.0555.
    fallen = [epoch(step, 0.36, precision=0.79, retention=0.7) for step in (30, 40, 50)]
    rows = [epoch(20, 0.42), epoch(25, 0.42, precision=0.85), *fallen]  # compared with the best, not with the last
    incident = judged(new_guard(), rows)[-1]
    assert incident is not None and (incident.signs, incident.back_to) == (("precision",), 25)
    assert incident.reasons == (
        "precision of the pseudo-labels fell from 90.0% to 79.0% while retention rose from 50.0% to 70.0%",
    )


@pytest.mark.parametrize(
    "later",
    [
        {"miou": 0.42, "precision": 0.7, "retention": 0.7},  # more labels, less precise, and a better network
        {"miou": 0.37, "precision": 0.7, "retention": 0.7},  # 0.05 below the best may be luck
        {"miou": 0.36, "precision": 0.7, "retention": 0.4},  # the threshold is doing its work
        {"miou": 0.36, "precision": 0.85, "retention": 0.7},
    ],
)
def test_falling_precision_alone_is_none(later: dict[str, float]) -> None:
    rows = [epoch(20, 0.42), *(epoch(step, **later) for step in (30, 40, 50))]  # type: ignore[arg-type]
    assert judged(new_guard(), rows) == [None] * 4


def test_a_teacher_that_names_ever_fewer_classes_is_seen_without_any_label() -> None:
    guard = CollapseGuard(GuardConfig(), NAMES, labeled=(1, 1, 1), images=0)
    guard.start(0, None, math.inf)
    assert judged(guard, [epoch(10, None)]) == [None]  # as many as 3 equally frequent ones
    assert judged(guard, [epoch(15, None)], (1.0, 1.0, 0.0)) == [None]  # as 2: more than half
    # (30, 1, 1): entropy 0.2773 nats, 1.32 classes, less than 1.5
    *quiet, incident = judged(guard, [epoch(step, None) for step in (20, 30, 40)], (30.0, 1.0, 1.0))
    assert quiet == [None, None]
    reason = "the teacher names as many classes as 1.3 equally frequent ones, and 3.0 before"
    assert incident == Incident(("classes",), (reason,), 0.25, back_to=15)
    # (5, 1, 1): 2.22 classes
    assert judged(guard, [epoch(step, None) for step in (50, 60, 70)], (5.0, 1.0, 1.0)) == [None] * 3


@pytest.mark.parametrize(
    ("labeled", "later", "told"),
    [
        # Before it learns, a network names all alike: 3 classes. (30, 1, 1): 1.32, less than half of that; but the masks show 1.48.
        ((90, 5, 5), (30.0, 1.0, 1.0), False),
        ((4, 1, 1), (30.0, 1.0, 1.0), False),  # 2.38
        ((4, 1, 1), (100.0, 1.0, 1.0), True),  # 1.12, less than half of 2.38
    ],
)
def test_a_teacher_that_names_as_many_classes_as_the_masks_show_has_learned_and_not_collapsed(
    labeled: tuple[int, ...], later: tuple[float, ...], told: bool
) -> None:
    guard = CollapseGuard(GuardConfig(), NAMES, labeled=labeled, images=0)
    guard.start(0, None, math.inf)
    assert judged(guard, [epoch(10, None)]) == [None]
    assert (judged(guard, [epoch(step, None) for step in (20, 30, 40)], later)[-1] is not None) == told


def test_a_class_that_has_lost_its_labels_lowers_the_weight_and_leaves_the_network() -> None:
    guard = new_guard(starved_epochs=2)
    lost = {"pseudo_label_share": [0.7, 0.0, 0.3]}
    rows = [epoch(20), epoch(30, **lost), epoch(40, **lost), epoch(50, **lost), epoch(60, **lost)]
    found = judged(guard, rows)
    assert found[:2] == [None, None] and found[3:] == [None, None]  # once
    assert found[2] == Incident(("starved",), ("no pseudo-label was kept for 2 epochs of road",), 0.25, None)


@pytest.mark.parametrize(
    "first",
    [
        [0.6, 0.0, 0.4],  # it never had labels: the report says so, but nothing has changed for the worse
        [0.6, 0.005, 0.395],  # a few pixels by chance
    ],
)
def test_a_class_that_never_had_its_share_is_not_lost(first: list[float]) -> None:
    rows = [epoch(20, pseudo_label_share=first), *(epoch(step, pseudo_label_share=[0.6, 0.0, 0.4]) for step in (30, 40))]
    assert judged(new_guard(starved_epochs=2), rows) == [None] * 3


def test_neither_a_class_without_labelled_pixels_nor_a_threshold_that_keeps_nothing_starves() -> None:
    for share in ([0.6, 0.4, 0.0], [0.0, 0.0, 0.0]):
        rows = [epoch(20), *(epoch(step, pseudo_label_share=share) for step in (30, 40, 50))]
        assert judged(new_guard(starved_epochs=2), rows) == [None] * 4


def test_what_a_guard_knows_goes_on_in_another() -> None:
    rows = [epoch(20, 0.5), epoch(30, 0.2), epoch(40, 0.2), epoch(50, 0.2), epoch(60, 0.2), epoch(70, 0.2), epoch(80, 0.2)]
    whole = judged(new_guard(), rows)
    assert sum(each is not None for each in whole) == 2
    for cut in range(len(rows)):
        first = new_guard()
        found = judged(first, rows[:cut])
        second = CollapseGuard(GuardConfig(), NAMES, labeled=(1, 1, 0), images=5)
        second.load(first.state())
        assert [*found, *judged(second, rows[cut:])] == whole


def test_a_state_does_not_change_with_its_guard() -> None:
    guard = new_guard()
    before = guard.state()
    judged(guard, [epoch(20, pseudo_label_share=[0.1, 0.0, 0.9])])
    assert before == new_guard().state() != guard.state()


FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@settings(deadline=None)  # the first call of torch takes its time
@given(FRACTIONS, FRACTIONS)
def test_a_run_that_never_gets_worse_is_left_alone(scores: list[float], retentions: list[float]) -> None:
    rows = [
        epoch(10 * index, miou, precision=miou, retention=retention)
        for index, (miou, retention) in enumerate(zip(sorted(scores), retentions, strict=False), start=2)
    ]
    guard = CollapseGuard(GuardConfig(), NAMES, labeled=(1, 1, 1), images=0)
    guard.start(10, min(scores), 0.0)
    assert not any(judged(guard, rows))
    assert guard.unsup_scale == 1


@settings(deadline=None)
@given(FRACTIONS, st.floats(0, 0.3))
def test_whatever_happens_it_goes_back_to_an_epoch_of_this_run_that_was_good(scores: list[float], error: float) -> None:
    guard, acted, healthy = new_guard(patience=2), 0, {10: 0.40}
    for step, miou in zip(range(20, 1000, 10), scores, strict=False):
        incident = guard.judge(epoch(step, miou, selection_error=error), EVEN)
        acted += incident is not None
        healthy[step] = miou
        if incident is not None:
            assert incident.back_to is not None and incident.back_to < step
            assert healthy[incident.back_to] > miou
    assert guard.unsup_scale == 0.25**acted


def test_every_sign_has_a_series_in_the_metrics() -> None:
    runs = [
        ([epoch(20, 0.1)], EVEN),
        ([epoch(20, 0.42), epoch(30, 0.36, precision=0.5)], EVEN),
        ([epoch(20, pseudo_label_share=[1.0, 0.0, 0.0])], (1.0, 0.0, 0.0)),
    ]
    reached = set()
    for rows, seen in runs:
        guard = CollapseGuard(GuardConfig(patience=1, starved_epochs=1), NAMES, labeled=(1, 1, 1), images=5)
        guard.start(10, 0.40, 0.02)
        judged(guard, [epoch(15)])
        reached |= {sign for incident in judged(guard, rows, seen) if incident is not None for sign in incident.signs}
    assert reached == set(SIGNS)
