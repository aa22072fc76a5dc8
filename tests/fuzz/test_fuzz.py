"""A few broken files for every parser, the same at each run; `benchmarks/fuzz.py --inputs 5000` tries many."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import PARSERS, try_parser, unclear_message

INPUTS = 25


@pytest.mark.parametrize("name", PARSERS)
def test_every_answer_is_valid_or_clear(name: str, tmp_path: Path) -> None:
    counts = try_parser(name, tmp_path / "files", inputs=INPUTS, seed=1)
    assert counts.unclear == []
    assert counts.valid + counts.clear == INPUTS
    assert counts.clear > 0  # the files are broken indeed


def test_a_message_without_a_name_or_a_mend_is_unclear() -> None:
    assert "neither file nor key" in unclear_message("it is broken. Replace it.", ("a.png",))
    assert "no mend" in unclear_message("a.png is broken.", ("a.png",))
    assert unclear_message("a.png is broken. Replace it.", ("a.png",)) == ""
