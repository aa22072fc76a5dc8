"""Gateways, ports and files that misbehave: a warning each, in bounded time."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_servers import free_port

from cwbass.telemetry.export import push, serve, write_file

GROUP = {"pipeline": "shapes", "stage": "train"}
PROMPT = 10.0  # seconds; far above any limit set here, far below what a hanging server would take


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A TCP server that does what ``talk`` says; its address, and what it was sent first."""
    heard: list[bytes] = []
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    heard.append(connection.recv(65536))
                    try:
                        talk(connection)
                        while not stop.is_set() and talk in (hang, drip):
                            talk(connection)
                    except OSError:  # the client has gone
                        continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", heard
        finally:
            stop.set()
            thread.join()


def hang(connection: socket.socket) -> None:
    time.sleep(0.1)


def drip(connection: socket.socket) -> None:
    connection.sendall(b"H")  # a byte before every timeout of a read
    time.sleep(0.1)


def refuse(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")


def babble(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example.com ESMTP\r\n")


def accept(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("cwbass_train_epoch", "Epochs.", registry=registry).set(3)
    return registry


@pytest.mark.parametrize(
    ("talk", "reason"),
    [(hang, "took too long|timed out"), (drip, "took too long"), (refuse, "HTTP Error 500"), (babble, "BadStatusLine")],
)
def test_a_gateway_that_misbehaves_costs_a_warning_and_no_more_time_than_allowed(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, talk: Callable[[socket.socket], None], reason: str
) -> None:
    with listening(talk) as (address, _):
        started = time.monotonic()
        assert push(registry, address, grouping=GROUP, replace=True, seconds=0.5) is False
        assert time.monotonic() - started < PROMPT
    (warning,) = caplog.messages
    assert f"the Pushgateway http://{address} did not take the outcome" in warning
    assert any(part in warning for part in reason.split("|")), warning


@pytest.mark.parametrize("url", ["127.0.0.1:FREE", "no-such-host.invalid:9091", "http://", "ftp://x:1", "http://[::1"])
def test_a_gateway_that_is_not_there_costs_a_warning(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    url = url.replace("FREE", str(free_port()))
    started = time.monotonic()
    assert push(registry, url, grouping=GROUP, replace=True, seconds=2.0) is False
    assert time.monotonic() - started < PROMPT
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("replace", "method"), [(True, b"PUT"), (False, b"POST")])
def test_the_group_has_no_run_in_it(registry: CollectorRegistry, replace: bool, method: bytes) -> None:
    with listening(accept) as (address, heard):
        assert push(registry, address, grouping=GROUP, replace=replace, seconds=5.0)
    assert heard[0].startswith(method + b" /metrics/job/cwbass/pipeline/shapes/stage/train HTTP/1.1\r\n")


def test_a_password_in_the_address_is_sent_and_not_logged(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    with listening(accept) as (address, heard):
        assert push(registry, f"http://ada:pass%2Fword@{address}", grouping=GROUP, replace=True, seconds=5.0)
    assert b"Authorization: Basic YWRhOnBhc3Mvd29yZA==\r\n" in heard[0]  # printf ada:pass/word | base64
    assert not push(registry, "http://ada:pass%2Fword@127.0.0.1:1", grouping=GROUP, replace=True, seconds=5.0)
    assert not push(registry, "http://ada:pass%2Fword@[::1", grouping=GROUP, replace=True, seconds=5.0)
    assert caplog.messages and "pass" not in caplog.text and "ada" not in caplog.text


def test_a_free_port_is_found_and_logged(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        server = serve(registry, address="127.0.0.1", port=0)
    assert server is not None
    (message,) = caplog.messages
    with urlopen(message.removeprefix("metrics: "), timeout=5) as answer:
        assert b"cwbass_train_epoch 3.0" in answer.read()
    server.shutdown()
    server.server_close()


def test_a_port_that_is_taken_is_a_warning(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve(registry, address="127.0.0.1", port=port) is None
    assert f"cannot serve on 127.0.0.1:{port}, training goes on without" in caplog.text


def test_a_file_is_whole_or_the_old_one(registry: CollectorRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text("old")
    broken = CollectorRegistry()
    Gauge("cwbass_broken", "Fails when it is read.", registry=broken).set_function(lambda: 1 / 0)
    assert write_file(broken, path) is False
    assert path.read_text() == "old"
    assert write_file(registry, path) is True
    assert "cwbass_train_epoch 3.0" in path.read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.prom"]
    assert write_file(registry, tmp_path / "missing" / "metrics.prom") is False
    assert "cannot write" in caplog.text
