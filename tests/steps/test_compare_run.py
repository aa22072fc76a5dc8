"""A tiny grid of real processes, stopped once and killed once, and what it leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import SMOKE, write_costs

from cwbass.comparison.plan import Plan
from cwbass.comparison.run import Job, JobFailed
from cwbass.errors import DataError
from cwbass.evaluation.per_image import PerImage
from cwbass.params import dump_params
from cwbass.steps.compare import CellsFailed, write_table
from cwbass.training.checkpoint import load_checkpoint

STEPS = 60
SETS = {"train.epoch_steps": "10", "train.snapshots": "3", "train.cache": "null", "eval.gallery": "0"}


@dataclass(frozen=True)
class Grid:
    """A grid that is done, and how its calls ended."""

    out: Path
    codes: list[int]
    talk: list[str]  # stderr of each call
    text: str  # stdout of the last

    @property
    def group(self) -> Path:
        return self.out / "as-given" / "seed0"


def command(shapes: Path, out: Path, *arguments: str) -> list[str]:
    sets = {**SETS, "data.root": str(shapes)}
    given = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    program = [sys.executable, "-m", "cwbass", "compare", "--params", str(SMOKE), *given]
    return [*program, "--budget", f"steps={STEPS}", "--out", str(out), *arguments]


@pytest.fixture(scope="session")
def grid(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """Two cells in two calls: SIGTERM in the middle of a training, and to the end."""
    out = tmp_path_factory.mktemp("grid") / "out"
    listed = subprocess.run(command(shapes, out, "--list"), capture_output=True, text=True, check=True)
    assert [cell["steps"] for cell in json.loads(listed.stdout)] == [STEPS, STEPS]
    write_costs(out)
    first = subprocess.Popen(command(shapes, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for((out / "as-given/seed0/cw_bass/history.jsonl").exists)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    done = subprocess.run(command(shapes, out), capture_output=True, text=True, check=False)
    return Grid(out, [first.returncode, done.returncode], [said, done.stderr], done.stdout)


def wait_for(what: Callable[[], bool], seconds: float = 600) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_stopped_grid_says_75_and_a_later_call_goes_on_where_the_training_was(grid: Grid) -> None:
    assert grid.codes == [75, 0], grid.talk
    assert "stopped by SIGTERM. Run the same command again" in grid.talk[0]
    assert (grid.group / "cw_bass" / "train.log").read_text().count("going on with train after step") == 1
    assert "cwbass split" not in grid.talk[1] and "cwbass warmup" not in grid.talk[1]  # they were done


def test_every_cell_has_the_steps_of_the_budget_and_the_warm_up_its_share(grid: Grid) -> None:
    for path in (grid.group / "warmup-60" / "baseline_last.pt", grid.group / "cw_bass" / "last.pt"):
        assert load_checkpoint(path).step == STEPS
    assert load_checkpoint(grid.group / "warmup-60" / "warmup.pt").step == 30  # 8 of 16, as configs/smoke.yaml has it


def test_the_baseline_is_scored_as_a_cell_and_the_table_holds_the_scores_of_both(grid: Grid) -> None:
    metrics = {name: json.loads((grid.group / name / "reports/metrics.json").read_text()) for name in ("supervised", "cw_bass")}
    rows = json.loads((grid.out / "table.json").read_text())["labels"]["as-given"]["rows"]
    for name, found in metrics.items():
        assert rows[name]["miou"]["value"] == found["miou"]
        assert [row["step"] for row in found["snapshots"]] == ([20, 40, 60] if name == "supervised" else [40, 60])
        assert rows[name]["checkpoints"]["oracle"]["value"] == max(
            row["miou"]
            for row in [*found["snapshots"], *(found["checkpoints"][f"teacher {kind}"] for kind in ("last", "selected"))]
        )
    assert rows["cw_bass"]["gain"] == {"0": metrics["cw_bass"]["miou"] - metrics["supervised"]["miou"]}
    assert metrics["supervised"]["snapshots"][-1]["miou"] == metrics["supervised"]["checkpoints"]["teacher last"]["miou"]
    assert grid.text == (grid.out / "table.md").read_text()


def test_confusions_of_the_images_add_up_to_the_scored_matrix(grid: Grid) -> None:
    reports = grid.group / "cw_bass" / "reports"
    images = PerImage.read(reports / "confusions.npz")
    metrics = json.loads((reports / "metrics.json").read_text())
    assert images.matrices.sum(0).tolist() == metrics["confusion"]["matrix"]
    manifest = json.loads((grid.group / "split" / "manifest.json").read_text())
    assert list(images.ids) == [sample["id"] for sample in manifest["test"]]


def test_the_reports_of_every_cell_have_the_sweep_of_their_warm_up(grid: Grid) -> None:
    swept = json.loads((grid.group / "warmup-60" / "sweep.json").read_text())
    assert swept["step"] == 30
    for name in ("supervised", "cw_bass"):
        assert json.loads((grid.group / name / "reports" / "sweep.json").read_text()) == swept
        assert "after 30 steps would be worth at any threshold" in (grid.group / name / "reports" / "flight.html").read_text()


def test_a_torn_result_is_made_again(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(grid.out, tmp_path / "out")
    path = tmp_path / "out/as-given/seed0/cw_bass/reports/confusions.npz"
    whole = PerImage.read(path)
    path.write_bytes(path.read_bytes()[:-100])
    shutil.rmtree(tmp_path / "out/as-given/seed0/supervised/reports")
    done = subprocess.run(command(shapes, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cwbass eval took") == 2
    assert "cwbass train took" not in done.stderr and "cwbass warmup took" not in done.stderr
    assert PerImage.read(path).matrices.tolist() == whole.matrices.tolist()
    assert done.stdout == grid.text  # oracles of states that are deleted, too
    tables = [json.loads((out / "table.json").read_text())["labels"]["as-given"]["rows"] for out in (grid.out, tmp_path / "out")]
    assert {name: row["curve"] for name, row in tables[0].items()} == {name: row["curve"] for name, row in tables[1].items()}
    assert tables[1]["cw_bass"]["curve"]


def test_snapshots_are_scored_and_then_deleted(grid: Grid) -> None:
    assert not list(grid.out.rglob("step-*"))


def test_a_finished_grid_runs_nothing_again(grid: Grid, shapes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in grid.out.rglob("*.pt")}
    done = subprocess.run(
        command(shapes, grid.out, "--cell", "as-given/seed0/cw_bass"), capture_output=True, text=True, check=True
    )
    assert "cwbass" not in done.stderr.replace("cwbass compare", "")
    assert {path: path.stat().st_mtime_ns for path in grid.out.rglob("*.pt")} == before


@pytest.fixture
def copy(grid: Grid, tmp_path: Path) -> Path:
    """The grid's folder, without checkpoints, to be spoilt."""
    shutil.copytree(grid.out, tmp_path / "out", ignore=shutil.ignore_patterns("*.pt"))
    return tmp_path / "out"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("reports/metrics.json", '{"miou": 0.5}', r"metrics\.json has no per_class and no weights and no "),
        ("run.json", "{}", r"run\.json has no run\."),
        ("timings.jsonl", "", r"timings\.jsonl has no epoch of cw_bass\."),
        ("timings.jsonl", '{"stage": "train", "step": 8}', r"timings\.jsonl, line 1 has no seconds and no step_seconds\."),
        ("history.jsonl", '{"incident": {}}', r"history\.jsonl, line 1 has no step\."),
    ],
)
def test_a_file_without_what_the_table_needs_is_named(copy: Path, file: str, content: str, message: str) -> None:
    (copy / "as-given/seed0/cw_bass" / file).write_text(content)
    with pytest.raises(DataError, match=rf"cw_bass/.*{message}.* Delete its folder: the cell is run again\."):
        write_table(copy)


