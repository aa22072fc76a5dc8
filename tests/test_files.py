"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cwbass.errors import ParamsError, ServiceError
from cwbass.files import partial_file, place_link, spare_params, unlink_with_digest, write_digest, write_whole

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", of FIPS 180-2


def test_a_written_file_and_its_digest_are_all_that_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.pt"
    digest = write_whole(path, b"abc")
    write_digest(path, digest)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == {
        "file.pt": b"abc",
        "file.pt.sha256": f"{ABC}  file.pt\n".encode(),
    }
    unlink_with_digest(path)
    unlink_with_digest(path)
    assert not list(path.parent.iterdir())


def test_what_fails_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), partial_file(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"file": b"old"}


def test_a_disk_that_cannot_flush_a_folder_takes_files_and_one_that_fails_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, number = os.fsync, errno.EINVAL

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    assert write_whole(tmp_path / "file", b"abc") == ABC
    number = errno.EIO
    with pytest.raises(ServiceError, match=r"file cannot be written: Input/output error"):
        write_whole(tmp_path / "file", b"abc")


def test_a_place_that_cannot_be_written_to_is_not_mended_by_making_room(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ParamsError, match=r"new\.pt cannot be written: Not a directory\..* Name a place that can") as raised:
        write_whole(tmp_path / "file" / "folder" / "new.pt", b"abc")
    assert "room" not in str(raised.value)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full", "other")])
def test_an_error_that_names_no_file_names_the_one_that_was_written(tmp_path: Path, error: OSError) -> None:
    named = error.filename or str(tmp_path / "file")
    with pytest.raises(OSError, match="full") as raised, partial_file(tmp_path / "file"):
        raise error
    assert raised.value.filename == named
    assert not list(tmp_path.iterdir())


def test_the_longest_name_that_a_file_may_have_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / f"{'ü' * 125}x.png", b"abc")  # 255 bytes
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"abc"]
    with pytest.raises(ParamsError, match="File name too long"):
        write_whole(tmp_path / f"{'ü' * 126}.png", b"abc")


def test_a_link_takes_a_place_only_where_it_may(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    place_link(source, target)
    assert target.read_bytes() == b"old"
    for _ in range(2):  # the second is a name of the same file already
        place_link(source, target, replace=True)
        assert target.samefile(source)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source", "target"]


def test_parameters_are_spared_unless_the_step_itself_has_written_them(tmp_path: Path) -> None:
    spare_params(tmp_path, "metrics.json", "spec.json")  # there is nothing to write over
    (tmp_path / "params.yaml").write_text("seed: 1")
    with pytest.raises(ParamsError, match=r"params\.yaml is there, and would be written over"):
        spare_params(tmp_path, "metrics.json", "spec.json")
    (tmp_path / "spec.json").write_text("{}")  # a cache brings back some of a step's files
    spare_params(tmp_path, "metrics.json", "spec.json")
