"""Ways out for metrics: a port to be scraped, a Pushgateway, a text file. None may hold up or stop a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, push_to_gateway, pushadd_to_gateway, start_http_server, write_to_textfile
from prometheus_client.exposition import basic_auth_handler, default_handler

logger = logging.getLogger(__name__)
R = TypeVar("R")

JOB = "cwbass"
BIND_SECONDS = 5.0


def serve(registry: CollectorRegistry, *, address: str, port: int) -> WSGIServer | None:
    """Serve metrics from a thread.

    Args:
        registry: What to show.
        address: Interface to listen on.
        port: 0 takes a free one.

    Returns:
        The server; None, after a warning, where the port cannot be had.
    """
    try:
        # Binding looks up this host's name, which may take a broken resolver minutes.
        server, _ = _within(BIND_SECONDS, lambda: start_http_server(port, address, registry))
    except Exception as error:
        logger.warning("metrics: cannot serve on %s:%d, training goes on without (%s)", address, port, _reason(error))
        return None
    host = f"[{address}]" if ":" in address else address
    logger.info("metrics: http://%s:%d/metrics", host, server.server_port)
    return server


def push(registry: CollectorRegistry, url: str, *, grouping: Mapping[str, str], replace: bool, seconds: float) -> bool:
    """Push to a Pushgateway, once.

    Args:
        registry: What to push.
        url: Of the gateway; a user and password in it are sent as basic authentication.
        grouping: Labels of the group, beside ``job``.
        replace: Whether what the group holds is replaced (PUT), or only metrics of the same names (POST).
        seconds: After these the push is given up: name look-up, connection and answer together.

    Returns:
        Whether it arrived; after a warning if not.
    """
    send = push_to_gateway if replace else pushadd_to_gateway
    target = "(its address is no URL)"
    try:
        target, handler = _without_password(url)
        # urllib's timeout is one for each read, so a gateway that sends a byte now and then would hold us for ever.
        _within(
            seconds,
            lambda: send(target, job=JOB, registry=registry, grouping_key=dict(grouping), timeout=seconds, handler=handler),
        )
    except Exception as error:
        logger.warning("metrics: the Pushgateway %s did not take the outcome (%s)", target, _reason(error))
        return False
    return True


def look_for_gateway(url: str, *, seconds: float) -> tuple[str, str | None]:
    """Whether a Pushgateway answers; nothing is pushed.

    Args:
        url: As for :func:`push`.
        seconds: As for :func:`push`.

    Returns:
        Its address without a password, and why it does not answer; None where it does.
    """
    target = "(its address is no URL)"
    try:
        target, handler = _without_password(url)
        page = f"{target.rstrip('/')}/api/v1/status"  # Prometheus has none there, nor have most other services
        _within(seconds, handler(url=page, method="GET", timeout=seconds, headers=[], data=None))
    except Exception as error:
        return target, _reason(error)
    return target, None


def write_file(registry: CollectorRegistry, path: Path) -> bool:
    """Write metrics for the textfile collector of the node exporter, atomically.

    Returns:
        Whether it was written; after a warning if not.
    """
    try:
        write_to_textfile(str(path), registry)
    except Exception as error:
        logger.warning("metrics: cannot write %s (%s)", path, _reason(error))
        return False
    return True


def _within(seconds: float, action: Callable[[], R]) -> R:
    """The result of ``action``, or TimeoutError; what hangs is left to a thread that ends with the process."""
    result: Future[R] = Future()

    def run() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="metrics", daemon=True).start()
    return result.result(timeout=seconds)


def _without_password(url: str) -> tuple[str, Callable[..., Any]]:
    """The address, fit to be logged, and how to send to it."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    userinfo, at, host = parts.netloc.rpartition("@")
    plain = urlunsplit((parts.scheme, host, parts.path, "", ""))
    if not at:
        return plain, default_handler
    user, _, password = userinfo.partition(":")
    return plain, partial(basic_auth_handler, username=unquote(user), password=unquote(password))


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "it took too long"
    return f"{type(error).__name__}: {error}"
