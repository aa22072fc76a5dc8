"""A small S3 on a local port: what boto3 sends and receives here is real HTTP."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest


class FakeS3(ThreadingHTTPServer):
    """Path-style HEAD, GET, PUT and DELETE of whole objects."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}  # "/bucket/key" -> content
        self.requests: list[str] = []  # "GET /bucket/key"
        self.statuses: list[int] = []  # answered, in this order, in place of what would be right
        self.cuts: list[int] = []  # bytes after which a GET breaks off, in this order

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeS3

    def do_HEAD(self) -> None:
        self._answer_object()

    def do_GET(self) -> None:
        self._answer_object()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._refused():
            self.server.objects[self._key()] = content
            self._answer(200)

    def do_DELETE(self) -> None:
        if not self._refused():
            self.server.objects.pop(self._key(), None)
            self._answer(204)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer_object(self) -> None:
        if self._refused():
            return
        content = self.server.objects.get(self._key())
        if content is None:
            self._answer(404)
            return
        etag, size = hashlib.md5(content).hexdigest(), len(content)
        part = content
        if wanted := self.headers.get("Range"):  # bytes=first-last, or bytes=first-
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last or size - 1) + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{size}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts.pop(0) if self.server.cuts else len(part)
            self.wfile.write(part[:cut])
            self.close_connection = cut < len(part)

    def _refused(self) -> bool:
        self.server.requests.append(f"{self.command} {self._key()}")
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status != 200:
            self._answer(status)
        return status != 200

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _key(self) -> str:
        return self.path.partition("?")[0]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    """An empty server that boto3 is pointed at, with credentials, through the environment."""
    server = FakeS3()
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would remember the credentials of another test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
