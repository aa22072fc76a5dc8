"""States on disk: which are kept, which one a run goes on from, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_of_at_most
from prometheus_client import CollectorRegistry

from cwbass.errors import Interrupted, ParamsError, ServiceError
from cwbass.files import file_sha256
from cwbass.telemetry.metrics import Metrics
from cwbass.telemetry.recorder import Recorder
from cwbass.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cwbass.training.lock import LOCK
from cwbass.training.resume import RUN, Keeper, Resume, State, _delete_state
from cwbass.world import World

IDENTITY = {"seed": 0, "train.optimizer.lr": 0.1, "train.optimizer.name": "adamw", "code": "1"}
NEVER, ALWAYS = 1e9, 1e-9  # minutes


def checkpoint(step: int, stage: str = "train") -> Checkpoint:
    return Checkpoint(
        method="cw_bass",
        method_state={"student.weight": torch.full((5000,), float(step))},
        networks=("student",),
        params="",
        spec={},
        split_hash="ab",
        seed=0,
        step=step,
        epoch=0,
        stage=stage,
        history=[{"step": step}],
    )


def state(step: int, finished: Mapping[str, Any] | None = None) -> State:
    meter = {"means": {"loss": torch.tensor(step / 3)}, "sums": {}, "steps": 1}
    return State(checkpoint(step), {"best": 0.5}, [{"seconds": 1.5}], [], finished or {}, False, [meter], "cpu")


def keeper(root: Path, identity: Mapping[str, Any] = IDENTITY, **settings: Any) -> Keeper:
    return Keeper(root / "out", root / "work", identity, **{"save_minutes": ALWAYS, **settings})


def save(keeper: Keeper, *steps: int, epochs: tuple[int, ...] = ()) -> None:
    """What the steps of a stage leave."""
    for step in steps:
        keeper.after_step(lambda step=step: state(step, keeper.finished), epoch_ended=step in epochs)  # type: ignore[misc]
    keeper._wait()


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "work").iterdir() if path.is_file() and path.name != LOCK)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run that was stopped after step 4, and has the states of steps 2 (an epoch's end), 3 and 4."""
    save(keeper(tmp_path), 1, 2, 3, 4, epochs=(2,))
    return tmp_path


def test_a_saved_state_is_told_by_its_time_and_one_that_cannot_be_written_as_a_failure(tmp_path: Path) -> None:
    """What a kill would cost is counted from the last state, which an epoch of hours has many of."""
    metrics = Metrics(CollectorRegistry())
    kept = keeper(tmp_path, telemetry=Recorder(metrics, stage="train"))

    def value(name: str, **labels: str) -> float:
        found = metrics.registry.get_sample_value(name, labels)
        assert found is not None
        return found

    metrics.checkpoint_time.set(0)  # long ago
    save(kept, 1)
    assert time.time() - value("cwbass_checkpoint_last_timestamp_seconds") < 60
    assert value("cwbass_checkpoints_total", outcome="failed") == 0
    metrics.checkpoint_time.set(0)
    with files_of_at_most(4096), pytest.raises(ServiceError):
        save(kept, 2)
    assert value("cwbass_checkpoint_last_timestamp_seconds") == 0
    assert value("cwbass_checkpoints_total", outcome="failed") == 1


def test_the_newest_two_are_kept_and_the_newest_of_an_epochs_end(saved: Path) -> None:
    stems = ("0-train-00000002-epoch", "0-train-00000003", "0-train-00000004")
    assert names(saved) == [f"{stem}.{kind}" for stem in stems for kind in ("json", "pt")]


def test_a_state_comes_back_whole(saved: Path) -> None:
    found = keeper(saved)
    assert found.enter("warmup") is None
    loaded = found.enter("train")
    assert loaded is not None
    assert found.enter("train") is None  # once
    before = state(4)
    assert torch.equal(loaded.checkpoint.method_state["student.weight"], before.checkpoint.method_state["student.weight"])
    assert torch.equal(loaded.meters[0]["means"]["loss"], before.meters[0]["means"]["loss"])
    assert (loaded.step, loaded.checkpoint.history, loaded.timings, loaded.selection) == (
        *(4, [{"step": 4}], [{"seconds": 1.5}]),
        {"best": 0.5},
    )
    assert found.counts["fallbacks"] == 0


