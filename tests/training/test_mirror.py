"""States in a second place: a folder, a real S3 server, a store of a plugin."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Link, S3Server

from cwbass.errors import ParamsError, ServiceError
from cwbass.files import file_sha256
from cwbass.storage import FolderStore, ObjectStore, open_store
from cwbass.training.mirror import Mirror, is_commit, newest_first, open_mirror


@pytest.fixture(params=["folder", "s3", "plugin"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    if request.param == "s3":
        return open_store(f"{request.getfixturevalue('s3_env').location()}/")
    assert request.getfixturevalue("plugin_objects") == {}
    return open_store("shelf://states")


def write_state(folder: Path, name: str, content: bytes, **results: bytes) -> None:
    """A state as the keeper leaves it, with the results it needs."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pt").write_bytes(content)
    files = {}
    for result, data in results.items():
        digest = _digest(folder, data)
        (folder / "files" / digest).write_bytes(data)
        files[f"{result}.pt"] = digest
    sha256 = file_sha256(folder / f"{name}.pt")
    commit = {"schema": 1, "run": {}, "world_size": 1, "torch": "2", "sha256": sha256, "files": files}
    (folder / f"{name}.json").write_text(json.dumps(commit))


def _digest(folder: Path, data: bytes) -> str:
    (folder / "scratch").write_bytes(data)
    digest = file_sha256(folder / "scratch")
    (folder / "scratch").unlink()
    return digest


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def synced(store: ObjectStore, folder: Path) -> Mirror:
    mirror = Mirror(store)
    mirror.sync(folder)
    assert mirror.wait()
    return mirror


def test_a_fresh_machine_gets_the_newest_state_with_its_results(store: ObjectStore, tmp_path: Path) -> None:
    work, fresh = tmp_path / "work", tmp_path / "fresh"
    write_state(work, "0-train-00000001", b"one", best=b"best of one")
    write_state(work, "0-train-00000002", b"two" * 1000, best=b"best of two")
    mirror = synced(store, work)
    assert set(store.list("")) == set(tree(work))
    assert (mirror.counts["uploads"], mirror.counts["failed_uploads"]) == (6, 0)
    assert Mirror(store).fetch(fresh, lambda name, commit: True)
    expected = {name: data for name, data in tree(work).items() if "00000001" not in name and data != b"best of one"}
    assert tree(fresh) == expected


def test_what_is_there_is_not_copied_again_and_what_is_gone_is_deleted(store: ObjectStore, tmp_path: Path) -> None:
    work = tmp_path / "work"
    write_state(work, "0-train-00000001", b"one", best=b"best of one")
    synced(store, work)
    for path in work.rglob("*"):
        if path.is_file():
            path.unlink()
    write_state(work, "0-train-00000002", b"two", best=b"best of one")
    again = synced(store, work)  # another process: it asks the store what is there
    assert set(store.list("")) == set(tree(work))
    assert again.counts["uploads"] == 2
    again.clear()
    assert set(store.list("")) == set()


def test_a_damaged_state_in_the_store_gives_way_to_the_one_before(
    store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = tmp_path / "work"
    for step, content in enumerate((b"one", b"two", b"three", b"four")):
        write_state(work, f"0-train-0000000{step}", content, best=b"best of " + content)
    synced(store, work)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"no state")
    with damaged.open("rb") as file:
        store.put("0-train-00000003.pt", file)  # its bytes
    with damaged.open("rb") as file:
        store.put("0-train-00000002.json", file)  # its JSON
    store.delete(f"files/{_digest(tmp_path, b'best of two')}")  # a result that it needs
    mirror = Mirror(store)
    assert mirror.fetch(tmp_path / "fresh", lambda name, commit: True)
    assert (tmp_path / "fresh" / "0-train-00000000.pt").read_bytes() == b"one"
    assert mirror.counts["fallbacks"] == 3
    assert caplog.text.count("Trying the state before it.") == 3


def test_the_caller_may_pass_a_state_over(store: ObjectStore, tmp_path: Path) -> None:
    work = tmp_path / "work"
    write_state(work, "0-train-00000001-epoch", b"one")
    write_state(work, "0-train-00000002", b"two")
    synced(store, work)
    assert Mirror(store).fetch(tmp_path / "fresh", lambda name, commit: name.endswith("-epoch"))
    assert sorted(tree(tmp_path / "fresh")) == ["0-train-00000001-epoch.json", "0-train-00000001-epoch.pt"]
    assert not Mirror(store).fetch(tmp_path / "none", lambda name, commit: False)


def test_two_runs_below_one_location_do_not_meet(tmp_path: Path) -> None:
    def uri(location: str, step: str, seed: int) -> str:
        return open_mirror(location, step, {"seed": seed}).store.uri("key")

    assert len({uri(str(tmp_path), step, seed) for step in ("warmup", "train") for seed in (0, 1)}) == 4
    assert uri(f"{tmp_path}/", "train", 1) == uri(str(tmp_path), "train", 1)
    assert uri(str(tmp_path), "train", 1).startswith(f"{tmp_path}/train/")


@pytest.fixture
def store_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.usefixtures("store_is_down")
def test_a_store_that_is_down_is_told_and_counted_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_state(tmp_path / "work", "0-train-00000001", b"one")
    mirror = synced(open_store("s3://states/run"), tmp_path / "work")
    assert mirror.counts == {"failed_uploads": 1}
    assert "the copy of the newest state failed, and training goes on: s3://states/run/ at http://127.0.0.1:" in caplog.text
    mirror.sync(tmp_path / "work")  # and it is tried again with the next state
    assert mirror.wait()
    assert mirror.counts["failed_uploads"] == 2


