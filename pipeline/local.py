"""A whole pipeline on this machine: every step a process of its own, no container and no cluster."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from kfp import local

import cwbass.errors
from cwbass.errors import CwbassError, Interrupted
from cwbass.steps.runs import run_folder
from cwbass.training.interrupt import handling
from cwbass.training.lock import lock_folder
from cwbass.training.torchrun import children
from pipeline import compare, dag

LOG = "log.txt"
_CAUSE = re.compile(r"^( *)cwbass\.[\w.]*?(\w+): (.*(?:\n\1  .*)*)$", flags=re.MULTILINE)  # and its further lines
_COLOR = re.compile(r"\x1b\[\d*m")


def run_local(arguments: Mapping[str, str], out: Path) -> Path:
    """Split, warm up, train, evaluate and register.

    Paths in the parameters are relative to the working directory, as they are for ``dvc repro``.

    Args:
        arguments: From ``pipeline_arguments``.
        out: Folder for runs; each gets one of its own below it.

    Returns:
        Folder of the run, which holds ``<task>/<artifact>`` and log.txt.

    Raises:
        CwbassError: A task failed (in the class of its error, where it is one of ours) or did not run.
        Interrupted: A signal came, and the state of the training is saved.
        ServiceError: Another process runs a pipeline in that folder.
    """
    try:
        return _run(dag.build(arguments, image="", **_here(out)), dag.NAME, out)
    except Interrupted as error:
        raise Interrupted(f"{error} That is the step's own command: run-local begins a new run.") from error


def run_local_compare(arguments: Mapping[str, Any], out: Path) -> Path:
    """Compare methods, one cell after the other; what an earlier call with the same ``out`` has done is not done again.

    Args:
        arguments: From ``compare_arguments``.
        out: Folder for runs; each gets one of its own below it, and they share the folder of the comparison.

    Returns:
        Folder of the comparison, as ``cwbass compare`` writes it.

    Raises:
        CwbassError: A task failed (in the class of its error, where it is one of ours) or did not run.
        Interrupted: A signal came; the same call goes on.
        ServiceError: Another process runs a pipeline in that folder.
    """
    here = _here(out)
    _run(compare.build(arguments, **here, run_id="local", at_once=1), compare.NAME, out)
    return run_folder(Path(here["runs"]), "local", "compare")


def _here(out: Path) -> dict[str, Any]:
    """What differs from a cluster: a retry would wait for minutes, and the same machine gives the same answer."""
    return {"runs": str((out / "runs").resolve()), "retries": 0, "environment": {}}


def _run(pipeline: Any, name: str, out: Path) -> Path:
    """Run every task of a pipeline with kfp's local runner, once each; its talk goes to stderr and log.txt."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(out))
    log, failure, stop = out / LOG, None, _Stop()
    with (
        lock_folder(out),  # another run's log would be this one, and its folder could be taken for this run's
        log.open("w", encoding="utf-8") as file,
        redirect_stdout(_Tee(sys.stderr, file)),
        warnings.catch_warnings(),
        handling(stop.pass_on),
    ):
        warnings.filterwarnings("ignore", module=r"kfp\.local")  # pods' resources and images mean nothing here
        before = set(out.glob(f"{name}-*"))
        try:
            pipeline()
        except RuntimeError as error:  # kfp's only word for a task that failed
            failure = error
        folder = next(iter(set(out.glob(f"{name}-*")) - before), None)
        if folder is not None:
            log = log.rename(folder / LOG)
    if failure is not None or folder is None:
        error = failure_of(str(failure or "nothing ran"), log)
        if stop.received is not None and not isinstance(error, Interrupted):
            error.exit_code = 128 + stop.received
        raise error from failure
    check_all_ran(pipeline.pipeline_spec, folder)
    return folder


def check_all_ran(spec: Any, folder: Path) -> None:
    """Refuse a run that left a task out: kfp's local runner may skip one, warn, and call it a success.

    Args:
        spec: The compiled pipeline.
        folder: Of the run.

    Raises:
        CwbassError: A task has left nothing.
    """
    tasks = [name.removeprefix("comp-") for name, component in spec.components.items() if component.executor_label]
    missing = sorted(name for name in tasks if not any(folder.rglob(f"{name}/executor_output.json")))
    if missing:
        raise CwbassError(f"{', '.join(missing)} did not run, though kfp reports success; see {folder / LOG}.")


class _Stop:
    """A request to stop goes to the task that runs, which kfp waits for; between two tasks it ends the process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if not (tasks := [task for child in children(os.getpid()) for task in _below_shell(child)]):
            sys.exit(128 + number)
        for task in tasks:
            with suppress(ProcessLookupError):
                os.kill(task, number)


def _below_shell(process: int) -> list[int]:
    """What runs in the shell in which kfp starts a task; a shell would die of the signal and tell nobody. Else the process itself."""
    with suppress(OSError):  # it has ended in the meantime
        if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sh\0"):
            return children(process) or [process]
    return [process]


class _Tee(io.TextIOBase):
    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()


def failure_of(told: str, log: Path) -> CwbassError:
    """The error of the task that failed: its process is gone, its last words are in the log.

    Args:
        told: What kfp says.
        log: Output of the run.
    """
    told = _COLOR.sub("", told)
    task = told.partition("Inner task failed: ")[2].rstrip(".").replace("'", "") or "the run"
    causes = _CAUSE.findall(log.read_text(encoding="utf-8"))
    if not causes:
        return CwbassError(f"{task} failed; its output is in {log} ({told})")
    _, name, message = causes[-1]
    kind = getattr(cwbass.errors, name, CwbassError)
    return kind(f"{task} failed: {' '.join(message.split())} (All of its output: {log})")
