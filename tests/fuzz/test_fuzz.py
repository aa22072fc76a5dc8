"""A few broken files for every parser, the same at each run; `benchmarks/fuzz.py --inputs 5000` tries many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.fuzz import PARSERS, judge, try_parser, unclear_message

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


def test_what_was_unclear_once_is_no_more(tmp_path: Path) -> None:
    lines = (Path(__file__).parent / "corpus.txt").read_text().splitlines()
    corpus = [line.split(maxsplit=2) for line in lines if not line.startswith("#")]
    for name in {name for _, _, name in corpus}:
        (tmp_path / name).mkdir()
        parser = PARSERS[name](tmp_path / name)
        for seed, number, _ in (entry for entry in corpus if entry[2] == name):
            assert judge(parser, random.Random(f"{seed}/{name}/{number}")) in (None, ""), (seed, number, name)
