from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cwbass.errors import DataError, ParamsError, ServiceError
from cwbass.registry import Number, register_version
from cwbass.registry.aliases import Entry, aliased_version, current, history, list_aliases, named_version, promote, rollback
from cwbass.storage import FolderStore, ObjectStore

NAME = "shapes"


def add_version(store: ObjectStore, weights: bytes) -> Number:
    config = json.dumps({"classes": ["a"], "model": {"mean": [0], "std": [1]}}).encode()
    return register_version(store, name=NAME, files={"config.json": config, "model.safetensors": weights}).number


def move(store: ObjectStore, number: Number, alias: str = "champion", **options: Any) -> Entry:
    return promote(store, NAME, alias, number, seen=current(store, NAME, alias), reason="why", **options)


def test_an_alias_is_what_its_newest_entry_says_and_the_rest_is_its_history(any_store: ObjectStore) -> None:
    first, second = add_version(any_store, b"1"), add_version(any_store, b"2")
    assert current(any_store, NAME, "champion") is None
    move(any_store, first)
    move(any_store, second)
    move(any_store, first, "candidate")

    assert aliased_version(any_store, NAME, "champion").number == second
    assert aliased_version(any_store, NAME, "candidate").number == first
    assert list_aliases(any_store, NAME) == ["candidate", "champion"]
    moves = [(entry.number, entry.version, entry.previous) for entry in history(any_store, NAME, "champion")]
    assert moves == [(1, "1.0.0", None), (2, "1.1.0", "1.0.0")]
    assert any_store.list("models/shapes/aliases/champion/") == [
        "models/shapes/aliases/champion/00000001.json",
        "models/shapes/aliases/champion/00000002.json",
    ]


def test_rollback_goes_back_one_version_each_time_and_never_in_a_circle(any_store: ObjectStore) -> None:
    one, two, three = (add_version(any_store, text) for text in (b"1", b"2", b"3"))
    for number in (one, two, three):
        move(any_store, number)

    assert rollback(any_store, NAME, "champion", reason="worse").version == "1.1.0"
    assert rollback(any_store, NAME, "champion", reason="worse").version == "1.0.0"
    with pytest.raises(DataError, match=r"shapes@champion is 1\.0\.0, and there is no version before it"):
        rollback(any_store, NAME, "champion", reason="worse")
    move(any_store, three)
    assert rollback(any_store, NAME, "champion", reason="worse").version == "1.0.0"  # what it was before, not 1.1.0
    assert [(entry.action, entry.version) for entry in history(any_store, NAME, "champion")] == [
        ("promote", "1.0.0"), ("promote", "1.1.0"), ("promote", "1.2.0"),
        ("rollback", "1.1.0"), ("rollback", "1.0.0"), ("promote", "1.2.0"), ("rollback", "1.0.0"),
    ]  # fmt: skip


def test_a_file_beside_the_entries_is_none_of_them(any_store: ObjectStore) -> None:
    number = add_version(any_store, b"1")
    entry = move(any_store, number)
    for name in ("9.json", "00000009.json.bak", "000000009.json"):
        any_store.put(f"models/shapes/aliases/champion/{name}", b"{}")
    assert history(any_store, NAME, "champion") == [entry]


def test_promoting_what_is_promoted_writes_nothing(any_store: ObjectStore) -> None:
    number = add_version(any_store, b"1")
    assert move(any_store, number) == move(any_store, number)
    assert len(history(any_store, NAME, "champion")) == 1


def test_a_dry_run_says_what_would_be_and_writes_nothing(any_store: ObjectStore) -> None:
    one, two = add_version(any_store, b"1"), add_version(any_store, b"2")
    move(any_store, one)
    assert move(any_store, two, dry_run=True).previous == "1.0.0"
    move(any_store, two)
    assert rollback(any_store, NAME, "champion", reason="", dry_run=True).version == "1.0.0"
    assert aliased_version(any_store, NAME, "champion").number == two


def test_a_writer_that_saw_an_older_state_is_told_and_changes_nothing(any_store: ObjectStore) -> None:
    one, two, three = (add_version(any_store, text) for text in (b"1", b"2", b"3"))
    move(any_store, one)
    seen = current(any_store, NAME, "champion")
    move(any_store, two)
    with pytest.raises(
        ServiceError, match=r"shapes@champion was moved to 1\.1\.0 by .* in the meantime .*; 1\.2\.0 was not"
    ) as caught:
        promote(any_store, NAME, "champion", three, seen=seen, reason="late")
    assert caught.value.exit_code == 6
    assert aliased_version(any_store, NAME, "champion").number == two
    assert len(history(any_store, NAME, "champion")) == 2


