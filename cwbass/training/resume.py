"""Going on where a run was stopped: what is saved while training runs, and how a run finds its way back.

A work folder holds the newest states of one run. Each is a file of tensors and, written after it, a
small one of JSON beside it: which run it belongs to, its SHA-256, and the results it needs, which are kept
under ``files/<sha256>`` (links to checkpoints of the output folder, so they cost no disk until those are
replaced). A state without its JSON, or with another SHA-256, was torn: the one before it counts.

Batches and draws are functions of seed and step (:mod:`cwbass.data.streams`, :mod:`cwbass.training.seed`), so no
loader or generator has a state to save: the step says it all.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Lock
from typing import IO, Any

import torch

from cwbass.errors import CheckpointError, Interrupted, ParamsError, counted
from cwbass.files import file_sha256, place_link, unlink_with_digest, write_digest, write_whole
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint, as_checkpoint, fields_of, load_plain, serialize
from cwbass.training.identity import differences, differing
from cwbass.training.interrupt import StopSignals
from cwbass.training.lock import LOCK, lock_folder
from cwbass.training.mirror import EPOCH, FILES, Mirror, is_commit, is_plain_name, newest_first
from cwbass.world import ALONE, World

logger = logging.getLogger(__name__)

SCHEMA = 1
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("selection", "finished", "guard"), dict),
    **dict.fromkeys(("timings", "skipped", "meters"), list),
    "stopped": bool,
    "device": str,
}
WORK, RUN, FINISHED = "state", "run.json", "finished"
KEPT = 2  # newest states; besides, the newest that was saved at an epoch's end


@dataclass(frozen=True, slots=True)
class Resume:
    """What a caller wants of an earlier run's files."""

    restart: bool = False  # delete them and begin anew
    force: tuple[str, ...] = ()  # keys that may differ; a section stands for all its keys
    keep_state: bool = False  # leave the last state behind, for a caller that may lose the results


@dataclass(frozen=True, slots=True)
class State:
    """A training step between two optimiser steps: all that it needs to go on."""

    checkpoint: Checkpoint  # student, teacher, thresholds, optimiser, counters, history, best, params, split hash
    selection: Mapping[str, Any]  # of the rule that chooses the checkpoint that counts
    timings: list[dict[str, Any]]
    skipped: list[dict[str, Any]]  # steps that were not finite, and their images
    finished: Mapping[str, Mapping[str, Any]]  # stages before this one -> their best
    stopped: bool  # early stop has ended the stage
    meters: list[Mapping[str, Any]]  # of the epoch under way, one for each process
    device: str
    guard: Mapping[str, Any] = field(default_factory=dict)  # of the collapse guard; empty where there is none
    schema: int = SCHEMA

    @property
    def step(self) -> int:
        """Optimiser steps taken, warm-up included."""
        return self.checkpoint.step


