from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cwbass.errors import DataError, ServiceError
from cwbass.registry import Number, find_same, find_version, latest, list_versions, read_version, register_version
from cwbass.storage import FolderStore, ObjectStore

NAME = "shapes"
MEAN, STD = [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "registry")


def version_files(
    weights: bytes = b"weights", *, classes: tuple[str, ...] = ("sky", "road"), mean: Any = MEAN, std: Any = STD
) -> dict[str, bytes | Path]:
    config = {"classes": list(classes), "model": {"arch": "unet", "mean": mean, "std": std}}
    return {"model.safetensors": weights, "config.json": json.dumps(config).encode(), "README.md": b"# shapes\n"}


def register(store: Any, **changes: Any) -> str:
    return str(register_version(store, name=NAME, files=version_files(**changes)).number)


class DyingStore:
    """Dies before its n-th put."""

    def __init__(self, store: ObjectStore, puts: int) -> None:
        self.store, self.puts = store, puts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put(self, key: str, content: bytes | Path, *, if_absent: bool = False) -> bool:
        if self.puts == 0:
            raise KeyboardInterrupt
        self.puts -= 1
        return self.store.put(key, content, if_absent=if_absent)


def test_a_version_is_a_folder_that_other_tools_can_check(store: FolderStore) -> None:
    version = register_version(store, name=NAME, files=version_files())

    folder = store.root / "models/shapes/versions/1.0.0"
    assert version.uri == folder.as_posix()
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json", "README.md", "SHA256SUMS", "config.json", "model.safetensors",
    ]  # fmt: skip
    readme = hashlib.sha256(b"# shapes\n").hexdigest()
    assert f"{readme}  README.md\n" in (folder / "SHA256SUMS").read_text()
    assert version.digests["README.md"] == readme
    assert version.manifest_sha256 == hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert (manifest["name"], manifest["version"]) == ("shapes", "1.0.0")
    if shutil.which("sha256sum"):
        checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
        assert checked.stdout.splitlines() == ["README.md: OK", "config.json: OK", "model.safetensors: OK"], checked.stderr


def test_files_can_be_given_as_paths(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    from_path = register_version(store, name=NAME, files=version_files() | {"model.safetensors": tmp_path / "w"})
    from_bytes = register_version(store, name=NAME, files=version_files())
    assert from_path.digests == from_bytes.digests


def test_numbers_rise_by_what_changed(any_store: ObjectStore) -> None:
    assert register(any_store) == "1.0.0"
    assert register(any_store, weights=b"other") == "1.1.0"
    assert register(any_store) == "1.2.0"
    assert register(any_store, classes=("road", "sky")) == "2.0.0"  # the order says what an index means
    assert register(any_store, classes=("road", "sky")) == "2.1.0"
    assert register(any_store, classes=("road", "sky"), std=[0.2, 0.2, 0.3]) == "3.0.0"
    assert register(any_store, classes=("road", "sky"), std=[0.2, 0.2, 0.3], mean=[0, 0, 0]) == "4.0.0"
    assert [str(number) for number in list_versions(any_store, NAME)] == [
        "1.0.0",
        "1.1.0",
        "1.2.0",
        "2.0.0",
        "2.1.0",
        "3.0.0",
        "4.0.0",
    ]


def test_numbers_are_ordered_as_numbers(store: FolderStore) -> None:
    assert Number.parse("1.10.0") > Number.parse("1.9.3") > Number.parse("1.9.0") > Number.parse("0.99.99")
    assert [str(Number(1, 2, 3).after(same_contract=same)) for same in (True, False)] == ["1.3.0", "2.0.0"]
    for _ in range(12):
        last = register(store)
    newest = latest(store, NAME)
    assert newest is not None
    assert str(newest.number) == last == "1.11.0"


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "1.0.0-rc1", "01.0.0", "1.0.0\n", "", "\u0661.0.0"])
def test_other_texts_are_no_number(text: str) -> None:
    with pytest.raises(DataError, match=r"write it as 1\.2\.3"):
        Number.parse(text)


def test_models_do_not_share_numbers(any_store: ObjectStore) -> None:
    register(any_store)
    register_version(any_store, name="shapes-large", files=version_files())
    assert latest(any_store, "shape") is None
    assert list_versions(any_store, "shapes") == list_versions(any_store, "shapes-large") == [Number(1)]


def test_a_version_never_changes(store: FolderStore) -> None:
    first = register_version(store, name=NAME, files=version_files(b"first"))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(first.uri).iterdir()}
    register(store, weights=b"second")
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(first.uri).iterdir()} == before


