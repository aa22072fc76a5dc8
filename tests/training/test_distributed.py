from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from threads import in_threads
from tiny import TinyRun, changed, make_split, sections, smoke_params

from cwbass.data.manifest import Manifest
from cwbass.errors import ParamsError, ServiceError
from cwbass.params import dump_params
from cwbass.steps.launch import WarmupTask, warmup_where_asked
from cwbass.steps.training import WarmupParams, check_batches
from cwbass.training.checkpoint import load_checkpoint
from cwbass.training.distributed import Place, _agree_on_device, check_same, joined, read_place
from cwbass.training.torchrun import exit_code, run_processes
from cwbass.world import ALONE, World

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


# The environment


def test_the_environment_says_which_process_this_is() -> None:
    assert read_place({}) is None
    assert read_place(TORCHRUN) == Place(rank=1, size=4, local_rank=1)
    assert read_place(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None  # one process needs no group


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_PORT": ""}, r"MASTER_PORT is missing.*torchrun --nproc-per-node"),
        ({"RANK": "", "LOCAL_RANK": ""}, r"RANK, LOCAL_RANK is missing"),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE=two"),
        ({"RANK": "4"}, r"RANK=4, WORLD_SIZE=4.*from 0 to WORLD_SIZE - 1"),
        ({"LOCAL_RANK": "-1"}, r"LOCAL_RANK=-1"),
    ],
)
def test_an_environment_that_cannot_be_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        read_place(TORCHRUN | change)


def test_a_single_process_makes_no_process_group() -> None:
    with joined("cpu", {}) as world:
        assert world is ALONE
        assert not torch.distributed.is_initialized()
    value, rows = torch.tensor([3]), torch.arange(4)
    assert ALONE.total(value) is value
    assert ALONE.gather(rows) is rows
    assert torch.equal(ALONE.own(rows), rows)
    assert (ALONE.collect("a"), ALONE.agree(7), ALONE.once_per_machine(lambda: 5)) == (["a"], 7, 5)
    assert ALONE.share(torch.tensor(0)).item() == 1


def test_a_process_whose_others_never_come_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    message = rf"process 0 of 2 did not meet the others at 127\.0\.0\.1:{port} within 1 s"
    with pytest.raises(ServiceError, match=message), joined("cpu", os.environ, rendezvous=timedelta(seconds=1)):
        pass
    assert not torch.distributed.is_initialized()


def test_every_process_hears_which_one_has_no_gpu() -> None:
    lines = ["", "process 1 on b sees 0 GPUs"]
    for device in ("cuda", "auto"):
        with pytest.raises(ParamsError, match=rf"train\.device is {device}, but process 1 on b sees 0 GPUs\. "):
            _agree_on_device(lines, device)
    with pytest.raises(ParamsError):
        _agree_on_device([lines[1], lines[1]], "cuda")
    assert _agree_on_device(["", ""], "auto") is True
    assert _agree_on_device([lines[1], lines[1]], "auto") is False  # nobody has one: the CPU


# What is agreed on before the first step


@pytest.mark.parametrize("name", ["batch_labeled", "batch_unlabeled"])
def test_a_batch_must_be_a_multiple_of_the_processes(name: str) -> None:
    train = smoke_params(**{"batch_labeled": 6, "batch_unlabeled": 6, name: 4}).train
    check_batches(train, 1)
    with pytest.raises(ParamsError, match=rf"train\.{name} is 4, .* among 3 processes\. Use a multiple of 3"):
        check_batches(train, 3)


def test_processes_that_see_different_things_all_say_so() -> None:
    def check(world: World) -> str:
        with pytest.raises(ParamsError) as caught:
            check_same(world, "the split", "abcdefabcdefabc" if world.rank < 2 else "0123")
        return str(caught.value)

    messages = in_threads(3, check)
    assert len(set(messages)) == 1
    assert messages[0].startswith("the split is abcdefabcdef in process 0 and 0123 in process 2.")
    in_threads(3, lambda world: check_same(world, "the split", "abc"))


def test_one_process_of_a_machine_makes_what_the_others_find() -> None:
    made: list[int] = []

    def work(world: World) -> int:
        def fetch() -> int:
            if not made:
                made.append(world.rank)
            return made[0]

        return world.once_per_machine(fetch)

    assert in_threads(4, work) == [0, 0, 0, 0]


# Exit codes


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        *(([3], 3), ([1, 4], 4), ([75, 3], 75), ([-9, 1], 1), ([-9], 137), ([-15, -9], 143)),
        *(([-15, 75], 75), ([143, 75], 75), ([130, 1], 1), ([143, 143], 143)),  # told to stop; 143 is what our own handler says
    ],
)
def test_the_exit_code_is_the_one_that_says_most(codes: list[int], expected: int) -> None:
    assert exit_code(codes) == expected


# Real processes


