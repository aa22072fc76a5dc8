from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import call

from cwbass.errors import DataError, ParamsError, ServiceError
from cwbass.registry import register_version
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


def test_an_open_file_goes_in_and_comes_out_as_a_file(any_store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(9 << 20)  # which boto3 sends and fetches in parts
    (tmp_path / "gone").write_bytes(content)
    for options in ({}, {"if_absent": True}):
        key = f"a/{len(options)}"
        with (tmp_path / "gone").open("rb") as file:
            assert any_store.put(key, file, **options)
        (tmp_path / "copy").write_bytes(b"what was there")
        any_store.fetch(key, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


def test_what_is_deleted_is_gone_and_may_be_gone_already(any_store: ObjectStore, tmp_path: Path) -> None:
    for key in ("a/b", "a/bc"):
        any_store.put(key, b"")
    for _ in range(2):
        any_store.delete("a/b")
    assert any_store.list("") == ["a/bc"]
    with pytest.raises((DataError, ParamsError), match=r"a/b.*: no such object"):
        any_store.fetch("a/b", tmp_path / "copy")


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
    (store.root / "m" / "no key.txt").write_bytes(b"of somebody else")
    assert store.list("m/") == ["m/whole"]


def test_hidden_files_of_a_put_are_not_left(store: FolderStore) -> None:
    store.put("a/b", b"x")
    store.put("a/b", b"y", if_absent=True)
    assert files_below(store.root) == ["a/b"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/", ".hidden", "a\\b", "a b", "a\nb", "a/\x00"]
)
def test_keys_that_could_leave_the_folder_are_refused(any_store: ObjectStore, tmp_path: Path, key: str) -> None:
    for attempt in (
        lambda: any_store.put(key, b"x"),
        lambda: any_store.get(key),
        lambda: any_store.exists(key),
        lambda: any_store.fetch(key, tmp_path / "copy"),
        lambda: any_store.delete(key),
        lambda: any_store.uri(key),
    ):
        with pytest.raises(DataError, match="is no key"):
            attempt()
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


def test_a_store_that_no_retry_lets_write_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(ParamsError, match=r"Check registry\.store") as caught:
        FolderStore(tmp_path / "store").put("a/b", b"")
    assert caught.value.exit_code == 3


def test_a_disk_without_hard_links_is_named_as_such_and_keeps_what_is_there(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ParamsError, match=r"store/a is on a file system without hard links .*Set registry\.store"):
        store.put("a/b", b"", if_absent=True)
    assert files_below(store.root) == []
    assert store.put("a/b", b"x") and store.get("a/b") == b"x"  # a mirror needs no links


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
    with pytest.raises(ParamsError, match=r"registry\.store is 'gs://bucket/prefix'; give a folder, .* begins with s3://\."):
        open_store("gs://bucket/prefix")
    with pytest.raises(ParamsError, match=r"CWBASS_OWN is 's3://'; write s3://bucket or s3://bucket/prefix"):
        open_store("s3://", "CWBASS_OWN")


def test_a_folder_needs_no_boto3() -> None:
    code = "import sys; from cwbass.storage import open_store; open_store('store'); assert 'boto3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_registry_lies_in_a_store_of_a_plugin_that_has_what_a_registry_needs(plugin_objects: dict[str, bytes]) -> None:
    config = b'{"classes": ["a"], "model": {"mean": [0], "std": [1]}}'
    for turn in (1, 2):
        register_version(open_store("archive://team"), name="shapes", files={"config.json": config, "weights": b"%d" % turn})
    shown = json.loads(call("registry", "list", "--store", "archive://team").stdout)
    assert shown["models"] == [{"name": "shapes", "versions": 2, "latest": "1.1.0", "aliases": {}}]
    assert plugin_objects["archive://team/models/shapes/versions/1.1.0/weights"] == b"2"