def test_another_split_is_refused(copy: Path) -> None:
    edit(copy / "as-given/seed0/cw_bass/reports/metrics.json", split_hash="f" * 64)
    assert_refused(copy, r"supervised has another split than .*cw_bass: [0-9a-f]{64} there, f{64} here")


def test_another_protocol_is_refused(copy: Path) -> None:
    edit(copy / "as-given/seed0/cw_bass/reports/metrics.json", protocol="whole scale:1 flip")
    assert_refused(copy, r"supervised has another protocol than .*cw_bass: whole scale:1 there, whole scale:1 flip here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("x", *"bcdef")}, "has another test image than .*cw_bass: .* there, x here"),
        ({"class_names": tuple("abcdefgh")}, "has another list of classes than .*cw_bass: background, .* there, a, b, c"),
    ],
)
def test_other_images_or_classes_are_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    path = copy / "as-given/seed0/cw_bass/reports/confusions.npz"
    found = PerImage.read(path)
    values = {"ids": found.ids, "class_names": found.class_names, "matrices": found.matrices, **change}
    path.write_bytes(PerImage(**values).serialize())
    assert_refused(copy, message)


def test_a_cell_that_was_trained_otherwise_and_copied_in_is_refused(copy: Path) -> None:
    path = copy / "as-given/seed0/cw_bass/reports/params.yaml"
    path.write_text(path.read_text().replace("batch_unlabeled: 2", "batch_unlabeled: 8"))
    assert_refused(copy, r"(?s)cw_bass/reports/params\.yaml and .*plan\.json cannot.*train\.batch_unlabeled: 8 there, 2 now")


