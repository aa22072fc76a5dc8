from __future__ import annotations

import math
from typing import Any

import pytest

from cwbass.config import RegistryConfig
from cwbass.registry.gate import Champion, check_gate, gate_page, reasons


@pytest.mark.parametrize(
    ("metrics", "min_miou", "min_gain"),
    [
        ({"miou": 0.5}, 0.5, -1.0),  # the limit itself passes
        ({"miou": 0.0, "baseline_miou": None, "miou_gain": None}, 0.0, -1.0),  # no baseline, no gain asked
        ({"miou": 0.06, "baseline_miou": 0.05, "miou_gain": 0.06 - 0.05}, 0.0, 0.01),  # 0.0099999... in binary
        ({"miou": 0.4, "baseline_miou": 0.9, "miou_gain": -0.5}, 0.0, -1.0),
        ({"miou": 1, "baseline_miou": 0, "miou_gain": 1}, 1.0, 1.0),
    ],
)
def test_good_enough_gives_no_reason(metrics: dict[str, Any], min_miou: float, min_gain: float) -> None:
    assert reasons(check_gate(metrics, RegistryConfig(min_miou=min_miou, min_gain=min_gain))) == ()


@pytest.mark.parametrize(
    ("metrics", "min_miou", "min_gain", "expected"),
    [
        ({"miou": 0.4999}, 0.5, -1.0, ["miou is 0.4999, below registry.min_miou 0.5000"]),
        ({}, 0.0, -1.0, ["miou was not measured, registry.min_miou asks for 0 or more"]),
        ({"miou": math.nan}, 0.0, -1.0, ["miou is nan, which is no number"]),
        ({"miou": math.inf}, 0.0, -1.0, ["miou is inf, which is no number"]),
        ({"miou": "0.9"}, 0.0, -1.0, ["miou is '0.9', which is no number"]),
        ({"miou": True}, 0.0, -1.0, ["miou is True, which is no number"]),
        ({"miou": 78.2}, 0.5, -1.0, ["miou is 78.2, but a fraction lies in [0, 1]"]),
        ({"miou": 0.9}, 0.0, 0.0, ["miou_gain was not measured, registry.min_gain asks for 0 or more"]),
        ({"miou": 0.9, "baseline_miou": 0.8}, 0.0, -1.0, ["miou_gain was not measured, registry.min_gain asks for -1 or more"]),
        ({"miou": 0.9, "baseline_miou": math.nan, "miou_gain": math.nan}, 0.0, -1.0, ["miou_gain is nan, which is no number"]),
        (
            {"miou": 0.3, "baseline_miou": 0.31, "miou_gain": -0.01},
            0.5,
            0.02,
            ["miou is 0.3000, below registry.min_miou 0.5000", "miou_gain is -0.0100, below registry.min_gain 0.0200"],
        ),
    ],
)
def test_every_lack_is_a_reason(metrics: dict[str, Any], min_miou: float, min_gain: float, expected: list[str]) -> None:
    assert reasons(check_gate(metrics, RegistryConfig(min_miou=min_miou, min_gain=min_gain))) == tuple(expected)


def test_a_gain_over_another_model_than_the_supervised_baseline_is_none_that_is_asked_for() -> None:
    metrics = {"miou": 0.5, "baseline_miou": 0.6, "miou_gain": -0.1, "baseline_method": "cw_bass"}
    assert reasons(check_gate(metrics, RegistryConfig())) == ()
    (reason,) = reasons(check_gate(metrics, RegistryConfig(min_gain=-0.5)))
    assert reason == (
        "miou_gain is over cw_bass, registry.min_gain asks for the gain over the supervised baseline: score with that one"
    )
    (reason,) = reasons(check_gate({**metrics, "baseline_method": "supervised"}, RegistryConfig(min_gain=0.0)))
    assert reason == "miou_gain is -0.1000, below registry.min_gain 0.0000"
    own = {**metrics, "baseline_method": "mine", "baseline_supervised": True}  # a supervised method of somebody's own
    assert reasons(check_gate(own, RegistryConfig(min_gain=-0.5))) == ()


SPLIT = {"split_hash": "ab" * 32, "protocol": "whole scale:1"}
CHAMPION = Champion(
    "1.3.0", {**SPLIT, "miou": 0.5, "per_class": {"sky": {"iou": 0.9}, "car": {"iou": 0.4}, "boat": {"iou": None}}}
)
BETTER: dict[str, Any] = {**SPLIT, "miou": 0.52, "per_class": {"sky": {"iou": 0.95}, "car": {"iou": 0.35}, "boat": {"iou": 0.1}}}


def against(metrics: dict[str, Any], champion: Champion | None = CHAMPION, **limits: Any) -> tuple[str, ...]:
    return reasons(check_gate(metrics, RegistryConfig(**limits), champion=champion, size_bytes=12_000_000))


