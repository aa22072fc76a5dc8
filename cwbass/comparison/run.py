"""The commands of a cell, each in a process of its own: its memory is its own, and a kill leaves the others alone.

Whoever works in a folder holds its lock, and so does the command that works there: should the parent be killed, a second
call waits for the orphan, and then finds its work done.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from cwbass.comparison.plan import Cell, Plan, read_json
from cwbass.comparison.variants import SUPERVISED
from cwbass.errors import CwbassError, DataError, Interrupted
from cwbass.evaluation.per_image import CONFUSIONS, PerImage
from cwbass.evaluation.sweep import SWEEP
from cwbass.files import unlink_with_digest, write_whole
from cwbass.jsonfile import read_object
from cwbass.params import Params, dump_params
from cwbass.training.history import write_rows
from cwbass.training.interrupt import handling
from cwbass.training.resume import RUN
from cwbass.training.run import SNAPSHOTS

logger = logging.getLogger(__name__)

REPORTS, RESOURCES, LOCK, PARAMS, GIVEN = "reports", "resources.json", "lock", "params.yaml", "given.yaml"
SNAPSHOT_SCORES = "snapshots.jsonl"  # of states that are deleted: reports may be made again, the states not
UNFINISHED = "unfinished"  # states of trainings: DVC, which deletes a stage's outputs before it runs it, knows nothing of them


@dataclass(frozen=True, slots=True)
class Job:
    """A command, where it writes, and the file that says it is done."""

    name: str
    folder: Path
    result: Path
    arguments: Sequence[str]
    stdout: Path | None = None  # the command's result is what it prints
    read: Callable[[Path], object] | None = None  # raises a DataError where the result cannot be used

    def done(self) -> bool:
        """Whether the result is there, and whole where that can be told."""
        try:
            if self.read is not None and self.result.exists():
                self.read(self.result)
        except DataError as error:
            logger.warning("%s", error)
            return False
        return self.result.exists()


class JobFailed(CwbassError):
    """A command of a cell ended with an error, of which its log tells, or was killed, which no log tells."""

    def __init__(self, job: Job, code: int, log: Path) -> None:
        ended = f"ended with exit code {code}"
        if code < 0:
            ended = f"was killed by signal {-code} ({signal.strsignal(-code)})"
            ended += ", mostly for want of memory" if -code == signal.SIGKILL else ""
        super().__init__(f"cwbass {job.name} {ended}: see {log}")
        self.exit_code = code if code > 0 else 128 - code


class Worker:
    """Runs jobs one after the other. Inside ``with``, a request to stop goes to the job, and nothing new is started.

    Args:
        out: Folder of the comparison; jobs work below it.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._failed: dict[Path, JobFailed] = {}  # what several cells need is not tried again for each
        self._received: signal.Signals | None = None
        self._child: int | None = None
        self._handling = handling(self._pass_on)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)

    def run(self, job: Job) -> None:
        """Run a job, unless it is done.

        Raises:
            Interrupted: A signal came; the same call goes on.
            JobFailed: It failed.
        """
        self._check()
        if job.done():
            return
        if job.result in self._failed:
            raise self._failed[job.result]
        with self.locked(job.folder) as lock:
            if not job.done():
                self._run(job, lock)

    def _run(self, job: Job, lock: int) -> None:
        log_path = job.folder / f"{job.name}.log"
        started = time.monotonic()
        logger.info("%s: cwbass %s", job.folder, job.name)
        partial = None if job.stdout is None else job.stdout.with_name(f".{job.stdout.name}.tmp")
        with log_path.open("a") as log, partial.open("w") if partial else log_path.open("a") as out:
            # In a session of its own: a terminal's Ctrl-C comes once, through us.
            child = subprocess.Popen(
                [sys.executable, "-m", "cwbass", *job.arguments],
                stdout=out,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                env=os.environ | self._telling(job),
            )
            self._child = child.pid
            if self._received is not None:
                os.kill(child.pid, self._received)
            _, status, used = os.wait4(child.pid, 0)
            self._child, child.returncode = None, os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        _add_resources(job.folder / RESOURCES, job.name, seconds, used.ru_maxrss * 1024 / 1e6)
        self._check()
        if child.returncode == Interrupted.exit_code:
            raise Interrupted(
                f"cwbass {job.name} was stopped: see {log_path}. Run the same command again: it goes on from there."
            )
        if child.returncode:
            raise self._failed.setdefault(job.result, JobFailed(job, child.returncode, log_path))
        if partial is not None and job.stdout is not None:
            os.replace(partial, job.stdout)
        logger.info("%s: cwbass %s took %.0f s", job.folder, job.name, seconds)

    def _telling(self, job: Job) -> dict[str, str]:
        """Whose metrics a job's are: cells push to one gateway at the same time, and must not take each other's place."""
        pipeline = os.environ.get("CWBASS_PIPELINE", "").strip() or "default"
        return {"CWBASS_PIPELINE": f"{pipeline}/{job.folder.relative_to(self._out)}"}

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        if self._child is not None:
            os.kill(self._child, number)

    def _check(self) -> None:
        if self._received is not None:
            raise Interrupted(f"stopped by {self._received.name}. Run the same command again: it goes on from there.")

    @contextmanager
    def locked(self, folder: Path) -> Iterator[int]:
        """Hold the lock of a folder, which is made; commands may inherit it.

        Raises:
            Interrupted: A signal came while another process held it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            waiting = False
            while True:
                self._check()
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waiting:
                        logger.warning("another process is at work in %s: waiting for it", folder)
                    waiting = True
                    time.sleep(0.5)
            yield descriptor
        finally:
            os.close(descriptor)


def measure_jobs(plan: Plan, variants: Sequence[str]) -> Iterator[Job]:
    """What it takes to know the costs of variants. Where minutes do not count no step is timed: trainings say what theirs took."""
    for name in variants:
        split = _split_job(plan.group_params(next(plan.cells())), plan.cost_split_folder)
        yield split
        result = plan.cost_file(name)
        file = _write_params(result.with_suffix(".yaml"), dump_params(plan.cost_params(name)))
        arguments = ["measure", "--params", file, "--manifest", str(split.result)]
        arguments += [] if plan.budget.kind == "minutes" else ["--no-time"]
        yield Job("measure", result.parent, result, arguments, stdout=result)


def cell_jobs(plan: Plan, cell: Cell) -> Iterator[Job]:
    """What it takes to know a cell's scores: split, warm-up, training, evaluation. The baseline is trained in the warm-up."""
    split = _split_job(plan.group_params(cell), plan.split_folder(cell))
    yield split
    if plan.cost(cell.variant) is None:
        yield from measure_jobs(plan, [cell.variant])
    warmup, folder, manifest = plan.warmup_folder(cell), plan.folder(cell), str(split.result)
    file = _write_params(warmup / PARAMS, dump_params(plan.warmup_params(cell)))
    arguments = ["warmup", "--params", file, "--manifest", manifest, "--out", str(warmup)]
    yield Job("warmup", warmup, warmup / RUN, [*arguments, "--work", str(plan.out / UNFINISHED / warmup.relative_to(plan.out))])
    file = _write_params(folder / PARAMS, dump_params(plan.cell_params(cell)))
    trained = warmup
    if cell.variant != SUPERVISED:
        trained = folder
        arguments = ["train", "--params", file, "--manifest", manifest, "--warmup", str(warmup / "warmup.pt")]
        arguments += ["--out", str(folder), "--work", str(plan.out / UNFINISHED / cell.id)]
        yield Job("train", folder, folder / RUN, arguments)
    reports = folder / REPORTS
    arguments = ["eval", "--per-image", "--params", file, "--manifest", manifest]
    arguments += ["--checkpoint", str(trained), "--out", str(reports)]
    if (sweep := warmup / SWEEP).is_file():
        arguments += ["--sweep", str(sweep)]
    yield Job("eval", folder, reports / CONFUSIONS, arguments, read=PerImage.read)
    if snapshots := list(trained.glob(SNAPSHOTS)):  # they are scored now, and as large as checkpoints
        scored = read_object(reports / "metrics.json", writer="cwbass eval", keys=("snapshots",))
        write_rows(trained / SNAPSHOT_SCORES, scored["snapshots"])
        for snapshot in snapshots:
            unlink_with_digest(snapshot)


def _split_job(params: Params, folder: Path) -> Job:
    if not (folder / "manifest.json").exists():
        (folder / PARAMS).unlink(missing_ok=True)  # earlier versions wrote theirs here, before the step
    file = _write_params(folder / GIVEN, dump_params(params))  # beside the step's own params.yaml, which it writes over nobody's
    return Job("split", folder, folder / "manifest.json", ["split", "--params", file, "--out", str(folder)])


def _write_params(path: Path, text: str) -> str:
    write_whole(path, text.encode())
    return str(path)


def resources(path: Path) -> dict[str, Any]:
    """Seconds and peak memory by command; empty where nobody saw them."""
    return read_json(path) if path.is_file() else {}


def _add_resources(path: Path, name: str, seconds: float, peak_mb: float) -> None:
    """A command that goes on where it was has taken all its parts' time, and the most memory of any."""
    there = resources(path)
    before = there.get(name, {"seconds": 0.0, "peak_mb": 0.0})
    there[name] = {"seconds": before["seconds"] + seconds, "peak_mb": max(before["peak_mb"], peak_mb)}
    write_whole(path, f"{json.dumps(there, indent=1)}\n".encode())