@pytest.mark.usefixtures("store_is_down")
def test_a_run_does_not_begin_anew_because_its_store_is_down(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="out of reach"):
        Mirror(open_store("s3://states/run")).fetch(tmp_path / "work", lambda name, commit: True)


def test_a_full_second_place_is_told_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "place").write_text("a file, where the folder should be")
    write_state(tmp_path / "work", "0-train-00000001", b"one")
    mirror = open_mirror(str(tmp_path / "place"), "train", {})
    mirror.sync(tmp_path / "work")
    assert mirror.wait()
    assert mirror.counts["failed_uploads"] == 1
    assert re.search(r"training goes on: cannot \w+ .*: Not a directory\. Check train\.checkpoint_uri, its perm", caplog.text)


class _Slow(FolderStore):
    """Takes its time for every file."""

    def put(self, key, content, *, if_absent=False):  # type: ignore[no-untyped-def]
        time.sleep(0.3)
        return super().put(key, content, if_absent=if_absent)


def test_a_slow_place_gets_the_newest_state_and_not_all(tmp_path: Path) -> None:
    work = tmp_path / "work"
    mirror = Mirror(_Slow(tmp_path / "place"))
    started = time.monotonic()
    for step in range(5):
        for path in work.glob("*"):
            if path.is_file():
                path.unlink()  # the copy may be under way: an open file outlives its name
        write_state(work, f"0-train-0000000{step}", b"%d" % step)
        mirror.sync(work)
    assert time.monotonic() - started < 0.3  # nobody waited
    assert not mirror.wait(0.05)
    assert mirror.wait(10)
    assert tree(tmp_path / "place") == tree(work)
    assert mirror.counts["uploads"] <= 4


def test_a_location_of_another_form_is_refused() -> None:
    with pytest.raises(
        ParamsError, match=r"train\.checkpoint_uri is 'gs://bucket.*; give a folder, or a URL that begins with s3://"
    ):
        open_mirror("gs://bucket", "train", {})


@pytest.mark.usefixtures("plugin_objects")
def test_a_store_that_can_keep_no_states_is_refused_before_there_are_any() -> None:
    with pytest.raises(ParamsError, match=r"train\.checkpoint_uri is 'archive://a', and Archive lacks a method"):
        open_mirror("archive://a", "train", {})


class _Broken(FolderStore):
    """Of a plugin that lets errors of its library through."""

    def put(self, key, content, *, if_absent=False):  # type: ignore[no-untyped-def]
        raise LookupError("no session")


def test_whatever_a_store_raises_is_told_and_counted_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_state(tmp_path / "work", "0-train-00000001", b"one")
    mirror = synced(_Broken(tmp_path / "store"), tmp_path / "work")
    mirror.sync(tmp_path / "work")
    assert mirror.wait()
    assert mirror.counts == {"failed_uploads": 2}
    assert caplog.text.count("training goes on: no session") == 2


def test_names_sort_by_part_and_step() -> None:
    names = ["0-warmup-00000009-epoch", "1-baseline-00000002", "0-warmup-00000010", "1-baseline-00000001-epoch"]
    assert sorted(names, key=newest_first) == [names[1], names[3], names[2], names[0]]


@pytest.fixture(autouse=True)
def _messages_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    os.environ.pop("AWS_PROFILE", None)


@pytest.mark.parametrize("name", ["../best.pt", "/best.pt", "a/best.pt", "..", ""])
def test_a_state_whose_results_lie_outside_its_folder_is_passed_over(name: str, tmp_path: Path) -> None:
    """Who may write to a bucket may not write to the disk of those who read it."""
    work, store = tmp_path / "work", FolderStore(tmp_path / "store")
    write_state(work, "0-train-00000001", b"one")
    write_state(work, "0-train-00000002", b"two", best=b"best")
    commit = work / "0-train-00000002.json"
    values = json.loads(commit.read_text())
    commit.write_text(json.dumps({**values, "files": {name: values["files"]["best.pt"]}}))
    synced(store, work)
    mirror = Mirror(store)
    assert mirror.fetch(tmp_path / "fresh", lambda name, commit: True)
    assert mirror.counts["fallbacks"] == 1
    assert not list((tmp_path / "fresh").glob(".*"))
    assert (tmp_path / "fresh" / "0-train-00000001.pt").read_bytes() == b"one"
    commit.write_text(json.dumps({**values, "files": {"best.pt": "../../secret"}}))
    assert not is_commit(json.loads(commit.read_text()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
WHOLE = {"run": {}, "world_size": 1, "torch": "2", "sha256": "0" * 64, "files": {"best.pt": "0" * 64}}


@given(st.sampled_from(sorted(WHOLE)), JSON)
def test_whatever_stands_in_a_states_json_it_counts_or_it_does_not(key: str, value: Any) -> None:
    assert is_commit(WHOLE)
    assert not is_commit(value) and not is_commit({name: each for name, each in WHOLE.items() if name != key})
    if is_commit({**WHOLE, key: value}):
        assert type(value) in (type(WHOLE[key]), bool)
        assert key != "files" or all("/" not in name and name[:1] != "." for name in value)


def test_an_empty_answer_is_no_empty_bucket(
    s3_env: S3Server, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would begin anew where its states are."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
    store = open_store(f"{s3_env.location()}/states")
    link.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with pytest.raises(ServiceError, match=r"the store's answer is not a whole list of objects.*run again"):
        Mirror(store).fetch(tmp_path, lambda name, commit: True)
