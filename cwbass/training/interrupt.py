"""SIGTERM, SIGINT and SIGHUP while training runs: the first asks it to stop, the second stops it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

# systemd and Slurm signal every process, and a parent passes its own signal on: within so many seconds it is one request.
SAME_REQUEST = 1.0


def stop_signals() -> list[signal.Signals]:
    """What asks to stop: SIGTERM, SIGINT, and SIGHUP of a terminal that is closed, unless ``nohup`` has it ignored."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGTERM, signal.SIGINT, *hangup]


@contextmanager
def handling(
    handle: Callable[[int, FrameType | None], object], numbers: Iterable[signal.Signals] | None = None
) -> Iterator[None]:
    """Inside the ``with`` block, signals go to ``handle``; behind it, to what had them before.

    Handlers belong to the main thread; in any other, signals keep doing what they did.

    Args:
        handle: Takes the number and the frame, as Python's handlers do.
        numbers: Which signals; :func:`stop_signals` unless said.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (stop_signals() if numbers is None else numbers)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Inside the ``with`` block, a first one of :func:`stop_signals` is only remembered."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._handling = handling(self._remember)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._received_at >= SAME_REQUEST:
                os._exit(128 + number)  # the default action would do nothing to the first process of a container
            return
        self.received, self._received_at = signal.Signals(number), time.monotonic()
        # Not the logger: the signal may have come while it holds its lock.
        with suppress(OSError):  # Ctrl-C ends the `tee` of a log, too; what is raised here would end the training, unsaved
            os.write(2, f"{self.received.name}: finishing the step, then saving. A second signal stops at once.\n".encode())