@pytest.mark.parametrize("kind", ["pt", "json"])
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_a_torn_newest_state_gives_way_to_the_one_before(
    kind: str, quarter: int, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = saved / "work" / f"0-train-00000004.{kind}"
    os.truncate(newest, newest.stat().st_size * quarter // 4)
    found = keeper(saved)
    assert found.state is not None and found.state.step == 3
    assert found.counts["fallbacks"] == 1
    assert f"0-train-00000004.{kind} is " in caplog.text
    assert "Going back to the state before it." in caplog.text
    assert not list((saved / "work").glob("*4.*"))  # what begins where this run does not go is gone


def test_a_flipped_bit_and_a_missing_file_are_found_too(saved: Path) -> None:
    newest = saved / "work" / "0-train-00000004.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (saved / "work" / "0-train-00000003.pt").unlink()
    found = keeper(saved)
    assert found.state is not None and found.state.step == 2
    assert found.counts["fallbacks"] == 2


def test_where_all_are_torn_the_run_begins_anew_and_says_so(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (saved / "work").glob("*.pt"):
        os.truncate(path, 10)
    found = keeper(saved)
    assert found.state is None
    assert "holds no state to go on from: beginning anew" in caplog.text


def test_another_run_is_refused_with_both_values_of_every_key_that_differs(saved: Path) -> None:
    other = {**IDENTITY, "train.optimizer.lr": 0.2, "seed": 1, "new": None}
    with pytest.raises(ParamsError) as caught:
        keeper(saved, other)
    text = str(caught.value)
    assert "holds an unfinished run that differs from this one:" in text
    assert "\n  seed: 0 there, 1 now\n  train.optimizer.lr: 0.1 there, 0.2 now\n" in text
    assert "--restart" in text and "--resume-force KEY" in text
    assert text.count(" there, ") == 2  # what is equal is not named
    assert caught.value.exit_code == 3
    assert len(names(saved)) == 6  # and nothing is touched


@pytest.mark.parametrize("force", [("train.optimizer.lr", "seed"), ("train.optimizer", "seed"), ("train", "seed")])
def test_forced_keys_may_differ(force: tuple[str, ...], saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {**IDENTITY, "train.optimizer.lr": 0.2, "seed": 1}
    found = keeper(saved, other, resume=Resume(force=force))
    assert found.state is not None and found.state.step == 4
    assert "going on although these differ: seed, train.optimizer.lr" in caplog.text
    with pytest.raises(ParamsError, match="seed: 0 there, 1 now"):
        keeper(saved, other, resume=Resume(force=("train", "see")))  # the beginning of a name is no section


def test_restart_deletes_what_there_is(saved: Path) -> None:
    found = keeper(saved, {**IDENTITY, "seed": 1}, resume=Resume(restart=True))
    assert found.state is None
    assert (saved / "work").exists()  # the run may still be refused
    found.begin()
    assert [path.name for path in (saved / "work").iterdir()] == [LOCK]


def result(root: Path, name: str, step: int) -> tuple[Path, str]:
    path = root / "out" / name
    return path, save_checkpoint(checkpoint(step), path)


def test_results_are_put_back_as_they_were_when_the_state_was_saved(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    first.keep(*result(tmp_path, "best.pt", 1))
    save(first, 1)
    path, later = result(tmp_path, "best.pt", 2)  # the process is killed before its next state
    first.keep(path, later)
    keeper(tmp_path)
    assert load_checkpoint(path).step == 1
    path.unlink()  # as DVC does, or a pod whose disk went with it
    again = keeper(tmp_path)
    assert load_checkpoint(path).step == 1
    save(again, 2, 3, 4)  # which need it too
    path.unlink()
    keeper(tmp_path)
    assert load_checkpoint(path).step == 1


def test_a_result_that_no_state_has_named_yet_is_not_cleared_away(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    path, digest = result(tmp_path, "best.pt", 1)
    first.keep(path, digest)  # while an earlier state is being written
    first._prune()
    assert [kept.name for kept in (tmp_path / "work" / "files").iterdir()] == [digest]


def test_a_state_of_a_later_stage_is_newer_and_knows_those_before(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    save(first, 5)
    first.finish_stage("baseline", {"miou": 0.5})
    save(first, 1)
    found = keeper(tmp_path)
    assert found.state is not None and found.state.step == 1
    assert found.finished == {"baseline": {"miou": 0.5}}


def test_results_that_no_state_needs_any_more_are_deleted(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    for step in (1, 2, 3):
        first.keep(*result(tmp_path, "best.pt", step))
        save(first, step)
    kept = {load_checkpoint(path).step for path in (tmp_path / "work" / "files").iterdir()}
    assert kept == {2, 3}


def test_a_result_that_is_dropped_is_gone_and_needed_by_no_later_state(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    path, digest = result(tmp_path, "healthy.pt", 1)
    first.keep(path, digest)
    save(first, 1)
    first.drop(path)
    assert not list(path.parent.glob("healthy.pt*"))
    save(first, 2)
    keeper(tmp_path)
    assert not path.exists()
    _delete_state(tmp_path / "work", "0-train-00000002")
    keeper(tmp_path)  # from the state before, which needs it
    assert load_checkpoint(path).step == 1


def test_a_state_whose_result_is_damaged_is_passed_over(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    save(first, 1)
    path, digest = result(tmp_path, "best.pt", 2)
    first.keep(path, digest)
    save(first, 2)
    path.unlink()
    (tmp_path / "work" / "files" / digest).write_bytes(b"")
    found = keeper(tmp_path)
    assert found.state is not None and found.state.step == 1


def finish(keeper: Keeper, root: Path) -> None:
    keeper.keep(*result(root, "last.pt", 9))
    save(keeper, 9, epochs=(9,))
    keeper.finish({"steps": 9, "checkpoints": {"last": "last.pt"}})


def test_a_finished_run_is_reported_and_leaves_no_state(tmp_path: Path) -> None:
    finish(keeper(tmp_path), tmp_path)
    assert not (tmp_path / "work").exists()
    found = keeper(tmp_path)
    assert found.report == {"steps": 9, "checkpoints": {"last": "last.pt"}}
    with pytest.raises(ParamsError, match="holds a finished run that differs from this one:\n  seed: 0 there, 1 now"):
        keeper(tmp_path, {**IDENTITY, "seed": 1})
    found = keeper(tmp_path, {**IDENTITY, "seed": 1}, resume=Resume(restart=True))
    assert found.report is None
    found.begin()
    assert not (tmp_path / "out" / RUN).exists()


def test_a_finished_run_whose_result_is_gone_is_not_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish(keeper(tmp_path), tmp_path)
    (tmp_path / "out" / "last.pt").unlink()
    found = keeper(tmp_path)
    assert (found.report, found.state) == (None, None)
    assert "last.pt is missing" in caplog.text


def test_the_last_state_can_outlive_the_run(tmp_path: Path) -> None:
    finish(keeper(tmp_path, resume=Resume(keep_state=True)), tmp_path)
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    found = keeper(tmp_path)
    assert found.state is not None and found.state.step == 9
    other = keeper(tmp_path, {**IDENTITY, "seed": 1})  # its results were handed over: nothing is lost
    assert other.state is None
    assert names(tmp_path) == []  # or this run would be told to go on from there


class Several(World):
    """Two processes, one after the other: the second hears what the first has said."""

    size = 2

    def __init__(self, rank: int, told: list[Any]) -> None:
        self.rank, self.told = rank, told

    def collect(self, value: Any) -> list[Any]:
        if self.main:
            self.told.append(value)
        return self.told


TRAINS = """
import sys, time
from pathlib import Path
from cwbass.training.resume import Keeper, Resume
root = Path(sys.argv[1])
found = Keeper(root / "out", root / "work", {}, save_minutes=1, resume=Resume(restart=True))
found.begin()
print("begun", flush=True)
time.sleep(600)
"""


@contextmanager
def training_elsewhere(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has begun a run, and is killed at the end."""
    other = subprocess.Popen([sys.executable, "-c", TRAINS, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "begun\n"
        yield other
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_another_process_trains_in_is_refused_until_that_is_killed(restart: bool, saved: Path) -> None:
    resume = Resume(restart=restart)
    with training_elsewhere(saved) as other:
        (saved / "work" / ".of the other.tmp").touch()
        with pytest.raises(
            ServiceError, match=rf"work: process {other.pid} on .* is training there. Wait until it is done, stop"
        ):
            keeper(saved, resume=resume).begin()
        assert (saved / "work" / ".of the other.tmp").exists()  # what it is writing just now
    keeper(saved, resume=resume).begin()
    assert not (saved / "work" / ".of the other.tmp").exists()


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    here = keeper(tmp_path)  # there is no folder yet
    with training_elsewhere(tmp_path), pytest.raises(ServiceError, match="is training there"):
        here.begin()


def test_a_run_that_was_stopped_keeps_nobody_out(tmp_path: Path) -> None:
    stopped = keeper(tmp_path, save_minutes=NEVER)
    stopped.begin()
    with stopped.listening(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        save(stopped, 1)
    with training_elsewhere(tmp_path):
        pass


def test_a_disk_that_knows_no_locks_holds_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("cwbass.training.lock.fcntl.lockf", none)
    found = keeper(saved)
    found.begin()
    assert found.state is not None and found.state.step == 4


def test_another_number_of_processes_goes_on_from_an_epochs_beginning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = keeper(saved, world=Several(0, []))
    assert found.state is not None and found.state.step == 2
    assert found.counts["fallbacks"] == 0
    assert "2 processes now, 1 before: going on from the beginning of an epoch, after step 2" in caplog.text


def test_the_other_processes_go_on_from_what_the_first_one_found(saved: Path) -> None:
    os.truncate(saved / "work" / "0-train-00000004.pt", 10)
    told: list[Any] = []
    keeper(saved, world=Several(0, told))
    second = keeper(saved, world=Several(1, told))
    assert second.state is not None and second.state.step == 2  # the newest of an epoch's end: one process has saved it
    save(second, 4)  # writes nothing
    assert not list((saved / "work").glob("*4.*"))


def test_states_are_saved_by_the_clock_and_after_every_epoch(tmp_path: Path) -> None:
    save(keeper(tmp_path, save_minutes=NEVER), 1, 2, 3, 4, epochs=(2,))
    assert names(tmp_path) == ["0-train-00000002-epoch.json", "0-train-00000002-epoch.pt"]
    hour, clock = keeper(tmp_path / "b", save_minutes=60), [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cwbass.training.resume.time.monotonic", lambda: clock[0])
        with hour.listening():
            for step, seconds in ((1, 3599.0), (2, 3600.0), (3, 7199.0), (4, 7200.0)):
                clock[0] = seconds
                save(hour, step)
    assert [name for name in names(tmp_path / "b") if name.endswith("pt")] == ["0-train-00000002.pt", "0-train-00000004.pt"]


@pytest.fixture
def _terminal() -> Iterator[None]:
    """As without ``nohup``, under which these tests may run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_waits_for_the_step_and_saves(number: signal.Signals, tmp_path: Path) -> None:
    running = keeper(tmp_path, save_minutes=NEVER)
    before = signal.getsignal(number)
    with running.listening():
        save(running, 1)
        assert not (tmp_path / "work").exists()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=rf"stopped by {number.name} after step 2 of train.*same command again") as caught:
            save(running, 2)
    assert caught.value.exit_code == 75
    assert signal.getsignal(number) is before
    assert keeper(tmp_path).state.step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once_unless_it_comes_with_the_first(number: signal.Signals) -> None:
    code = (
        "import os, time; from cwbass.training.interrupt import SAME_REQUEST, StopSignals\n"
        "with StopSignals() as stop:\n"
        "    for _ in range(3):\n"  # of a service manager, of torchrun, and of its parent
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    print(stop.received.name, flush=True); time.sleep(SAME_REQUEST)\n"
        f"    os.kill(os.getpid(), {int(number)}); print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, f"{number.name}\n")
    assert done.stderr == f"{number.name}: finishing the step, then saving. A second signal stops at once.\n"


def test_a_closed_terminal_is_nothing_to_a_training_under_nohup() -> None:
    code = (
        "import os, signal; from cwbass.training.interrupt import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGHUP); print(stop.received)\n"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "None\n")


def test_a_signal_that_also_ends_the_reader_of_the_log_still_waits_for_the_step() -> None:
    """As Ctrl-C does with `cwbass train 2>&1 | tee log`."""
    code = (
        "import os, signal; from cwbass.training.interrupt import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT); print(stop.received.name)\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "SIGINT\n")


def at_once(running: Keeper) -> None:
    save(running, 5)


def by_the_next_step(running: Keeper) -> None:
    running.after_step(lambda: state(5), epoch_ended=True)
    running._writer.submit(lambda: None).result()  # until the thread is done
    running.save_seconds = NEVER
    running.after_step(lambda: state(6), epoch_ended=False)


@pytest.mark.parametrize("write", [at_once, by_the_next_step])
def test_a_disk_that_fills_in_mid_save_is_told_and_leaves_the_states_before(saved: Path, write: Callable[[Keeper], None]) -> None:
    running = keeper(saved)
    before = {path.name: file_sha256(path) for path in (saved / "work").iterdir() if path.is_file()}
    with (
        files_of_at_most(4096),
        pytest.raises(
            ServiceError, match=r"cannot be written: File too large; it needs 0\.0 MB.*saved before is whole"
        ) as caught,
    ):
        write(running)
    assert caught.value.exit_code == 6
    assert {path.name: file_sha256(path) for path in (saved / "work").iterdir() if path.is_file()} == before
    assert keeper(saved).state.step == 4  # type: ignore[union-attr]


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    path, digest = result(tmp_path, "last.pt", 1)
    with files_of_at_most(4096), pytest.raises(ServiceError, match=r"last\.pt cannot be written: File too large"):
        result(tmp_path, "last.pt", 2)
    assert file_sha256(path) == digest
    assert load_checkpoint(path).step == 1
    assert sorted(item.name for item in path.parent.iterdir()) == ["last.pt", "last.pt.sha256"]


def test_what_a_killed_process_left_half_written_is_deleted(saved: Path) -> None:
    for path in (saved / "out" / ".last.pt.7.tmp", saved / "work" / ".0-train-00000005.pt.7.tmp", saved / "work/files/.ab.7.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    keeper(saved).begin()
    assert not list(saved.rglob(".*.tmp"))


def test_equal_states_are_equal_bytes_wherever_their_parts_came_from(tmp_path: Path) -> None:
    """Strings that were read and strings of this program are not the same objects, and pickles show it."""
    one, other = checkpoint(3), checkpoint(3)
    read = json.loads(json.dumps([*one.history, {"step": 4, "stage": "train"}]))
    rows = [{"step": 3}, {"step": 4, "stage": "train"}]
    first = save_checkpoint(Checkpoint(**{**vars_of(one), "history": read}), tmp_path / "a.pt")
    second = save_checkpoint(Checkpoint(**{**vars_of(other), "history": rows}), tmp_path / "b.pt")
    assert first == second


def vars_of(record: Checkpoint) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_a_state_of_another_version_is_refused_and_not_thrown_away(schema: object, saved: Path) -> None:
    for path in (saved / "work").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(
        ParamsError, match=rf"has schema {json.dumps(schema)}, and this cwbass reads 1: another version.*--restart"
    ):
        keeper(saved)
    assert len(names(saved)) == 6
    assert keeper(saved, resume=Resume(restart=True)).state is None


@pytest.mark.parametrize("change", [{"timings": {}}, {"checkpoint": {}}, {"meters": None}, {"more": 1}, None])
def test_a_state_that_holds_something_else_gives_way_to_the_one_before(change: dict[str, Any] | None, saved: Path) -> None:
    """With the right SHA-256 beside it."""
    newest = saved / "work" / "0-train-00000004.pt"
    content = torch.load(newest, weights_only=True)
    torch.save([1] if change is None else {**content, **change}, newest)
    commit = newest.with_suffix(".json")
    commit.write_text(json.dumps({**json.loads(commit.read_text()), "sha256": file_sha256(newest)}))
    found = keeper(saved)
    assert found.state is not None and found.state.step == 3


def test_a_state_from_before_the_collapse_guard_is_read(saved: Path) -> None:
    newest = saved / "work" / "0-train-00000004.pt"
    content = torch.load(newest, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "guard"}, newest)
    commit = newest.with_suffix(".json")
    commit.write_text(json.dumps({**json.loads(commit.read_text()), "sha256": file_sha256(newest)}))
    found = keeper(saved)
    assert found.state is not None and (found.state.step, found.state.guard) == (4, {})
