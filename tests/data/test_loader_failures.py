"""Loader processes that die, raise, or are signalled.

Each case is a program of its own: torch tells of a loader process's death by an exception at whatever line is running, and
that would be one of pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cwbass.data.streams import loader_failures

PROGRAM = """
import os, signal, sys
import torch
from dying import Fatal
from cwbass.data.streams import loader_failures, make_loader
from cwbass.errors import CwbassError

def main():
    try:
        with loader_failures():
            loader = iter(make_loader(Fatal(sys.argv[1]), torch.stack, start=0, stop=12, batch_size=1, workers=1, pin_memory=False))
            worker = int(next(loader)[0, 1])
            for number in (signal.SIGINT, signal.SIGTERM):  # whoever presses Ctrl-C signals the whole group
                os.kill(worker, number)
            for batch in loader:
                print(int(batch[0, 0]), flush=True)
    except CwbassError as error:
        print(type(error).__name__, error, flush=True)
        os._exit(error.exit_code)

if __name__ == "__main__":
    main()
"""


def run(how: str, folder: Path) -> tuple[int, list[str]]:
    """Exit code and lines of the program."""
    (folder / "program.py").write_text(PROGRAM)
    top = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(top), str(top / "tests")])}
    command = [sys.executable, str(folder / "program.py"), how]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout.splitlines()


def test_a_loader_process_leaves_signals_to_the_main_one_and_its_death_is_told_with_what_to_do(tmp_path: Path) -> None:
    code, lines = run("killed", tmp_path)
    assert code == 6
    assert lines[:3] == ["1", "2", "3"]
    assert lines[-1].startswith("ServiceError a loader process died (DataLoader worker")
    assert "want of memory: lower train.workers or the batch" in lines[-1]


def test_an_error_in_a_loader_process_is_the_error_of_the_run_without_a_traceback(tmp_path: Path) -> None:
    assert run("raises", tmp_path) == (4, [*map(str, range(1, 10)), "DataError images/a.png is torn: 3 bytes. Copy it again."])


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), loader_failures():
        raise RuntimeError("CUDA out of memory")
