from __future__ import annotations

import math
from typing import Any

import pytest

from cwbass.config import RegistryConfig
from cwbass.gate import check_gate


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
    assert check_gate(metrics, RegistryConfig(min_miou=min_miou, min_gain=min_gain)) == ()


@pytest.mark.parametrize(
    ("metrics", "min_miou", "min_gain", "reasons"),
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
def test_every_lack_is_a_reason(metrics: dict[str, Any], min_miou: float, min_gain: float, reasons: list[str]) -> None:
    assert check_gate(metrics, RegistryConfig(min_miou=min_miou, min_gain=min_gain)) == tuple(reasons)
