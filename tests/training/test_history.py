from __future__ import annotations

from pathlib import Path

from cwbass.training.history import History


def test_steps_that_an_earlier_run_skipped_are_not_left_beside_one_that_skipped_none(tmp_path: Path) -> None:
    History(skipped=[{"stage": "train", "step": 7}]).write(tmp_path)
    assert (tmp_path / "skipped.jsonl").read_text() == '{"stage": "train", "step": 7}\n'
    History().write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "timings.jsonl"]
