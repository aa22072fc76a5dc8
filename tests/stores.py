"""The stores that a registry can be in; what must hold of one is tested on all."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import S3Server

from cwbass.storage import FolderStore, ObjectStore, open_store


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
