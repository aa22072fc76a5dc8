"""What people see of a long loop."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from cwbass import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, as the loop reads them."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_thirty_seconds_and_none_at_the_end(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with progress.counting("predict", 6) as one_more:
        for _ in range(6):
            clock[0] += 12.0
            one_more()
    assert caplog.messages == ["predict: 3 of 6, 0.6 min left"]  # at 36 s; the sixth at 72 s is the last


def test_a_terminal_shows_a_bar_but_not_where_only_warnings_are_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    caplog.set_level(logging.INFO)
    assert progress.new_bar() is not None
    with progress.counting("predict", 2) as one_more:
        one_more()
    assert not caplog.messages
    caplog.set_level(logging.WARNING)  # as `cwbass --quiet` does
    assert progress.new_bar() is None
