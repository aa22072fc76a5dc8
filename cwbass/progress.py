"""How far a long loop is: a bar with the time to go on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0  # between two lines


def new_bar() -> Progress | None:
    """A bar on stderr, to be started; None where that is no terminal, or is for warnings alone."""
    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Inside, people see how many are done; each call of what it gives says that it is one more.

    Args:
        what: To show.
        total: How many there are.
    """
    if (bar := new_bar()) is not None:
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    done, started = 0, time.monotonic()
    told = started

    def one_more() -> None:
        nonlocal done, told
        done, now = done + 1, time.monotonic()
        if now - told >= LINE_SECONDS and done < total:
            told = now
            logger.info("%s: %d of %d, %.1f min left", what, done, total, (now - started) / done * (total - done) / 60)

    yield one_more
