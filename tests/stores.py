"""The stores that registries and mirrors can be in; what must hold of one is tested on all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from servers import S3Server

from cwbass.errors import DataError
from cwbass.storage import OBJECT_STORES, Content, FolderStore, ObjectStore, check_key, open_store, opened


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The environment of somebody who may read and write, but neither delete buckets nor make them."""
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "CWBASS_S3_CHECKSUM"):
        monkeypatch.delenv(name, raising=False)
    return s3_server


@pytest.fixture
def s3_location(s3_env: S3Server) -> str:
    """An empty registry."""
    return f"{s3_env.location()}/registry"


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    return open_store(request.getfixturevalue("s3_location"))


class Archive:
    """A plugin's store, with what a registry needs."""

    def __init__(self, url: str, setting: str, *, objects: dict[str, bytes]) -> None:
        self.url, self.setting, self.objects = url, setting, objects

    def put(self, key: str, content: Content, *, if_absent: bool = False) -> bool:
        if if_absent and self.exists(key):
            return False
        with opened(content) as file:
            self.objects[self.uri(key)] = file.read()
        return True

    def get(self, key: str) -> bytes:
        if not self.exists(key):
            raise DataError(f"{self.uri(key)}: no such object in the store. Check {self.setting}.")
        return self.objects[self.uri(key)]

    def exists(self, key: str) -> bool:
        return self.uri(key) in self.objects

    def list(self, prefix: str) -> Sequence[str]:
        root = f"{self.url}/"
        return sorted(uri.removeprefix(root) for uri in self.objects if uri.startswith(root + prefix))

    def uri(self, key: str) -> str:
        check_key(key)
        return f"{self.url}/{key}"


class Shelf(Archive):
    """Likewise, with what a mirror needs besides."""

    def fetch(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def delete(self, key: str) -> None:
        self.objects.pop(self.uri(key), None)


@pytest.fixture
def plugin_objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What lies at URLs of two kinds that a plugin adds, ``archive://`` and ``shelf://``."""
    objects: dict[str, bytes] = {}
    monkeypatch.setitem(OBJECT_STORES, "archive", partial(Archive, objects=objects))
    monkeypatch.setitem(OBJECT_STORES, "shelf", partial(Shelf, objects=objects))
    return objects