class Keeper:
    """Saves the states of one training step, and finds the one to go on from.

    Args:
        out_dir: Where the step's results go.
        folder: Where its states go; None is a folder in ``out_dir``, which is deleted when the step is done.
        identity: From :func:`cwbass.training.identity.run_identity`.
        save_minutes: Between two saves; there is one after every epoch, too.
        resume: What the caller wants of an earlier run's files.
        results: Names, or patterns of them, of what a run leaves in ``out_dir``; see :meth:`begin`.
        mirror: A second place for the states; None has none.
        telemetry: Told of saved and of damaged states, and that training goes on or is stopped.
        world: The processes that train together: the main one reads and writes, the others follow it.

    Raises:
        ParamsError: The folders hold another run; the message names the keys that differ.
        ServiceError: The mirror cannot be read, or another process trains in the folder.
    """

    def __init__(
        self,
        out_dir: Path,
        folder: Path | None,
        identity: Mapping[str, Any],
        *,
        save_minutes: float,
        resume: Resume = Resume(),
        results: Sequence[str] = (),
        mirror: Mirror | None = None,
        telemetry: Telemetry = SILENT,
        world: World = ALONE,
    ) -> None:
        self.out_dir, self.folder, self.identity = out_dir, folder or out_dir / WORK, dict(identity)
        self.save_seconds, self.resume, self.mirror, self.telemetry = 60 * save_minutes, resume, mirror, telemetry
        self.world, self._results = world, results
        self.counts: Counter[str] = Counter()  # saved, fallbacks; the mirror has its own
        self.report: dict[str, Any] | None = None  # of the finished run, where there is nothing left to do
        self.state: State | None = None  # to go on from
        self.finished: dict[str, Mapping[str, Any]] = {}  # stages that are done -> their best
        self._files: dict[str, str] = {}  # results that a later state needs -> SHA-256
        self._held: IO[str] | None = None  # keeps other processes out of the folder
        self._lock = Lock()  # the writer deletes files that no state needs, while new ones are linked
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None
        self._saved_at = time.monotonic()
        self._signals = StopSignals()
        self._open()

    def begin(self) -> None:
        """Take the folder. Where all begins anew, delete what the earlier run left, results too: this one may not write them all.

        Call it when nothing else can be refused any more.

        Raises:
            ServiceError: Another process trains in the folder.
        """
        if not self.world.main:
            return
        self._hold()
        _delete_partial_files(self.out_dir, self.folder)
        if not self.resume.restart:
            return
        self._empty()
        (self.out_dir / RUN).unlink(missing_ok=True)
        for path in [path for name in self._results for path in self.out_dir.glob(name)]:
            unlink_with_digest(path)
        if self.mirror is not None:
            self.mirror.clear()

    def enter(self, stage: str) -> State | None:
        """The state that a stage goes on from; None where it begins."""
        if self.state is None or self.state.checkpoint.stage != stage:
            return None
        state, self.state = self.state, None
        return state

    def listening(self) -> StopSignals:
        """Inside it, SIGTERM, SIGINT and SIGHUP wait for :meth:`after_step`."""
        self._signals, self._saved_at = StopSignals(), time.monotonic()
        return self._signals

    def after_step(self, state: Callable[[], State], *, epoch_ended: bool) -> None:
        """Save, where it is time to or somebody asks to stop.

        Args:
            state: Makes the state of now.
            epoch_ended: Whether an epoch has ended with this step.

        Raises:
            Interrupted: A signal came; the state is saved.
            ServiceError: There is no room; the states before are whole.
        """
        if self._writing is not None and self._writing.done():
            self._wait()
        asked = int(self._signals.received or 0)
        due = epoch_ended or time.monotonic() - self._saved_at >= self.save_seconds
        # What one process wants, all do: twice its signal, and 1 where it is time to save.
        wanted = self.world.agree(2 * asked + due)
        if not wanted:
            return
        stop = wanted // 2
        now = state()
        self._save(now, epoch_ended=epoch_ended)
        if not stop:
            return
        self._wait()
        if self.mirror is not None and self.world.main:
            self.mirror.wait()
        self.world.barrier()  # torchrun ends all processes as soon as one has
        name = signal.Signals(stop).name
        self.telemetry.interrupted(name)
        self._release()
        raise Interrupted(
            f"stopped by {name} after step {now.step} of {now.checkpoint.stage}; the state is in {self.folder}. "
            "Run the same command again: it goes on from there."
        )

    def keep(self, path: Path, digest: str) -> None:
        """Let the states from now on hold a result: a checkpoint that the run, or its end, will need."""
        if not self.world.main:
            return
        with self._lock:
            place_link(path, self.folder / FILES / digest)
            self._files[path.name] = digest

    def drop(self, path: Path) -> None:
        """Delete a result that :meth:`keep` held; the states from now on do not need it."""
        if not self.world.main:
            return
        with self._lock:
            self._files.pop(path.name, None)
        unlink_with_digest(path)

    def finish_stage(self, stage: str, best: Mapping[str, Any]) -> None:
        """A stage is done; what is saved from now on belongs to the next."""
        self.finished[stage] = dict(best)

    def finish(self, report: Mapping[str, Any]) -> None:
        """The step is done: say so in ``run.json``, and clear up.

        Args:
            report: What to answer where the step is asked for again; plain JSON values, no paths.
        """
        self._wait()
        self._writer.shutdown()
        if not self.world.main:
            return
        content = {"schema": SCHEMA, "report": dict(report), "run": self.identity}
        write_whole(self.out_dir / RUN, f"{json.dumps(content, indent=1)}\n".encode())
        if self.mirror is not None:
            self.mirror.close(clear=not self.resume.keep_state)
        if self.resume.keep_state:
            write_whole(self.folder / FINISHED, b"")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def _hold(self) -> None:
        if self._held is None:
            self._held = lock_folder(self.folder)

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()

    def _empty(self) -> None:
        """Delete all in the folder but the lock that is held."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)

    def _open(self) -> None:
        """The first process looks; all go on from what it found."""
        found = self._find() if self.world.main else None
        self.report, found = self.world.collect((self.report, found))[0]
        if found is not None and not self.world.main:
            commit = _read_json(self.folder / f"{found}.json")
            if commit is None:
                raise CheckpointError(
                    f"{self.folder / found}.json is not here. Several machines need a work folder on a shared disk."
                )
            self._take(self._read(found, commit), commit)

    def _find(self) -> str | None:
        """Finds the report of a finished run, or loads a state; returns the state's name."""
        if self.resume.restart:
            return None
        marker = self.out_dir / RUN
        if (done := _read_json(marker)) is not None and _is_report(done):
            missing = [name for name in done["report"]["checkpoints"].values() if not (self.out_dir / name).is_file()]
            if not missing:
                self._compare(done["run"], f"{self.out_dir} holds a finished run")
                self.report = done["report"]
                return None
            logger.warning("%s says that the run is done, but %s is missing: going on without it", marker, ", ".join(missing))
        if self.folder.is_dir() or self.mirror is not None:
            self._hold()
        run = self._newest_run()
        if (self.folder / FINISHED).is_file() and run is not None and differing(run, self.identity):
            logger.info("%s holds the last state of a finished run that differs: beginning anew", self.folder)
            self._empty()
            run = None
        if run is None and self.mirror is not None and self.mirror.fetch(self.folder, self._usable):
            run = self._newest_run()
        if run is None:
            return None
        self._compare(run, f"{self.folder} holds an unfinished run")
        return self._load_newest()

    def _newest_run(self) -> Mapping[str, Any] | None:
        """Which run the newest readable state belongs to."""
        return next((commit["run"] for _, commit in self._commits() if commit is not None), None)

    def _commits(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Names of states, newest first, each with what its JSON says; None where that is torn or missing."""
        for name in sorted({path.stem for kind in ("pt", "json") for path in self.folder.glob(f"*.{kind}")}, key=newest_first):
            commit = _read_json(self.folder / f"{name}.json")
            yield name, commit if is_commit(commit) else None

    def _compare(self, run: Mapping[str, Any], where: str) -> None:
        if lines := differences(run, self.identity, self.resume.force):
            raise ParamsError(
                "\n".join([f"{where} that differs from this one:", *lines])
                + "\nBegin anew with --restart, go on all the same with --resume-force KEY, or choose another --out."
            )

    def _usable(self, name: str, commit: Mapping[str, Any]) -> bool:
        """Whether a state suits this number of processes: another number starts at an epoch's beginning."""
        return bool(commit["world_size"] == self.world.size or name.endswith(EPOCH))

    def _load_newest(self) -> str | None:
        for name, commit in self._commits():
            try:
                if commit is None:
                    raise CheckpointError(f"{self.folder / name}.json is missing or torn.")
                if not self._usable(name, commit):
                    continue
                state = self._read(name, commit)
                for result, digest in commit["files"].items():
                    self._restore(self.out_dir / result, digest)
            except CheckpointError as error:
                self.counts["fallbacks"] += 1
                self.telemetry.checkpoint_damaged()
                logger.warning("%s Going back to the state before it.", error)
                continue
            self._take(state, commit)
            self._tell(state, commit)
            self.telemetry.resumed()
            self._delete_newer_than(name)
            return name
        logger.warning("%s holds no state to go on from: beginning anew", self.folder)
        return None

    def _read(self, name: str, commit: Mapping[str, Any]) -> State:
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if (found := file_sha256(path)) != commit["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is {found[:12]}, not {commit['sha256'][:12]}.")
        content = load_plain(path)
        names = {item.name for item in fields(State)}
        if not isinstance(content, dict) or {"guard", *content} != names:  # states were without a guard once
            raise CheckpointError(f"{path} is no state of a run.")
        if wrong := [name for name, kind in _KINDS.items() if not isinstance(content.get(name, {}), kind)]:
            raise CheckpointError(f"{path} is no state of a run: {', '.join(wrong)} hold something else.")
        return State(**{**content, "checkpoint": as_checkpoint(content["checkpoint"], path)})

    def _take(self, state: State, commit: Mapping[str, Any]) -> None:
        self.state, self.finished, self._files = state, dict(state.finished), dict(commit["files"])

    def _restore(self, path: Path, digest: str) -> None:
        """Put a result back as it was: a later one may have taken its place, or the folder may be a new one."""
        if path.is_file() and file_sha256(path) == digest:
            return
        kept = self.folder / FILES / digest
        if not kept.is_file() or file_sha256(kept) != digest:
            raise CheckpointError(f"{kept}, which was {path.name}, is missing or damaged.")
        place_link(kept, path, replace=True)
        write_digest(path, digest)

    def _tell(self, state: State, commit: Mapping[str, Any]) -> None:
        logger.info("going on with %s after step %d, saved in %s", state.checkpoint.stage, state.step, self.folder)
        if (before := commit["world_size"]) != self.world.size:
            logger.warning(
                "%s now, %d before: going on from the beginning of an epoch, after step %d",
                counted(self.world.size, "process", "processes"),
                before,
                state.step,
            )
        if forced := differing(commit["run"], self.identity):
            logger.warning("going on although these differ: %s", ", ".join(forced))
        if commit["torch"] != torch.__version__:
            logger.warning("torch is %s now, %s before: results may differ in rounding", torch.__version__, commit["torch"])

    def _delete_newer_than(self, name: str) -> None:
        """They are torn, or begin where this run will not go."""
        for other, _ in list(self._commits()):
            if other == name:
                return
            _delete_state(self.folder, other)

    def _save(self, state: State, *, epoch_ended: bool) -> None:
        self._saved_at = time.monotonic()
        if not self.world.main:
            return
        name = f"{len(self.finished)}-{state.checkpoint.stage}-{state.step:08d}{EPOCH if epoch_ended else ''}"
        data = serialize({**fields_of(state), "checkpoint": fields_of(state.checkpoint)})
        commit = {
            "schema": SCHEMA,
            "run": self.identity,
            "world_size": self.world.size,
            "torch": torch.__version__,
            "files": dict(self._files),
        }
        self._wait()
        self._writing = self._writer.submit(self._write, name, data, commit)
        self.counts["saved"] += 1

    def _wait(self) -> None:
        """For the state that is being written; what went wrong there is raised here."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, name: str, data: memoryview, commit: Mapping[str, Any]) -> None:
        with self.telemetry.saving_state():
            digest = write_whole(self.folder / f"{name}.pt", data)
            write_whole(self.folder / f"{name}.json", json.dumps({**commit, "sha256": digest}).encode())
        self._prune()
        if self.mirror is not None:
            self.mirror.sync(self.folder)

    def _prune(self) -> None:
        states = list(self._commits())
        whole = {name: commit for name, commit in states if commit is not None}
        kept = {*list(whole)[:KEPT], *[name for name in whole if name.endswith(EPOCH)][:1]}
        for name, _ in states:
            if name not in kept:
                _delete_state(self.folder, name)
        with self._lock:
            needed = {*self._files.values(), *(digest for name in kept for digest in whole[name]["files"].values())}
            for path in (self.folder / FILES).glob("*"):
                if path.name not in needed:
                    path.unlink(missing_ok=True)


def _delete_state(folder: Path, name: str) -> None:
    for kind in ("json", "pt"):  # in this order: without its JSON a state does not count
        (folder / f"{name}.{kind}").unlink(missing_ok=True)


def _delete_partial_files(*folders: Path) -> None:
    """What a killed process left half-written."""
    for folder in folders:
        for path in (*folder.glob(".*.tmp"), *folder.glob(f"{FILES}/.*.tmp")):
            path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A file that :class:`Keeper` wrote; None where it is missing or torn.

    Raises:
        ParamsError: It is of another version. What is in it is not torn, so it is not passed over.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or "schema" not in values:
        return None
    if values["schema"] != SCHEMA:
        raise ParamsError(
            f"{path} has schema {json.dumps(values['schema'])[:60]}, and this cwbass reads {SCHEMA}: another version wrote it. "
            "Use that version, begin anew with --restart, or choose another --out."
        )
    return values


def _is_report(values: Mapping[str, Any]) -> bool:
    """Whether ``run.json`` says what it should."""
    report, run = values.get("report"), values.get("run")
    if not isinstance(report, dict) or not isinstance(run, dict):
        return False
    names = report.get("checkpoints")
    return isinstance(names, dict) and all(isinstance(name, str) and is_plain_name(name) for name in names.values())