def test_an_alias_never_points_to_what_is_not_whole(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    good, bad = add_version(store, b"good"), add_version(store, b"bad")
    move(store, good)
    (tmp_path / "models/shapes/versions/1.1.0/model.safetensors").write_bytes(b"baD")
    with pytest.raises(ServiceError, match=r"1\.1\.0/model\.safetensors was changed"):
        move(store, bad)
    with pytest.raises(DataError, match=r"1\.7\.0/MANIFEST\.json: no such object"):
        move(store, Number(1, 7))
    move(store, add_version(store, b"third"))
    (tmp_path / "models/shapes/versions/1.0.0/model.safetensors").unlink()
    with pytest.raises(DataError, match=r"1\.0\.0/model\.safetensors: no such object"):
        rollback(store, NAME, "champion", reason="")
    assert aliased_version(store, NAME, "champion").number == Number(1, 2)


def test_a_manifest_that_was_exchanged_is_noticed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    move(store, add_version(store, b"1"))
    path = tmp_path / "models/shapes/versions/1.0.0/MANIFEST.json"
    path.write_text(path.read_text().replace("{", "{ ", 1))
    with pytest.raises(ServiceError, match=r"MANIFEST\.json is not the one that champion was set to"):
        aliased_version(store, NAME, "champion")
    second = add_version(store, b"2")
    move(store, second)
    with pytest.raises(ServiceError, match=r"MANIFEST\.json is not the one that champion was set to"):
        rollback(store, NAME, "champion", reason="")
    assert aliased_version(store, NAME, "champion").number == second


@pytest.mark.parametrize("alias", ["Champion", "1.0.0", "", "a/b", "-x", "a b"])
def test_an_alias_of_another_form_is_refused(tmp_path: Path, alias: str) -> None:
    store = FolderStore(tmp_path)
    number = add_version(store, b"1")
    with pytest.raises(ParamsError, match="is no alias"):
        promote(store, NAME, alias, number, seen=None, reason="")


def test_an_alias_that_ends_in_a_digit_is_no_version(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    move(store, add_version(store, b"1"), "release-2")
    assert str(named_version(store, NAME, "release-2").number) == "1.0.0"
    with pytest.raises(DataError, match="'2' is no version; write it as"):
        named_version(store, NAME, "2")


def test_an_alias_that_is_not_set_is_answered_with_those_that_are(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    move(store, add_version(store, b"1"), "candidate")
    with pytest.raises(DataError, match=r"shapes has no alias 'champion' \(it has: candidate\)"):
        aliased_version(store, NAME, "champion")
    with pytest.raises(DataError, match=r"shapes@champion is not set"):
        rollback(store, NAME, "champion", reason="")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is no entry"), (b"[]", "is no entry"), (b'{"schema": 1, "name": "shapes"}', "is no entry"), (None, "has schema 2")],
)
def test_a_foreign_entry_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    store = FolderStore(tmp_path)
    move(store, add_version(store, b"1"))
    path = tmp_path / "models/shapes/aliases/champion/00000001.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2') if content is None else content)
    with pytest.raises(DataError, match=f"champion/00000001.json {message}"):
        current(store, NAME, "champion")


MOVER = """
import sys, time
from pathlib import Path
from cwbass.registry.aliases import current, promote
from cwbass.errors import ServiceError
from cwbass.registry import Number
from cwbass.storage import open_store
location, gate, mine = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
store = open_store(location)
number = Number.parse(mine)
for turn in range(6):
    seen = current(store, "shapes", "champion")
    (gate / f"ready-{turn}-{mine}").touch()
    while not (gate / f"go-{turn}").exists():
        time.sleep(0.002)
    try:
        promote(store, "shapes", "champion", number, seen=seen, reason=f"turn {turn}")
        print(turn, "won")
    except ServiceError as error:
        assert "in the meantime" in str(error), error
        print(turn, "lost")
    (gate / f"done-{turn}-{mine}").touch()
    while not (gate / f"next-{turn}").exists():
        time.sleep(0.002)
"""


def test_of_two_processes_that_saw_the_same_champion_one_moves_it(any_store: ObjectStore, tmp_path: Path) -> None:
    home = add_version(any_store, b"home")
    numbers = [str(add_version(any_store, text)) for text in (b"a", b"b")]
    location = any_store.uri("x").removesuffix("/x")
    command = [sys.executable, "-c", MOVER, location, str(tmp_path)]
    movers = [
        subprocess.Popen([*command, number], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in numbers
    ]

    def wait(kind: str, turn: int) -> None:
        end = time.monotonic() + 120
        while not all((tmp_path / f"{kind}-{turn}-{number}").exists() for number in numbers):
            assert all(mover.poll() is None for mover in movers), [mover.communicate()[1] for mover in movers if mover.poll()]
            assert time.monotonic() < end, "the processes do not come along"
            time.sleep(0.005)

    try:
        for turn in range(6):
            if turn:  # away from both, so that neither finds it already done
                move(any_store, home)
            (tmp_path / f"next-{turn - 1}").touch()
            wait("ready", turn)
            (tmp_path / f"go-{turn}").touch()
            wait("done", turn)
        (tmp_path / "next-5").touch()
        lines = [mover.communicate(timeout=60)[0].splitlines() for mover in movers]
    finally:
        for mover in movers:
            mover.kill()
            mover.communicate()

    for turn in range(6):
        assert sorted(line[turn] for line in lines) == [f"{turn} lost", f"{turn} won"]
    moves = history(any_store, NAME, "champion")
    assert [entry.number for entry in moves] == list(range(1, 12))  # 6 races and 5 moves home: none lost, none doubled
    winners = {entry.reason: entry.version for entry in moves if entry.reason != "why"}
    assert winners == {f"turn {turn}": numbers[[f"{turn} won" in line for line in lines].index(True)] for turn in range(6)}
