"""Datasets in S3, on a real server."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cwbass.data.remote import local_dataset
from cwbass.errors import DataError, ParamsError, ServiceError

servers = pytest.importorskip("servers", reason="needs tests/servers.py, which starts a real S3 server")

FILES = {"classes.txt": b"sky\nroad\n", "images/a/1.png": b"1" * 70_000, "images/a/2.png": b"2", "masks/a/1.png": b""}


@pytest.fixture
def dataset(s3_env: servers.S3Server, s3_location: str) -> str:
    """An uploaded dataset; consoles leave an empty object for each folder, too."""
    client = s3_env.client("writer")
    for path, content in {**FILES, "images/": b""}.items():
        put(client, f"{s3_location}/{path}", content)
    put(client, f"{s3_location}-other/classes.txt", b"of another dataset, whose prefix starts alike")
    return s3_location


def put(client: Any, uri: str, content: bytes) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=key, Body=content)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_prefix_becomes_a_folder_with_the_same_files(dataset: str, tmp_path: Path) -> None:
    assert read(local_dataset(dataset, tmp_path / "copies")) == FILES


def test_a_copy_is_used_again_and_data_that_changed_get_another(dataset: str, s3_env: servers.S3Server, tmp_path: Path) -> None:
    first = local_dataset(dataset, tmp_path)
    before = (first / "images/a/1.png").stat().st_mtime_ns
    assert local_dataset(f"{dataset}/", tmp_path) == first
    assert (first / "images/a/1.png").stat().st_mtime_ns == before
    put(s3_env.client("writer"), f"{dataset}/images/a/2.png", b"3")  # as long as before
    second = local_dataset(dataset, tmp_path)
    assert second != first
    assert (second / "images/a/2.png").read_bytes() == b"3"
    assert read(first) == FILES


def test_two_at_once_get_the_same_whole_copy(dataset: str, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(local_dataset(dataset, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert read(found[0]) == FILES
    assert os.listdir(tmp_path) == [found[0].name]


def test_an_empty_prefix_is_an_error_that_names_it(s3_env: servers.S3Server, s3_location: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{s3_location}/none: there are no objects below it"):
        local_dataset(f"{s3_location}/none", tmp_path)


def test_a_server_that_goes_away_leaves_no_half_copy(
    dataset: str, link: servers.Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
    local_dataset(dataset, tmp_path / "through the link")
    link.answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(ServiceError, match=dataset):
        local_dataset(dataset, tmp_path / "copies")
    assert not (tmp_path / "copies").exists()


def test_a_failure_halfway_leaves_nothing(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "copies").write_text("a file where the folder should be")
    with pytest.raises(ParamsError, match="cannot be kept"):
        local_dataset(dataset, tmp_path / "copies")


@pytest.mark.parametrize("path", ["../escaped.txt", "a/../../escaped.txt", "a//b"])
def test_a_key_that_would_be_written_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, dataset: str, tmp_path: Path, path: str
) -> None:
    """The server takes no such key; a bucket of somebody else's might hold one."""
    from cwbass.data import s3_dataset

    class Pages:
        def get_paginator(self, name: str) -> Pages:
            return self

        def paginate(self, **where: str) -> list[dict[str, object]]:
            return [{"IsTruncated": False, "Contents": [{"Key": f"{where['Prefix']}{path}", "Size": 1, "ETag": "x"}]}]

    monkeypatch.setattr(s3_dataset, "s3_client", Pages)
    with pytest.raises(DataError, match="no path below a folder"):
        local_dataset(dataset, tmp_path / "copies")
    assert not (tmp_path / "escaped.txt").exists()
