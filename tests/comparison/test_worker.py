"""Jobs are processes: what becomes of their results, failures and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_servers import pushgateway
from tiny import SMOKE

from cwbass.comparison.run import Job, JobFailed, Worker
from cwbass.errors import Interrupted


def job(folder: Path, *arguments: str, stdout: bool = False) -> Job:
    result = folder / "result"
    return Job("verb", folder, result, arguments, stdout=result if stdout else None)


def test_what_a_job_prints_is_its_result_and_what_it_took_is_noted(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        worker.run(job(tmp_path, "--version", stdout=True))
    assert (tmp_path / "result").read_text().startswith("cwbass ")
    used = json.loads((tmp_path / "resources.json").read_text())["verb"]
    assert 5 < used["peak_mb"] < 5000
    assert used["seconds"] > 0


def test_a_job_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("done")
    with Worker(tmp_path) as worker:
        worker.run(job(tmp_path, "no-such-verb"))
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_failure_names_the_log_keeps_the_exit_code_and_is_not_tried_again_by_others(tmp_path: Path) -> None:
    failing = job(tmp_path, "config", "show", "--params", "missing.yaml", stdout=True)
    with Worker(tmp_path) as worker:
        with pytest.raises(JobFailed, match=r"ended with exit code 3: see .*verb\.log") as caught:
            worker.run(failing)
        with pytest.raises(JobFailed):
            worker.run(failing)
    assert caught.value.exit_code == 3
    assert (tmp_path / "verb.log").read_text().count("missing.yaml: no such file") == 1
    assert not (tmp_path / "result").exists()


def test_a_command_that_is_killed_says_so_with_the_code_of_a_shell(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.yaml")  # it waits there
    waiting = job(tmp_path, "config", "show", "--params", str(tmp_path / "params.yaml"))

    def kill() -> None:
        with open(tmp_path / "params.yaml", "w"):  # opens once the command has opened it to read
            os.kill(worker._child or 0, signal.SIGKILL)

    with Worker(tmp_path) as worker:
        threading.Thread(target=kill).start()
        with pytest.raises(JobFailed, match=r"verb was killed by signal 9 \(Killed\), mostly for want of memory: see ") as caught:
            worker.run(waiting)
    assert caught.value.exit_code == 137


def test_what_cells_push_at_the_same_time_stands_side_by_side_in_a_real_pushgateway(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one group the cell that succeeds would take the failure of the other away."""
    with pushgateway(tmp_path) as gateway, Worker(tmp_path / "out") as worker:
        monkeypatch.setenv("CWBASS_PUSHGATEWAY", gateway.url)
        monkeypatch.setenv("CWBASS_PIPELINE", "compare-streets")
        for name, data in (("fixmatch", tmp_path / "missing"), ("cw_bass", shapes)):
            folder = tmp_path / "out" / "1-4" / "seed0" / name
            split = ["split", "--params", str(SMOKE), "--set", f"data.root={data}", "--out", str(folder)]
            with suppress(JobFailed):
                worker.run(Job("split", folder, folder / "manifest.json", split))
        samples = [sample for family in text_string_to_metric_families(gateway.get("/metrics")) for sample in family.samples]
    ended = [sample.labels for sample in samples if sample.name == "cwbass_stage_last_completion_timestamp_seconds"]
    assert {(labels["pipeline"], labels["stage"], labels["outcome"]) for labels in ended} == {
        ("compare-streets/1-4/seed0/fixmatch", "split", "failed"),
        ("compare-streets/1-4/seed0/cw_bass", "split", "success"),
    }


def test_a_signal_before_a_job_starts_nothing(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
            worker.run(job(tmp_path, "--version"))
    assert caught.value.exit_code == 75
    assert not any(tmp_path.iterdir())


def test_whoever_comes_second_waits_for_the_command_that_works_in_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A command holds the lock that it inherited, also when the process that started it is gone."""
    code = (
        "import fcntl, os, subprocess, sys; lock = os.open('lock', os.O_RDWR | os.O_CREAT); fcntl.flock(lock, fcntl.LOCK_EX); "
        "subprocess.Popen(['sleep', '1.5'], pass_fds=(lock,), stdout=subprocess.DEVNULL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    threading.Timer(1.0, (tmp_path / "result").touch).start()  # the orphan ends its work
    started = time.monotonic()
    with Worker(tmp_path) as worker:
        worker.run(job(tmp_path, "no-such-verb"))  # and so nothing is run
    assert time.monotonic() - started >= 1.0
    assert "another process is at work" in caplog.text
    assert not (tmp_path / "verb.log").exists()
