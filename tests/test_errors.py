"""What errors say, and which kind an exit code stands for."""

from __future__ import annotations

import pytest

from cwbass.errors import CwbassError, DataError, Interrupted, ParamsError, error_of, one_line


@pytest.mark.parametrize(
    ("text", "limit", "line"),
    [
        ("a\n  b\t c", 300, "a b c"),
        ("abcdef", 3, "abc"),
        ("", 300, "ValueError"),
        ("at http://user:secret@host", 20, "at http://host"),  # cut first, `http://user:secr` would be left
    ],
)
def test_an_error_of_a_library_becomes_one_line_without_passwords(text: str, limit: int, line: str) -> None:
    assert one_line(ValueError(text), limit) == line


@pytest.mark.parametrize(
    ("code", "kind"), [(3, ParamsError), (4, DataError), (75, Interrupted), (1, CwbassError), (-9, CwbassError)]
)
def test_an_exit_code_stands_for_the_kind_of_error_that_has_it(code: int, kind: type[CwbassError]) -> None:
    assert error_of(code) is kind
