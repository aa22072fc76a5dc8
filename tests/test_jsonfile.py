from __future__ import annotations

from pathlib import Path

import pytest

from cwbass.errors import DataError
from cwbass.jsonfile import read_object, read_rows


def test_objects_are_read_whole_and_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": null}\n')
    assert read_rows(path, writer="cwbass eval") == [{"a": 1}, {"a": None}]
    path.write_text('\ufeff{"name": "\u00e9"}', encoding="utf-8")  # as tools on Windows write it
    assert read_object(path, writer="cwbass eval") == {"name": "\u00e9"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path}: no such file. `cwbass eval` writes it."),
        (b"{", "{path} is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)). {mend}"),
        (b"[" * 100_000, "{path} is no JSON (maximum recursion depth exceeded"),
        (b"[1]", "{path} holds a list, not an object. {mend}"),
        (b"\xff", "{path} cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). {mend}"),
    ],
)
@pytest.mark.parametrize("mend", ["", "Delete it."])
def test_what_is_wrong_is_said_with_file_and_mend(tmp_path: Path, content: bytes | None, message: str, mend: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_object(path, writer="cwbass eval", mend=mend)
    assert str(caught.value).startswith(message.format(path=path, mend=mend or "Run `cwbass eval` again."))


def test_a_broken_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n7\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 holds a int, not an object\. Run `cwbass eval` again"):
        read_rows(path, writer="cwbass eval")


def test_what_an_older_version_did_not_write_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": 2, "c": 3}\n{"a": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 has no b and no c\. Run `cwbass eval` again"):
        read_rows(path, writer="cwbass eval", keys=("a", "b", "c"))
