"""What is left of a registry when things go wrong: all that was in it, and nothing half.

The server is a real one. Faults are forced on the line to it, on the disk, or with signals.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Done, call
from servers import BUCKET, Link, S3Server, free_port, http_answer

import cwbass.storage.s3
from cwbass.errors import DataError, ParamsError, ServiceError
from cwbass.registry import Number, find_version, list_versions, read_version, register_version, verify_version
from cwbass.registry.aliases import current, promote
from cwbass.storage import FolderStore, ObjectStore, open_store
from cwbass.storage.s3_store import S3Store

NAME = "shapes"
CONFIG = json.dumps({"classes": ["a"], "model": {"mean": [0], "std": [1]}}).encode()


def add_version(store: ObjectStore, weights: bytes | Path) -> Number:
    return register_version(store, name=NAME, files={"config.json": CONFIG, "model.safetensors": weights}).number


@dataclass
class Registry:
    """A registry with two versions, of which the first is the champion; seen past all faults."""

    location: str
    server: S3Server

    def objects(self) -> dict[str, str]:
        """SHA-256 of everything there is, key by key."""
        client, prefix = self.server.client(), self.location.removeprefix(f"s3://{BUCKET}/")
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        keys = [each["Key"] for each in found]
        return {key: hashlib.sha256(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()).hexdigest() for key in keys}

    def promote(self) -> Done:
        """Reads and checks a whole version, and writes one entry."""
        return call("registry", "promote", "shapes@1.1.0", "--store", self.location)


@pytest.fixture
def registry(s3_location: str, s3_env: S3Server) -> Registry:
    store = open_store(s3_location)
    first = add_version(store, b"weights of 1.0.0")
    promote(store, NAME, "champion", first, seen=None, reason="first")
    add_version(store, b"weights of 1.1.0")
    return Registry(s3_location, s3_env)


@pytest.fixture
def faulty(registry: Registry, link: Link, monkeypatch: pytest.MonkeyPatch) -> Link:
    """The line by which the command reaches the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
    return link


