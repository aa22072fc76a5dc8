"""What errors say, and which kind an exit code stands for."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from full_disk import files_of_at_most

from cwbass.errors import (
    CwbassError,
    DataError,
    Interrupted,
    ParamsError,
    ServiceError,
    counted,
    disk_failures,
    error_of,
    one_line,
)


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
    ("number", "words", "text"),
    [
        (0, ("error",), "0 errors"),
        (1, ("error",), "1 error"),
        (2, ("error",), "2 errors"),
        (1, ("class is", "classes are"), "1 class is"),
        (2, ("class is", "classes are"), "2 classes are"),
    ],
)
def test_one_thing_is_counted_in_the_singular(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


@pytest.mark.parametrize(
    ("code", "kind"), [(3, ParamsError), (4, DataError), (75, Interrupted), (1, CwbassError), (-9, CwbassError)]
)
def test_an_exit_code_stands_for_the_kind_of_error_that_has_it(code: int, kind: type[CwbassError]) -> None:
    assert error_of(code) is kind


def test_a_full_disk_is_an_error_that_a_retry_may_mend() -> None:
    said = "a file: No space left on device. Make room, and run the command again."
    with pytest.raises(ServiceError, match=f"^{re.escape(said)}$"), disk_failures():
        Path("/dev/full").write_text("x")


def test_a_file_that_may_grow_no_further_is_a_full_disk(tmp_path: Path) -> None:
    with files_of_at_most(1), pytest.raises(ServiceError, match=r": File too large\. Make room"), disk_failures():
        (tmp_path / "file").write_text("two")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_network_disk_that_fails_is_an_error_that_a_retry_may_mend(number: int) -> None:
    said = f"^x: {os.strerror(number)}. See to the disk"
    with pytest.raises(ServiceError, match=said), disk_failures():
        raise OSError(number, os.strerror(number), "x")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ParamsError, match=f"^{re.escape(str(tmp_path / 'file'))}.*: Not a directory. Name a place"),
        disk_failures(),
    ):
        (tmp_path / "file" / "out").mkdir()


def test_a_folder_that_may_not_be_read_is_not_one_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(ParamsError, match=r": Permission denied\. Give the right to read it\.$"), disk_failures():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))


def test_a_copied_tree_tells_of_its_first_file_that_found_no_room(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/last.pt").write_text("x")
    (tmp_path / "to").mkdir()
    (tmp_path / "to/last.pt").symlink_to("/dev/full")
    said = re.escape(f"{tmp_path / 'to/last.pt'}: No space left on device. Make room")
    with pytest.raises(ServiceError, match=f"^{said}"), disk_failures():
        shutil.copytree(tmp_path / "from", tmp_path / "to", dirs_exist_ok=True, copy_function=shutil.copyfile)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), BrokenPipeError(errno.EPIPE, "x"), shutil.Error("same")]
)
def test_what_a_disk_cannot_be_blamed_for_goes_on_as_it_is(error: OSError) -> None:
    with pytest.raises(type(error)), disk_failures():
        raise error
