from __future__ import annotations

from pathlib import Path

import pytest

from cwbass.data.lists import read_lines
from cwbass.errors import DataError


def test_a_list_that_may_not_be_read_need_not_be_saved_anew(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": cannot be read: Is a directory\. Give the right to read it, or another file\.$"):
        read_lines(tmp_path)


def test_a_list_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as UTF-8 text .* Save it as UTF-8\.$"):
        read_lines(path)
