"""Command lines, called in this process: torch takes seconds to load."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from cwbass.cli import main

TOP = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and both streams."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str | Path) -> Done:
    """`cwbass` as a user has it, in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        return Done(*run(main, "cwbass", *arguments))


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