def test_a_torn_file_of_confusions_says_how_to_mend_it(copy: Path) -> None:
    (copy / "as-given/seed0/cw_bass/reports/confusions.npz").write_bytes(b"PK")
    assert_refused(copy, r"confusions\.npz holds no confusion matrices .*Run `cwbass eval --per-image` again")


def assert_refused(out: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        write_table(out)
    assert caught.value.exit_code == 4


def test_memory_that_nobody_saw_is_a_dash(copy: Path) -> None:
    """The process that started the training was killed, and the training went on to its end."""
    (copy / "as-given/seed0/cw_bass/resources.json").unlink()
    assert "| cw\\_bass | 60 | 30 | " in write_table(copy)
    row = json.loads((copy / "table.json").read_text())["labels"]["as-given"]["rows"]["cw_bass"]
    assert row["peak_mb"] is None and row["train_seconds"] > 0


def test_a_warm_up_of_no_steps_took_no_time(copy: Path) -> None:
    """As the published settings have it, and on a budget by which no other method shares it: nothing was trained there."""
    values = json.loads((copy / "plan.json").read_text())["params"]
    edit(copy / "plan.json", budget="passes=120", params={**values, "train": {**values["train"], "warmup_steps": 0}})
    plan = Plan.read(copy)
    for name, passes in (("supervised", 2), ("cw_bass", 3)):
        plan.cost_file(name).parent.mkdir(exist_ok=True)
        plan.cost_file(name).write_text(f'{{"step": {{"seconds": 1, "passes": {passes}, "passes_no_grad": 0}}}}')
    for cell in plan.cells():
        params = plan.warmup_params(cell) if cell.variant == "supervised" else plan.cell_params(cell)
        (plan.folder(cell) / "reports/params.yaml").write_text(dump_params(params))
    assert "| cw\\_bass | 40 | 0 | " in write_table(copy)


def test_a_folder_without_cells_says_what_to_run(tmp_path: Path, grid: Grid) -> None:
    shutil.copy(grid.out / "plan.json", tmp_path)
    with pytest.raises(DataError, match="holds no finished cell"):
        write_table(tmp_path)


def test_seeds_with_other_numbers_of_labelled_images_are_refused_with_both(copy: Path) -> None:
    edit(copy / "plan.json", seeds=[0, 1])
    other = copy / "as-given/seed1"
    shutil.copytree(copy / "as-given/seed0", other)
    for reports in (other / "supervised/reports", other / "cw_bass/reports"):
        edit(reports / "metrics.json", split={"counts": {"labeled": 7, "selection": 4}})
        path = reports / "params.yaml"
        path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert_refused(copy, r"seed0/cw_bass has another number of labelled images than .*seed1/supervised: 12 there, 11 here")


def test_a_signal_counts_for_more_than_a_table_that_cannot_be_made(copy: Path, shapes: Path) -> None:
    edit(copy / "as-given/seed0/cw_bass/reports/metrics.json", protocol="whole scale:1 flip")
    called = subprocess.Popen(command(shapes, copy, "--seeds", "1"), stderr=subprocess.PIPE, text=True)
    wait_for((copy / "as-given/seed1/split/lock").exists)
    called.send_signal(signal.SIGTERM)
    _, said = called.communicate(timeout=60)
    assert called.returncode == 75, said
    assert "there is no table: " in said and "error: stopped by SIGTERM" in said


@pytest.mark.parametrize(
    ("codes", "said", "code"),
    [
        ([3], "would again: mend what the logs say", 3),
        ([3, 4], "would again: mend what the logs say", 1),
        ([3, 6], "run the same command again to try them again", 1),
        ([-9], "run the same command again to try them again", 137),
    ],
)
def test_a_retry_is_advised_where_it_can_help(tmp_path: Path, codes: list[int], said: str, code: int) -> None:
    job = Job("train", tmp_path, tmp_path / "run.json", [])
    error = CellsFailed({f"cell{place}": JobFailed(job, each, tmp_path / "train.log") for place, each in enumerate(codes)})
    assert (str(error).splitlines()[0], error.exit_code) == (f"cells failed: {len(codes)}; {said}:", code)
