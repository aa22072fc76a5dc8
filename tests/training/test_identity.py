"""What two runs must have in common, and what is said where they differ."""

from __future__ import annotations

from typing import Any

import pytest

from cwbass.methods.cw_bass import CWBASS
from cwbass.optimizers import SCHEDULES
from cwbass.params import Params, load_params
from cwbass.training.identity import code_version, decisive, differences, differing, run_identity


def test_parameters_that_change_no_number_are_no_part_of_a_run() -> None:
    def identity(**train: Any) -> dict[str, Any]:
        return run_identity("train", load_params({"train": {"steps": 5, **train}}, Params), "ab", warmup_sha256="cd")

    plain = identity()
    assert identity(workers=3, cache=None, save_minutes=1.0, checkpoint_uri="s3://bucket/key", device="cpu", processes=2) == plain
    assert {key for key, value in identity(batch_labeled=9).items() if value != plain[key]} == {"train.batch_labeled"}
    assert (plain["step"], plain["split_hash"], plain["warmup_sha256"], plain["code"]) == ("train", "ab", "cd", code_version())
    assert plain["method.cwbass.threshold.rule"] == CWBASS.threshold.rule


def test_a_schedule_that_came_later_is_no_part_of_a_run_until_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "cosine", lambda step, total_steps, config, *, floor: floor)

    def values(**optimizer: Any) -> dict[str, Any]:
        return decisive(load_params({"train": {"steps": 5, "optimizer": optimizer}}, Params).model_dump(mode="json"))

    plain = values()
    assert plain.keys().isdisjoint({"train.optimizer.schedule", "train.optimizer.options"})
    assert values(schedule="poly", options={}) == plain
    now = values(schedule="cosine", options={"floor": 0.5})
    assert differing(plain, now) == ["train.optimizer.options.floor", "train.optimizer.schedule"]


def test_a_line_is_short_and_there_are_no_more_than_21() -> None:
    there, now = {f"key{number:02}": number for number in range(23)}, {"long": "x" * 100}
    lines = differences(there, now)
    assert (lines[0], lines[-1], len(lines)) == ("  key00: 0 there, null now", "  and 4 more", 21)  # of 24, `long` last of all
    assert differences({}, now) == [f'  long: null there, "{"x" * 56}... now']
