"""torchrun, with the exit code of the process that failed and one line that says which it was.

    python -m cwbass.training.torchrun --standalone --nproc-per-node 2 -m cwbass train ...

Options, environment (PET_*) and processes are torchrun's own. That one ends with 1 whatever happened, so
whoever started it cannot tell a wrong parameter, which no retry mends, from a lost node. On SIGTERM, SIGINT
and SIGHUP that one gives its processes 30 seconds and does not look how they end; here they get the signal
and all the time they need to finish the step and save, and their code, 75, is ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import NoReturn

from cwbass.search_path import leave_out_working_directory
from cwbass.training.interrupt import handling, stop_signals


def main(arguments: Sequence[str]) -> NoReturn:
    """Run torchrun and end with the code of its processes: 0, that of the first to fail, or 128 + the signal."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its account of a failure fills a screen
    options = parse_args(list(arguments))  # type: ignore[no-untyped-call]
    _pass_signals_on(options)
    if str(options.nproc_per_node).isdecimal():  # torchrun says the same with a warning
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(options.nproc_per_node))))
    try:
        run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        failed = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        code = exit_code([failure.exitcode for _, failure in failed])
        ranks = ", ".join(str(rank) for rank, _ in failed)
        print(f"error: training ended with exit code {code} (process {ranks}); the line of its error is above.", file=sys.stderr)
        sys.exit(code)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    sys.exit(0)


def _pass_signals_on(options: argparse.Namespace) -> None:
    """Let a request to stop go on to the processes, and torchrun wait for what they make of it."""
    if not hasattr(options, "signals_to_handle"):  # an older torch keeps all signals to itself, and ends with 143
        return
    names = {"SIGTERM", "SIGINT", "SIGHUP"}
    theirs = [name.strip() for name in options.signals_to_handle.split(",")]
    options.signals_to_handle = ",".join(name for name in theirs if name not in names)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not (processes := children(os.getpid())):  # not started yet: nothing to save
            sys.exit(128 + number)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    for number in stop_signals():
        signal.signal(number, pass_on)


def children(process: int) -> list[int]:
    """Process ids of a process's children, which torchrun and kfp do not give away."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended in the meantime
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == process and state != "Z":
                found.append(int(stat.parent.name))
    return found


def run_processes(processes: int, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> int:
    """Run a verb of cwbass in several processes on this machine; their output is ours.

    What asks to stop goes on to them, once, and they are waited for.

    Args:
        processes: How many.
        arguments: Of the command line: ``["train", "--params", ...]``.
        environment: Variables beside those of this process.

    Returns:
        The exit code of :func:`main`.
    """
    command = [sys.executable, "-m", __name__, "--standalone", f"--nproc-per-node={processes}", "-m", "cwbass", *arguments]
    # In a session of its own: what a terminal or shell sends to all comes by us alone.
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment})
    with handling(lambda number, frame: process.send_signal(number)):
        code = process.wait()
    return code if code >= 0 else 128 - code


def exit_code(codes: Iterable[int]) -> int:
    """The code that says most of why processes failed.

    When one fails, the others lose it, and may end before torchrun looks, or are told to end by torchrun: the first code
    that is neither 1 nor a signal counts, then 1, then the first signal as 128 + its number.

    Args:
        codes: Of the processes that failed, the first to fail first; a signal is negative, or 128 + its number.
    """
    codes = list(codes)
    for wanted in ([code for code in codes if 1 < code <= 128], [code for code in codes if code == 1]):
        if wanted:
            return wanted[0]
    return codes[0] if codes[0] > 0 else 128 - codes[0]


if __name__ == "__main__":
    leave_out_working_directory()
    main(sys.argv[1:])
