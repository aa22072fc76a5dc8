from __future__ import annotations

from typing import Any

import pytest

from cwbass.comparison.budget import Budget, Cost, Length, MethodCost, longest, spent, warmup_steps
from cwbass.errors import DataError, ParamsError
from cwbass.methods.base import Retraining

WARMUP = Cost(seconds=0.5, passes=4, passes_no_grad=0)
METHOD = MethodCost(Cost(seconds=1.5, passes=8, passes_no_grad=4))
TWO_STAGES = MethodCost(WARMUP, retraining=Cost(1.0, 8, 0), labelling=Cost(60.0, 0, 400))


def second_stage(steps: int | None = None) -> Retraining:
    return Retraining("key", "instead", steps, reliable=0.5, flip=False)


def run(text: str, cost: MethodCost | None, *, share: float = 0.0, **settings: Any) -> Length:
    budget = Budget.parse(text)
    settings = {"retraining": None, "warmup": WARMUP, **settings}
    return longest(budget, "it", cost=cost, share=share, **settings)


@pytest.mark.parametrize(
    ("text", "share", "expected"),
    [
        ("steps=1500", 1 / 3, Length(1500, 500)),  # what a run takes anyway
        ("minutes=1", 0.0, Length(40, 0)),  # 60 s / 1.5 s
        ("minutes=1", 0.5, Length(60, 30)),  # 30 x 0.5 s + 30 x 1.5 s
        ("minutes=0.99", 0.5, Length(59, 30)),  # 30 x 0.5 + 29 x 1.5 = 58.5 s of 59.4 s
        ("passes=1200", 0.0, Length(100, 0)),  # 8 with a gradient and 4 without
        ("passes=1200", 0.5, Length(150, 75)),  # 75 x 4 + 75 x 12
        ("passes=1199", 0.5, Length(149, 74)),  # 74 x 4 + 75 x 12 = 1196
    ],
)
def test_steps_that_a_budget_pays_for_with_the_warm_up_counted(text: str, share: float, expected: Length) -> None:
    assert run(text, METHOD, share=share) == expected


@pytest.mark.parametrize(
    ("text", "retrain_steps", "expected"),
    [
        ("steps=1500", None, 500),  # three trainings of 500
        ("steps=1500", 600, 300),  # 300 + 2 x 600
        ("minutes=11", None, 240),  # 660 s: 60 of labels, 240 x (0.5 + 2 x 1)
        ("minutes=11", 250, 200),  # 60 of labels, 500 of retraining, 200 x 0.5
        ("passes=2400", None, 100),  # 400 of labels, 100 x (4 + 2 x 8)
    ],
)
def test_a_second_stage_is_paid_from_the_same_budget(text: str, retrain_steps: int | None, expected: int) -> None:
    assert run(text, TWO_STAGES, retraining=second_stage(retrain_steps)).steps == expected


def test_a_budget_that_is_used_up_to_the_last_is_not_lost_to_rounding() -> None:
    assert 3 * (6.0 / 60) > 0.3
    assert run("minutes=0.3", MethodCost(Cost(6.0, 1, 0))) == Length(3, 0)


@pytest.mark.parametrize(
    ("steps", "share", "expected"), [(1, 0.9, 0), (2, 0.9, 1), (10, 0.25, 2), (10, 0.35, 4), (300, 1 / 3, 100)]
)
def test_a_warm_up_keeps_its_share_and_leaves_the_method_a_step(steps: int, share: float, expected: int) -> None:
    assert warmup_steps(steps, share) == expected


@pytest.mark.parametrize("kind", ["steps", "minutes", "passes"])
@pytest.mark.parametrize("amount", [7, 23, 100])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_step_more_would_not_fit(kind: str, amount: float, share: float) -> None:
    scale = {"steps": 1, "minutes": 0.1, "passes": 30}[kind]
    budget = Budget(kind, amount * scale)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"cost": METHOD, "warmup": WARMUP, "share": share, "retraining": None}
    found = longest(budget, "it", **settings)
    assert spent(found.steps, budget, **settings) <= budget.amount + 1e-9
    assert spent(found.steps + 1, budget, **settings) > budget.amount
    assert found.warmup < found.steps


def test_a_budget_that_pays_for_nothing_says_what_two_steps_would_take() -> None:
    with pytest.raises(ParamsError, match=r"passes=20 is too small for it: two steps of it take 24 passes"):
        run("passes=20", METHOD)
    with pytest.raises(ParamsError, match="too small"):
        run("minutes=1", TWO_STAGES, retraining=second_stage())  # the labels alone take it


def test_a_budget_too_small_says_large_numbers_in_full() -> None:
    with pytest.raises(ParamsError, match="two steps of it take 2,469,134 passes"):
        run("passes=1234567", MethodCost(Cost(1.0, 1234567, 0)))


@pytest.mark.parametrize(("budget", "left"), [("steps=6", 1), ("steps=14", 2)])
def test_a_second_stage_needs_three_steps_after_the_warm_up(budget: str, left: int) -> None:
    with pytest.raises(ParamsError, match=f"between warm-up and second stage it pays for {left}, and 3 are needed"):
        run(budget, None, share=0.5, retraining=second_stage())
    assert run("steps=15", None, share=0.5, retraining=second_stage()) == Length(5, 2)


@pytest.mark.parametrize("cost", [None, MethodCost(Cost(None, 8, 4))])
def test_steps_that_were_not_timed_have_no_price_in_minutes(cost: MethodCost | None) -> None:
    with pytest.raises(DataError, match=r"minutes=1 asks what a step takes, and that was not measured\. Run `cwbass compare`"):
        run("minutes=1", cost)


@pytest.mark.parametrize("text", ["1500", "hours=1", "steps=0", "steps=1.5", "minutes=nan", "passes=inf", "steps="])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="write steps=1500, minutes=20 or passes=48000"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["steps=1500", "minutes=0.1", "minutes=12.3456789", "passes=48000000", "passes=1234567.5"])
def test_a_budget_reads_back_what_it_says(text: str) -> None:
    assert str(Budget.parse(text)) == text


def test_costs_read_back_and_broken_ones_name_their_file() -> None:
    assert MethodCost.from_dict(TWO_STAGES.to_dict(), "a.json") == TWO_STAGES
    with pytest.raises(DataError, match=r"a\.json holds no costs"):
        MethodCost.from_dict({"step": {"seconds": 1}}, "a.json")