@pytest.mark.parametrize("puts", range(5))  # config.json, model.safetensors, README.md, SHA256SUMS, MANIFEST.json
def test_a_writer_that_dies_leaves_no_version(any_store: ObjectStore, puts: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        register(DyingStore(any_store, puts))

    assert latest(any_store, NAME) is None
    assert find_same(any_store, NAME, {"model.safetensors": b"weights"}) is None
    with pytest.raises(DataError, match="no such object"):
        find_version(any_store, NAME, Number(1))

    version = register_version(any_store, name=NAME, files=version_files())
    assert str(version.number) == ("1.0.0" if puts == 0 else "1.1.0")  # the claimed number stays unused
    assert read_version(any_store, version)["model.safetensors"] == b"weights"


def test_a_dead_number_does_not_bend_the_next_ones(store: FolderStore) -> None:
    register(store)
    with pytest.raises(KeyboardInterrupt):
        register(DyingStore(store, 2), classes=("a",))  # claims 2.0.0

    assert register(store) == "1.1.0"
    assert register(store, classes=("a",)) == "2.1.0"  # 2.0.0 is taken, with the same contract
    with pytest.raises(KeyboardInterrupt):
        register(DyingStore(store, 2), classes=("b",))  # claims 3.0.0
    assert register(store, classes=("c",)) == "4.0.0"


def test_the_same_bytes_are_found_again(any_store: ObjectStore) -> None:
    first = register_version(any_store, name=NAME, files=version_files(b"first"))
    register(any_store, weights=b"second")
    assert find_same(any_store, NAME, {"model.safetensors": b"first", "README.md": b"# shapes\n"}) == first
    assert find_same(any_store, NAME, {"model.safetensors": b"first", "README.md": b"# other\n"}) is None
    assert find_same(any_store, NAME, {"model.safetensors": b"first", "metrics.json": b""}) is None
    register(any_store, weights=b"first")
    highest = find_same(any_store, NAME, {"model.safetensors": b"first"})
    assert highest is not None and str(highest.number) == "1.2.0"


def test_reading_gives_what_was_written(any_store: ObjectStore) -> None:
    files = version_files()
    register_version(any_store, name=NAME, files=files)
    read = read_version(any_store, find_version(any_store, NAME, Number(1)))
    assert {name: read[name] for name in files} == files
    assert read.keys() - files.keys() == {"SHA256SUMS"}


@pytest.mark.parametrize("file", ["model.safetensors", "SHA256SUMS"])
def test_a_changed_byte_is_noticed(store: FolderStore, file: str) -> None:
    version = register_version(store, name=NAME, files=version_files())
    path = Path(version.uri) / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ServiceError, match=rf"1\.0\.0/{file} was changed after it was registered"):
        read_version(store, version)


def test_a_missing_file_is_noticed(store: FolderStore) -> None:
    version = register_version(store, name=NAME, files=version_files())
    (Path(version.uri) / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors: no such object"):
        read_version(store, version)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no manifest"),
        ("[]", "is no manifest"),
        ('{"schema": 9, "files": {}}', "has schema 9"),
        ('{"schema": 0, "files": {}}', "has schema 0"),
        ('{"schema": 1, "name": "lines", "version": "1.0.0", "files": {}}', r"is the manifest of lines 1\.0\.0, not of shapes"),
        ('{"schema": 1, "name": "shapes", "version": "1.1.0", "files": {}}', r"is the manifest of shapes 1\.1\.0"),
    ],
)
def test_a_foreign_manifest_is_refused(store: FolderStore, content: str, message: str) -> None:
    version = register_version(store, name=NAME, files=version_files())
    (Path(version.uri) / "MANIFEST.json").write_text(content)
    with pytest.raises(DataError, match=message):
        latest(store, NAME)


def test_something_else_in_the_folder_stops_the_writer(any_store: ObjectStore) -> None:
    any_store.put("models/shapes/versions/1.0.0/README.md", b"mine")
    with pytest.raises(ServiceError, match=r"1\.0\.0/README\.md was written by something else"):
        register(any_store)
    assert latest(any_store, NAME) is None


def test_a_version_without_a_contract_is_refused(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a version needs a config\.json; there are only weights"):
        register_version(store, name=NAME, files={"weights": b""})
    with pytest.raises(DataError, match=r"it must hold classes, model\.mean and model\.std"):
        register_version(store, name=NAME, files={"config.json": b'{"classes": []}'})
    with pytest.raises(DataError, match=r"gone\.html cannot be read"):
        register_version(store, name=NAME, files=version_files() | {"report.html": tmp_path / "gone.html"})
    assert store.list("") == []


WRITER = """
import sys, time
from pathlib import Path
from cwbass.registry import register_version
from cwbass.storage import open_store
folder, mine, store = Path(sys.argv[1]), sys.argv[2], open_store(sys.argv[3])
(folder / f"ready-{mine}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
config = b'{"classes": ["a"], "model": {"mean": [0], "std": [1]}}'
for turn in range(5):
    content = f"{mine} {turn}".encode()
    version = register_version(store, name="shapes", files={"config.json": config, "weights": content})
    print(version.number, content.decode())
"""


def test_of_processes_that_register_at_once_each_gets_a_number_of_its_own(any_store: ObjectStore, tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    location = any_store.uri("x").removesuffix("/x")
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name, location], stdout=subprocess.PIPE, text=True) for name in names]
    try:
        while not all((tmp_path / f"ready-{name}").exists() for name in names):
            assert all(writer.poll() is None for writer in writers), "a writer died before the start"
            time.sleep(0.01)
        (tmp_path / "go").touch()
        lines = [line for writer in writers for line in writer.communicate(timeout=60)[0].splitlines()]
    finally:
        for writer in writers:
            writer.kill()

    got = dict(line.split(" ", 1) for line in lines)
    assert sorted(map(Number.parse, got)) == [Number(1, minor) for minor in range(15)]
    for number, content in got.items():
        version = find_version(any_store, "shapes", Number.parse(number))
        assert read_version(any_store, version)["weights"] == content.encode()
