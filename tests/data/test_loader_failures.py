"""Loader processes that die, raise, or are signalled.

They belong to a program of their own: torch tells of a loader process's death by an exception at whatever line is running,
and that would be one of pytest's. One program has all failures, for its imports take seconds.
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

def fail(how):
    try:
        with loader_failures():
            loader = iter(make_loader(Fatal(how), torch.stack, start=0, stop=12, batch_size=1, workers=1, pin_memory=False))
            worker = int(next(loader)[0, 1])
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # a terminal signals the whole group
                os.kill(worker, number)
            for batch in loader:
                print(how, int(batch[0, 0]), flush=True)
    except CwbassError as error:
        print(how, error.exit_code, type(error).__name__, error, flush=True)

def main():
    fail("raises")
    fail("killed")
    fail("full")
    os._exit(0)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Lines of the program, by how its loader fails."""
    program = tmp_path_factory.mktemp("loaders") / "program.py"
    program.write_text(PROGRAM)
    top = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(top), str(top / "tests")])}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a loader process cannot hand on a batch: unable to ") == 1
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return {how: [rest for kind, _, rest in lines if kind == how] for how in ("raises", "killed", "full")}


def test_a_loader_process_leaves_signals_to_the_main_one_and_its_death_is_told_with_what_to_do(
    said: dict[str, list[str]],
) -> None:
    lines = said["killed"]
    assert lines[:3] == ["1", "2", "3"]
    assert lines[-1].startswith("6 ServiceError a loader process died (DataLoader worker")
    assert "want of memory: lower train.workers or the batch" in lines[-1]


def test_a_batch_for_which_there_is_no_shared_memory_ends_the_training_and_is_not_waited_for(said: dict[str, list[str]]) -> None:
    assert said["full"][-1].startswith("6 ServiceError a loader process died (DataLoader worker")


def test_an_error_in_a_loader_process_is_the_error_of_the_run_without_a_traceback(said: dict[str, list[str]]) -> None:
    assert said["raises"] == [*map(str, range(1, 10)), "4 DataError images/a.png is torn: 3 bytes. Copy it again."]


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), loader_failures():
        raise RuntimeError("CUDA out of memory")
