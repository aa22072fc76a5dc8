"""Command lines, called in this process: torch takes seconds to load."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

import cwbass.cli
import pipeline.__main__

TOP = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and both streams."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: object) -> Done:
    """`cwbass` as a user has it, in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        return Done(*run(cwbass.cli.main, "cwbass", *arguments))


def call_pipeline(*arguments: object) -> Done:
    """``python -m pipeline``, likewise, on a wide terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        patch.setattr(logging.getLogger(), "handlers", [])  # those of this process would keep the talk
        patch.setenv("COLUMNS", "200")
        return Done(*run(pipeline.__main__.main, "pipeline", *arguments))


def run(program: Callable[[], None], *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program's ``main``; ``argv`` begins with its name."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [*map(str, argv)])
        try:
            program()
        except SystemExit as stop:
            code = stop.code or 0
    assert isinstance(code, int)
    return code, out.getvalue(), err.getvalue()
