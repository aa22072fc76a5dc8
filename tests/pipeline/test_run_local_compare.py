"""A comparison as a pipeline on this machine, stopped by a step that fails and run again, beside ``cwbass compare``."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Done, call, call_pipeline
from tiny import SMOKE, write_costs

pytest.importorskip("kfp", reason="needs kfp: pip install -c constraints.txt -e '.[pipeline]'")

GROUP = "as-given/seed0"
OF_THIS_RUN = {"step_seconds", "train_seconds", "peak_mb", "cells"}  # what a clock says, and folders


def grid(shapes: Path, out: Path) -> list[object]:
    sets = [f"data.root={shapes}", "train.cache=null", "train.probes=0", "eval.gallery=0"]
    return ["--params", SMOKE, *(part for each in sets for part in ("--set", each)), "--methods", "cw_bass", "--out", out]


@pytest.fixture(scope="module")
def reference(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``cwbass compare``."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert call("compare", *grid(shapes, out), "--list").returncode == 0
    write_costs(out)
    done = call("compare", *grid(shapes, out))
    assert done.returncode == 0, done.stderr
    return out


@dataclass(frozen=True)
class Twice:
    """Two calls, the first of which failed, and what they left."""

    calls: list[Done]
    runs: list[Path]  # kfp's folder of each
    comparison: Path
    between: dict[Path, int]  # checkpoints and scores that were there after the first call, and when they were written


def written(comparison: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for name in ("*.pt", "metrics.json") for path in comparison.rglob(name)}


@pytest.fixture(scope="module")
def twice(shapes: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """A file lies where the baseline must write its reports; it is taken away before the second call."""
    root = tmp_path_factory.mktemp("pipeline") / "out"
    comparison = root / "runs" / "local" / "compare"
    shutil.copytree(reference / "costs", comparison / "costs")
    obstacle = comparison / GROUP / "supervised" / "reports"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    first = call_pipeline("run-local-compare", *grid(shapes, root))
    between = written(comparison)
    obstacle.unlink()
    second = call_pipeline("run-local-compare", *grid(shapes, root))
    return Twice([first, second], sorted(root.glob("cwbass-compare-*")), comparison, between)


def test_a_step_that_fails_stops_its_loops_and_is_named_with_its_log(twice: Twice) -> None:
    failed, run = twice.calls[0], twice.runs[0]
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cell inside group inside for-loop-1-iteration-0")
    assert f"{GROUP}/supervised: cwbass eval ended with exit code 3: see {twice.comparison}" in line
    assert str(run / "log.txt") in line
    assert not list(run.rglob("cell-2")) and not (run / "table").exists()


def test_the_second_call_ends_with_the_tables_and_the_page(twice: Twice) -> None:
    done, run = twice.calls[1], twice.runs[1]
    assert done.returncode == 0, done.stderr[-4000:]
    tables, _, page = done.stdout.rpartition("page: ")
    assert tables == (twice.comparison / "table.md").read_text() == (run / "table/summary").read_text()
    assert page == f"{twice.comparison / 'compare.html'}\n"
    assert (run / "table/page").read_bytes() == (twice.comparison / "compare.html").read_bytes()


def test_every_cell_has_a_task_of_its_own(twice: Twice) -> None:
    outputs = [json.loads(path.read_text()) for path in twice.runs[1].rglob("cell*/executor_output.json")]
    assert {output["parameterValues"]["Output"] for output in outputs} == {f"{GROUP}/supervised", f"{GROUP}/cw_bass"}
    assert len(outputs) == 2


def test_the_second_call_goes_on_where_the_first_was(twice: Twice) -> None:
    assert {path.name for path in twice.between} >= {"warmup.pt", "baseline_last.pt"}
    after = written(twice.comparison)
    assert {path: after.get(path) for path in twice.between} == twice.between


def test_its_table_is_that_of_cwbass_compare_to_the_digit(twice: Twice, reference: Path) -> None:
    """Checkpoints too: metrics.json has their SHA-256."""
    assert numbers(twice.comparison) == numbers(reference)
    for name in ("supervised", "cw_bass"):
        ours, theirs = (folder / GROUP / name / "reports/metrics.json" for folder in (twice.comparison, reference))
        assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


def numbers(folder: Path) -> dict[str, Any]:
    table = json.loads((folder / "table.json").read_text())
    for label_set in table["labels"].values():
        label_set["rows"] = {
            name: {key: value for key, value in row.items() if key not in OF_THIS_RUN} for name, row in label_set["rows"].items()
        }
    return dict(table)