def test_limits_themselves_pass() -> None:
    # car loses 0.05, the worst of all; boat was not seen by the champion
    limits = {"min_champion_gain": 0.02, "max_class_drop": 0.05, "max_ece": 0.1, "max_size_mb": 12.0}
    assert against(BETTER | {"ece": 0.1}, **limits) == ()
    # In binary, 0.06 - 0.05 is below 0.01, and 0.1 + 0.2 above 0.3.
    assert against(BETTER | {"miou": 0.06}, Champion("1.0.0", SPLIT | {"miou": 0.05}), min_champion_gain=0.01) == ()
    assert against(BETTER | {"ece": 0.1 + 0.2}, max_ece=0.3) == ()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (
            {"min_champion_gain": 0.021},
            "gain over champion 1.3.0 is 0.0200 (0.5000 to 0.5200), below registry.min_champion_gain 0.0210",
        ),
        ({"max_class_drop": 0.049}, "car loses 0.0500 IoU (0.4000 to 0.3500), above registry.max_class_drop 0.0490"),
        ({"max_ece": 0.1}, "ece was not measured, registry.max_ece asks for 0.1 or less"),
        ({"max_size_mb": 11.9}, "size of the weights in MB is 12.0000, above registry.max_size_mb 11.9"),
    ],
)
def test_every_limit_refuses_by_its_name(limits: dict[str, Any], expected: str) -> None:
    assert against(BETTER, **limits) == (expected,)


def test_an_ece_too_high_refuses() -> None:
    assert against(BETTER | {"ece": 0.1001}, max_ece=0.1) == ("ece is 0.1001, above registry.max_ece 0.1",)
    for wrong in (3, -0.1):
        assert against(BETTER | {"ece": wrong}, max_ece=0.1) == (f"ece is {wrong}, but a fraction lies in [0, 1]",)


def test_a_class_that_was_not_measured_refuses() -> None:
    for per_class in ({"sky": {"iou": 0.95}}, {"sky": {"iou": 0.95}, "car": {"iou": None}}, {"sky": {"iou": 0.95}, "car": 3}):
        assert against(BETTER | {"per_class": per_class}, max_class_drop=0.5) == ("IoU of car was not measured",)
    assert against(BETTER | {"per_class": {"sky": {"iou": math.nan}}}, max_class_drop=0.5) == (
        "IoU of sky is nan, which is no number",
    )
    assert against(BETTER | {"per_class": {"sky": {"iou": 78.0}}}, max_class_drop=0.5) == (
        "IoU of sky is 78, but a fraction lies in [0, 1]",
    )
    assert against({**SPLIT, "miou": 0.52}, max_class_drop=0.5) == ("IoU of sky was not measured",)


def test_a_champion_without_scores_refuses() -> None:
    empty = Champion("1.3.0", SPLIT)
    assert against(BETTER, empty, min_champion_gain=0.0) == ("miou of champion 1.3.0 was not measured",)
    assert against(BETTER, empty, max_class_drop=0.1) == ("the champion 1.3.0 has no per_class scores to compare with",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split_hash": "cd" * 32}, "split_hash is cdcdcdcdcdcdcdcdcdcdcdcd, that of champion 1.3.0 is abababababababababababab"),
        ({"protocol": "whole scale:1 flip"}, "protocol is whole scale:1 flip, that of champion 1.3.0 is whole scale:1"),
        ({"protocol": None}, "protocol is None, that of champion 1.3.0 is whole scale:1"),
    ],
)
@pytest.mark.parametrize("limits", [{"min_champion_gain": 0.5}, {"max_class_drop": 0.0}])  # neither would be kept
def test_scores_of_another_split_or_protocol_are_not_compared(
    changes: dict[str, Any], expected: str, limits: dict[str, Any]
) -> None:
    [reason] = against(BETTER | changes, **limits)
    assert reason.startswith(expected + ": their scores cannot be compared")
    assert against(BETTER | changes) == ()  # nothing is asked against a champion


def test_scores_of_no_known_split_are_not_compared() -> None:
    unknown = {name: value for name, value in BETTER.items() if name != "split_hash"}
    [reason] = against(unknown, Champion("1.3.0", unknown), min_champion_gain=-1.0)
    assert reason.startswith("split_hash is None, that of champion 1.3.0 is None: their scores cannot be compared")


def test_the_first_model_has_no_champion_to_beat() -> None:
    assert against(BETTER, None, min_champion_gain=0.5, max_class_drop=0.0) == ()


def test_the_page_says_what_was_asked_what_was_seen_and_why() -> None:
    checks = check_gate(BETTER, RegistryConfig(min_miou=0.6, max_class_drop=0.1), champion=CHAMPION, size_bytes=1)
    page = gate_page("shapes", checks, outcome="It is not registered.", champion=CHAMPION)
    lines = page.splitlines()
    assert lines[0] == "# shapes: refused"
    assert "| miou | registry.min\\_miou 0.6000 | 0.5200 | refuses |" in lines
    assert (
        "| largest drop of a class against champion 1.3.0 | registry.max\\_class\\_drop 0.1000 | car: 0.0500 | passes |" in lines
    )
    assert lines[lines.index("## Why") + 2] == "- miou is 0.5200, below registry.min\\_miou 0.6000"
    assert "Champion: version 1.3.0." in page
