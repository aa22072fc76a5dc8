from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cwbass.errors import DataError, ParamsError, ServiceError
from cwbass.storage import FolderStore, ObjectStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_bytes_and_files_come_back_as_they_went_in(any_store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(bytes(range(256)) * 1000)

    assert any_store.put("a/b/bytes", b"\x00\xff\n")
    assert any_store.put("a/file", source)

    assert any_store.get("a/b/bytes") == b"\x00\xff\n"
    assert any_store.get("a/file") == bytes(range(256)) * 1000
    assert any_store.list("") == ["a/b/bytes", "a/file"]


def test_a_put_replaces_unless_the_key_must_be_absent(any_store: ObjectStore) -> None:
    assert any_store.put("key", b"first", if_absent=True)
    assert not any_store.put("key", b"second", if_absent=True)
    assert any_store.get("key") == b"first"
    assert any_store.put("key", b"third")
    assert any_store.get("key") == b"third"
    assert any_store.list("") == ["key"]


def test_exists_knows_objects_but_not_folders(any_store: ObjectStore) -> None:
    assert not any_store.exists("a/b")
    any_store.put("a/b", b"")
    assert any_store.exists("a/b")
    assert not any_store.exists("a")


def test_prefixes_are_of_text_not_of_folders(any_store: ObjectStore) -> None:
    for key in ("m/ab/x", "m/a/y", "m/a.txt", "n/a"):
        any_store.put(key, b"")

    assert any_store.list("m/a") == ["m/a.txt", "m/a/y", "m/ab/x"]
    assert any_store.list("m/a/") == ["m/a/y"]
    assert any_store.list("") == ["m/a.txt", "m/a/y", "m/ab/x", "n/a"]
    assert any_store.list("m/b") == any_store.list("nowhere/at/all") == []


def test_what_a_killed_writer_left_is_not_listed(store: FolderStore) -> None:
    store.put("m/whole", b"")
    (store.root / "m" / ".half.0123456789abcdef.partial").write_bytes(b"ha")
    assert store.list("m/") == ["m/whole"]


def test_hidden_files_of_a_put_are_not_left(store: FolderStore) -> None:
    store.put("a/b", b"x")
    store.put("a/b", b"y", if_absent=True)
    assert files_below(store.root) == ["a/b"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/", ".hidden", "a\\b", "a b", "a\nb", "a/\x00"]
)
def test_keys_that_could_leave_the_folder_are_refused(any_store: ObjectStore, tmp_path: Path, key: str) -> None:
    for call in (
        lambda: any_store.put(key, b"x"),
        lambda: any_store.get(key),
        lambda: any_store.exists(key),
        lambda: any_store.uri(key),
    ):
        with pytest.raises(DataError, match="is no key"):
            call()
    assert files_below(tmp_path) == any_store.list("") == []


def test_a_missing_object_is_named(any_store: ObjectStore) -> None:
    with pytest.raises(DataError, match=r"(store|s3://.*/registry)/models/a.*: no such object"):
        any_store.get("models/a")


def test_a_put_that_fails_changes_nothing(store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("key", b"old")
    with pytest.raises(DataError, match=r"gone\.bin: no such file"):
        store.put("key", tmp_path / "gone.bin")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ServiceError, match="No space left on device"):
        store.put("key", b"new")

    assert store.get("key") == b"old"
    assert files_below(store.root) == ["key"]


def test_a_store_that_is_a_file_is_a_service_failure(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(ServiceError, match=r"Check registry\.store") as caught:
        FolderStore(tmp_path / "store").put("a/b", b"")
    assert caught.value.exit_code == 6


def test_of_many_writers_at_once_one_gets_each_key(any_store: ObjectStore) -> None:
    writers, keys = 5, [f"k/{index}" for index in range(4)]  # SeaweedFS settles such a race in seconds
    start = threading.Barrier(writers)
    won: list[list[str]] = [[] for _ in range(writers)]

    def write(writer: int) -> None:
        for key in keys:
            start.wait()
            if any_store.put(key, f"{writer}".encode() * 10_000, if_absent=True):
                won[writer].append(key)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(key for mine in won for key in mine) == sorted(keys)
    for writer, mine in enumerate(won):
        assert all(any_store.get(key) == f"{writer}".encode() * 10_000 for key in mine)


def test_a_location_without_a_scheme_is_a_folder(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).uri("a/b") == (tmp_path / "a/b").as_posix()
    with pytest.raises(ParamsError, match=r"registry\.store is 'gs://bucket/prefix'; give a folder or s3://bucket/prefix"):
        open_store("gs://bucket/prefix")