def assert_one_line(done: Done, *parts: str) -> None:
    """Exit code 6, and one line that says what, where and what to do."""
    assert done.returncode == 6, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_a_server_that_is_down(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    before, url = registry.objects(), f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert_one_line(
        registry.promote(), registry.location, "/models/shapes/aliases/champion", url, "out of reach", "Check the network"
    )
    assert registry.objects() == before


def test_it_is_given_up_in_about_ten_seconds(s3_env: S3Server) -> None:
    config = cwbass.storage.s3.s3_client().meta.config
    assert config.connect_timeout * config.retries["total_max_attempts"] <= 10
    assert config.read_timeout * config.retries["total_max_attempts"] <= 60


def test_a_server_that_takes_requests_and_never_answers(
    registry: Registry, faulty: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = registry.objects()
    monkeypatch.setattr(cwbass.storage.s3, "READ_TIMEOUT", 0.3)
    faulty.hang = True
    assert_one_line(registry.promote(), registry.location, "Read timeout", faulty.url)
    assert faulty.connections == 3
    assert registry.objects() == before


def test_a_slow_line_is_no_fault(registry: Registry, faulty: Link) -> None:
    faulty.delay, faulty.upload_rate = 0.05, 100_000
    done = registry.promote()
    assert (done.returncode, json.loads(done.stdout)["version"]) == (0, "1.1.0")


def test_a_server_that_fails_is_asked_three_times(registry: Registry, faulty: Link) -> None:
    before = registry.objects()
    faulty.answer = http_answer(500, "InternalError", "We encountered an internal error.")
    assert_one_line(registry.promote(), registry.location, faulty.url, "InternalError", "failed 3 times", "Try again later")
    assert faulty.connections == 3
    assert registry.objects() == before


def test_a_server_that_fails_twice_is_no_fault(registry: Registry, faulty: Link) -> None:
    faulty.answers = [http_answer(500, "InternalError", "no"), http_answer(503, "SlowDown", "no")]
    assert registry.promote().returncode == 0


def test_credentials_that_expired(registry: Registry, faulty: Link) -> None:
    before = registry.objects()
    faulty.answer = http_answer(400, "ExpiredToken", "The provided token has expired.")
    assert_one_line(registry.promote(), registry.location, "the credentials have expired", "Renew them")
    assert registry.objects() == before


@pytest.mark.parametrize(("key", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "NOBODY")])
def test_wrong_credentials_are_refused_for_good(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    before = registry.objects()
    monkeypatch.setenv(key, value)
    done = registry.promote()
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "refused" in done.stderr and "Check the credentials" in done.stderr
    assert registry.objects() == before


def test_who_may_only_read_can_show_and_not_promote(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    before = registry.objects()
    for name, value in registry.server.env("reader").items():
        monkeypatch.setenv(name, value)
    assert call("registry", "show", "shapes", "--store", registry.location).returncode == 0
    done = registry.promote()
    assert (done.returncode, "AccessDenied" in done.stderr) == (3, True)
    assert registry.objects() == before


def test_a_bucket_that_is_not_there(s3_env: S3Server) -> None:
    done = call("registry", "list", "--store", "s3://no-such-bucket/registry")
    assert (done.returncode, "no such bucket" in done.stderr) == (3, True)


def test_an_answer_that_is_lost_is_not_taken_for_a_lost_race(faulty: Link, registry: Registry) -> None:
    store = open_store(registry.location)
    store.put("mine/first", b"", if_absent=True)
    faulty.losses = 1
    assert store.put("mine/second", b"content", if_absent=True)  # it arrived, was sent again, and found itself there
    assert faulty.losses == 0
    assert store.get("mine/second") == b"content"
    faulty.losses = 1
    assert not store.put("mine/second", b"content", if_absent=True)  # the same bytes of another put


def test_a_byte_that_flips_on_its_way_once_is_read_again(registry: Registry, faulty: Link) -> None:
    faulty.flip, faulty.flips = b"weights of 1.1.0", 1
    assert registry.promote().returncode == 0
    assert faulty.flips == 0


def test_a_byte_that_flips_on_its_way_each_time(registry: Registry, faulty: Link) -> None:
    before = registry.objects()
    faulty.flip, faulty.flips = b"weights of 1.1.0", 100
    assert_one_line(registry.promote(), f"{registry.location}/models/shapes/versions/1.1.0/model.safetensors")
    assert registry.objects() == before


def test_a_byte_that_flipped_in_the_store(registry: Registry) -> None:
    key = registry.location.removeprefix(f"s3://{BUCKET}/") + "/models/shapes/versions/1.1.0/model.safetensors"
    registry.server.client().put_object(Bucket=BUCKET, Key=key, Body=b"weights of 1.1.1")
    before = registry.objects()
    assert_one_line(registry.promote(), "1.1.0/model.safetensors was changed after it was registered", "Restore it")
    assert registry.objects() == before


def test_a_server_that_ignores_the_condition_is_found_out_before_it_overwrites(s3: Any) -> None:
    s3.objects["/bucket/registry/key"] = b"of somebody else"
    with pytest.raises(ParamsError, match=r"s3://bucket/registry/.* ignores If-None-Match, so two writers could overwrite"):
        S3Store("s3://bucket/registry").put("key", b"mine", if_absent=True)
    assert s3.objects["/bucket/registry/key"] == b"of somebody else"


WRITER = """
import json, sys
from pathlib import Path
from cwbass.registry import register_version
from cwbass.storage import open_store
config = b'{"classes": ["a"], "model": {"mean": [0], "std": [1]}}'
register_version(open_store(sys.argv[1]), name="shapes", files={"config.json": config, "model.safetensors": Path(sys.argv[2])})
print("done")
"""


def test_a_writer_that_is_killed_in_mid_upload(registry: Registry, link: Link, tmp_path: Path) -> None:
    before, weights = registry.objects(), tmp_path / "weights"
    weights.write_bytes(os.urandom(4 << 20))
    link.upload_rate = 2e6  # two seconds in all
    environment = os.environ | registry.server.env(url=link.url)
    command = [sys.executable, "-c", WRITER, registry.location, str(weights)]
    writer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while link.uploaded < 1 << 20:
        assert writer.poll() is None, writer.communicate()
        assert time.monotonic() < end, "the upload does not start"
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    assert writer.communicate()[0] == ""
    assert writer.returncode == -signal.SIGKILL

    store = open_store(registry.location)
    left = {key: digest for key, digest in registry.objects().items() if key not in before}
    assert [key.rsplit("/", 2)[1:] for key in left] == [["1.2.0", "config.json"]]  # the number it had claimed
    assert before.items() <= registry.objects().items()
    assert list_versions(store, NAME) == [Number(1), Number(1, 1)]
    assert registry.server.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    with pytest.raises(DataError, match="no such object"):
        promote(store, NAME, "champion", Number(1, 2), seen=current(store, NAME, "champion"), reason="")

    number = add_version(store, weights)  # run again
    assert number == Number(1, 3)
    assert read_version(store, find_version(store, NAME, number))["model.safetensors"] == weights.read_bytes()


@pytest.fixture(params=["file size limit", "full file system"])
def full_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that takes half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "file size limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs cannot be mounted: needs root with CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_on_a_full_disk(full_disk: Path) -> None:
    store = FolderStore(full_disk)
    first = add_version(store, b"small")
    promote(store, NAME, "champion", first, seen=None, reason="first")
    before = {path: path.read_bytes() for path in full_disk.rglob("*") if path.is_file()}
    with pytest.raises(
        ServiceError, match=r"cannot write .*: (File too large|No space left on device)\. Check registry\.store"
    ) as caught:
        add_version(store, b"x" * (1 << 20))
    assert caught.value.exit_code == 6
    after = {path: path.read_bytes() for path in full_disk.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert [path.name for path in after.keys() - before.keys()] == ["config.json"]  # no partial file is left
    assert list_versions(store, NAME) == [first]
    verify_version(store, find_version(store, NAME, add_version(store, b"small again")))


def test_a_cache_on_a_full_disk(full_disk: Path, s3_location: str) -> None:
    from cwbass.registry.resolve import resolve

    store = open_store(s3_location)
    files: dict[str, bytes | Path] = {"config.json": CONFIG, "params.yaml": b"{}", "provenance.json": b"{}"}
    register_version(store, name=NAME, files=files | {"model.safetensors": b"x" * (1 << 20)})
    with pytest.raises(ServiceError, match=r"cannot write .*model\.safetensors: .*Check CWBASS_CACHE"):
        resolve("shapes@1.0.0", store=s3_location, cache=full_disk)
    assert [path.name for path in full_disk.rglob("*") if path.is_file() and path.stat().st_size > 1000] == []