@pytest.fixture(scope="session")
def split_of_five(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest whose selection slice, five images, cannot be divided among two processes."""
    params = changed(smoke_params(), "split", selection=0.42)
    manifest = make_split(TinyRun(tmp_path_factory.mktemp("five"), shapes, params))
    assert Manifest.read(manifest).counts["selection"] == 5
    return manifest


@pytest.mark.slow
def test_two_processes_train_as_one_does(shapes: Path, split_of_five: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    command = ["-m", "cwbass.training.torchrun", "--standalone", "--nproc-per-node=2", str(Path(two_processes.__file__))]
    done = subprocess.run(
        [sys.executable, *command, str(two), str(shapes), str(split_of_five)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    torch.set_default_dtype(torch.float64)
    try:
        alone = two_processes.run(one, shapes, split_of_five, ALONE)
    finally:
        torch.set_default_dtype(torch.float32)

    found = json.loads((two / "found.json").read_text())
    first, second = found["digests"]
    assert len(first) == 3
    assert first == second  # student, teacher, thresholds and statistics, to the bit
    assert found["reports"][0] == found["reports"][1]
    for recipe in two_processes.RECIPES:
        assert found["reports"][0][recipe]["selection_miou"] == pytest.approx(alone[recipe]["selection_miou"], abs=1e-12)

    for name, state in two_processes.states(two).items():
        for key, expected in two_processes.states(one)[name].items():
            torch.testing.assert_close(state[key], expected, rtol=1e-8, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    incidents = 0
    for folder in ("warmup", *two_processes.RECIPES):
        rows, expected_rows = (
            [json.loads(line) for line in (root / folder / "history.jsonl").read_text().splitlines()] for root in (two, one)
        )
        assert len(rows) == len(expected_rows)
        for row, expected in zip(rows, expected_rows, strict=True):
            assert flat(row) == pytest.approx(flat(expected), rel=1e-6, abs=1e-9)
            assert row.get("incident") == expected.get("incident")
            incidents += "incident" in row
    assert incidents  # the collapse guard has acted in all processes alike


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row of the history."""
    values = {f"{key}.{k}": v for key, value in row.items() for k, v in enumerate(value if isinstance(value, list) else [value])}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


@pytest.mark.slow
def test_the_command_line_starts_its_processes_stops_them_cleanly_and_goes_on_with_one_voice(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real processes, a real SIGTERM to the one that was started, and the code that says: run me again."""
    params, out = tmp_path / "params.yaml", tmp_path / "out"
    params.write_text(dump_params(tiny_run.params))
    command = [sys.executable, "-m", "cwbass", "train", f"--params={params}", f"--out={out}", f"--data={tiny_run.data}"]
    command += [f"--manifest={tiny_run.manifest}", f"--warmup={tiny_run.warmup / 'warmup.pt'}"]
    command += ["--set=train.processes=2", "--set=train.steps=20", "--set=train.epoch_steps=4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(out.glob("state/*.json")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, talk = process.communicate(timeout=120)
    assert (process.returncode, said) == (75, ""), talk
    (step,) = set(re.findall(r"error \(process [01] of 2\): stopped by SIGTERM after step (\d+) of train; the state is in", talk))
    assert 8 < int(step) < 20
    newest = max(out.glob("state/*.json"), key=lambda path: int(path.stem.split("-")[2]))
    assert (int(newest.stem.split("-")[2]), json.loads(newest.read_text())["world_size"]) == (int(step), 2)
    assert "Traceback" not in talk

    code = run_processes(2, command[3:])  # what that process did
    said, talk = capfd.readouterr()
    assert code == 0, talk
    assert f"going on with train after step {step}" in talk
    report = json.loads(said)  # one object, from one process
    assert (report["stage"], report["steps"]) == ("train", 20)
    assert talk.count("2 processes;") == 1
    assert len((out / "history.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_where_processes_are_asked_for_a_component_warms_up_in_them(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = sections(changed(tiny_run.params, processes=2, steps=4, warmup_steps=2), WarmupParams)
    places = {"manifest": tiny_run.manifest, "data_root": tiny_run.data}
    report = warmup_where_asked(WarmupTask(params=params, **places, out_dir=tmp_path / "two", run_id="run-7"))
    assert capfd.readouterr().err.count("2 processes;") == 1
    assert 'run_id="run-7"' in (tmp_path / "two" / "metrics.prom").read_text()  # those processes tell of themselves
    one = changed(params, processes=1)
    alone = warmup_where_asked(WarmupTask(params=one, **places, out_dir=tmp_path / "one"))
    assert (report.stage, report.steps, report.split_hash) == (alone.stage, alone.steps, alone.split_hash)
    assert {name: Path(path).relative_to(tmp_path / "two") for name, path in report.checkpoints.items()} == {
        name: Path(path).relative_to(tmp_path / "one") for name, path in alone.checkpoints.items()
    }
    states = [load_checkpoint(tmp_path / name / "baseline_last.pt").method_state for name in ("two", "one")]
    for key, expected in states[1].items():
        torch.testing.assert_close(states[0][key], expected, rtol=1e-2, atol=2e-3)  # float32, a few steps
    three = changed(params, processes=3)
    with pytest.raises(ParamsError, match="warmup in 3 processes ended with exit code 3; see above"):
        warmup_where_asked(WarmupTask(params=three, **places, out_dir=tmp_path / "x"))


NO_GPU = """
import os, sys
from cwbass.errors import ParamsError
from cwbass.training.distributed import joined
try:
    with joined("cuda", os.environ):
        pass
except ParamsError as error:
    print(f"process {os.environ['RANK']}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this is about having none")
def test_processes_that_ask_for_a_gpu_that_is_not_there_all_end_with_3(tmp_path: Path) -> None:
    """What `cwbass train` does before all else, without the seconds that its other imports take."""
    (tmp_path / "asks.py").write_text(NO_GPU)
    command = [sys.executable, "-m", "cwbass.training.torchrun", "--standalone", "--nproc-per-node=2", str(tmp_path / "asks.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    for rank in (0, 1):
        assert f"process {rank}: train.device is cuda, but process 0 on" in done.stderr
    assert "training ended with exit code 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
