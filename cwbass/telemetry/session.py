"""Telemetry of one step, from its start to its outcome: settings from the environment, and who exports what."""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

import cwbass
from cwbass.errors import GateError, Interrupted, ParamsError
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.telemetry.export import push, serve, write_file
from cwbass.telemetry.metrics import Exposed, Metrics
from cwbass.telemetry.recorder import Recorder

logger = logging.getLogger(__name__)

TEXTFILE = "metrics.prom"
_STOPPED = tuple(128 + each for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))  # codes of a handler that ends a command


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Where the metrics of a step go; by default nowhere."""

    port: int | None = None  # CWBASS_METRICS_PORT: served while the step runs; 0 takes a free port
    address: str = "127.0.0.1"  # CWBASS_METRICS_ADDRESS: interface to listen on; 0.0.0.0 or :: in a pod
    linger: float = 0.0  # CWBASS_METRICS_LINGER: seconds to go on serving when the step is done
    textfile: Path | None = None  # CWBASS_METRICS_TEXTFILE: a file, or a folder for cwbass_<stage>.prom
    pushgateway: str | None = None  # CWBASS_PUSHGATEWAY: host:port or URL
    push_timeout: float = 5.0  # CWBASS_PUSHGATEWAY_TIMEOUT: seconds that the one push may take
    pipeline: str = "default"  # CWBASS_PIPELINE: what is trained again and again; groups what is pushed
    run_id: str = ""  # CWBASS_RUN_ID
    revision: str = ""  # CWBASS_REVISION: of the code, where there is no checkout: in an image
    rank: int = 0  # RANK, which torchrun sets: only the first process exports

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **given: Any) -> Self:
        """Settings from variables; an empty one counts as not set.

        Args:
            environment: Usually ``os.environ``.
            given: Settings that win over the variables, unless None.

        Raises:
            ParamsError: A variable is no number, or out of range.
        """
        found: dict[str, Any] = {}
        for name, variable, kind in (
            ("port", "CWBASS_METRICS_PORT", _port),
            ("address", "CWBASS_METRICS_ADDRESS", str),
            ("linger", "CWBASS_METRICS_LINGER", _seconds),
            ("textfile", "CWBASS_METRICS_TEXTFILE", Path),
            ("pushgateway", "CWBASS_PUSHGATEWAY", str),
            ("push_timeout", "CWBASS_PUSHGATEWAY_TIMEOUT", _seconds),
            ("pipeline", "CWBASS_PIPELINE", str),
            ("run_id", "CWBASS_RUN_ID", str),
            ("revision", "CWBASS_REVISION", str),
            ("rank", "RANK", int),
        ):
            if text := environment.get(variable, "").strip():
                try:
                    found[name] = kind(text)
                except ValueError as error:
                    raise ParamsError(f"{variable} is {text!r}: {error}. Correct it, or unset it.") from error
        return cls(**{**found, **{name: value for name, value in given.items() if value is not None}})


@contextmanager
def observe(stage: str, settings: TelemetrySettings, *, out_dir: Path | None = None) -> Iterator[Telemetry]:
    """Telemetry for a step; when it ends, however it ends, the outcome is pushed and written.

    What the step raises passes through. Nothing here raises, and the end is held up by
    ``push_timeout`` and ``linger`` at most.

    Args:
        stage: One of STAGES.
        settings: Who is told.
        out_dir: Folder that gets a ``metrics.prom`` where ``settings.textfile`` names no other place.
    """
    recorder = _recorder(stage, settings) if settings.rank == 0 else None
    if recorder is None:
        yield SILENT
        return
    metrics = recorder.metrics
    shown = _exposed(metrics.registry)
    server = None if settings.port is None else serve(shown, address=settings.address, port=settings.port)
    started, outcome = time.monotonic(), "failed"
    try:
        yield recorder
        outcome = "success"
    except GateError:
        outcome = "refused"
        raise
    except (Interrupted, KeyboardInterrupt) as stop:
        outcome = "interrupted"
        if isinstance(stop, KeyboardInterrupt):
            recorder.interrupted("SIGINT")
        raise
    except SystemExit as stop:
        if stop.code in _STOPPED:
            outcome = "interrupted"
        raise
    finally:
        recorder.finished(outcome, time.monotonic() - started)
        if (path := _textfile(settings, stage, out_dir)) is not None:
            write_file(shown, path)
        if settings.pushgateway is not None:
            pushed = _exposed(metrics.registry, {found.name for found in metrics.definitions if found.outcome})
            # A failure adds to its group: replacing it would forget when the step last succeeded.
            push(
                pushed,
                settings.pushgateway,
                grouping={"pipeline": settings.pipeline, "stage": stage},
                replace=outcome == "success",
                seconds=settings.push_timeout,
            )
        if server is not None:
            if settings.linger and outcome != "interrupted":
                logger.info("metrics: served for %g seconds more", settings.linger)
                with suppress(KeyboardInterrupt, SystemExit):  # a request to stop ends this, and not a step that is done
                    time.sleep(settings.linger)
            server.shutdown()
            server.server_close()


def observe_here(stage: str, *, out_dir: Path | None = None, **given: Any) -> AbstractContextManager[Telemetry]:
    """:func:`observe`, with the settings of this process's environment.

    Args:
        stage: One of STAGES.
        out_dir: As for :func:`observe`.
        given: Settings that win over the environment, unless None.
    """
    return observe(stage, TelemetrySettings.from_environment(os.environ, **given), out_dir=out_dir)


@contextmanager
def observe_failure(observe: Callable[[], AbstractContextManager[Telemetry]]) -> Iterator[None]:
    """Around what comes before a step that observes itself: tells of an end in an error, and else nothing.

    Args:
        observe: Opens the telemetry of the step.
    """
    try:
        yield
    except BaseException:
        with observe():
            raise


def _recorder(stage: str, settings: TelemetrySettings) -> Recorder | None:
    try:
        recorder = Recorder(Metrics(CollectorRegistry()), stage=stage, run_id=settings.run_id)
        recorder.describe_build(_build(settings.revision))
        return recorder
    except Exception as error:  # of the client library: its own variables can break it
        logger.warning("metrics: none can be kept, the step goes on without (%s: %s)", type(error).__name__, error)
        return None


def _exposed(registry: CollectorRegistry, names: set[str] | None = None) -> CollectorRegistry:
    shown = CollectorRegistry()
    shown.register(Exposed(registry, names))
    return shown


def _textfile(settings: TelemetrySettings, stage: str, out_dir: Path | None) -> Path | None:
    # os.path.isdir, unlike Path.is_dir, does not raise where permission is missing.
    if settings.textfile is not None:
        return settings.textfile / f"cwbass_{stage}.prom" if os.path.isdir(settings.textfile) else settings.textfile
    # A step that failed early has not made its folder, and need not have one for this.
    return out_dir / TEXTFILE if out_dir is not None and os.path.isdir(out_dir) else None


def _build(revision: str) -> dict[str, str]:
    import torch

    from cwbass.provenance import code_revision

    return {
        "version": cwbass.__version__,
        "revision": revision or code_revision() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError("a port is a number from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError("seconds are a number from 0 on")
    return seconds
