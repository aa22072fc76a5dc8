"""One run of the whole pipeline on this machine, as a user starts it; every other test looks at what it left."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import TOP, call_pipeline
from html_page import Page
from tiny import SMOKE, TinyRun

pytest.importorskip("kfp", reason="needs kfp: pip install -c constraints.txt -e '.[pipeline]'")

from kfp import dsl

import components
from cwbass.data.remote import STORES
from cwbass.errors import CwbassError, DataError, GateError, ParamsError, ServiceError
from cwbass.params import dump_params, read_params
from cwbass.steps.launch import TrainTask
from cwbass.steps.training import TrainReport
from cwbass.training.torchrun import children
from pipeline.arguments import STEPS, pipeline_arguments
from pipeline.dag import build
from pipeline.local import check_all_ran, failure_of

TASKS = (*STEPS, "verdict")


@dataclass(frozen=True)
class Done:
    """What a run left: exit code, both streams, and the folder it was told to use."""

    code: int
    out: str
    err: str
    root: Path

    @property
    def folder(self) -> Path:
        """Of the run."""
        (folder,) = self.root.glob("cwbass-train-eval-register-*")
        return folder

    def output(self, task: str) -> dict[str, Any]:
        """Metadata of a task's artifacts."""
        written = json.loads((self.folder / task / "executor_output.json").read_text())
        return {name: artifacts["artifacts"][0]["metadata"] for name, artifacts in written.get("artifacts", {}).items()}


def run_local(root: Path, *arguments: object) -> Done:
    done = call_pipeline("run-local", "--out", root, *arguments)
    return Done(done.returncode, done.stdout, done.stderr, root)


@pytest.fixture(scope="session")
def params_file(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the tiny run, whose steps were called one by one."""
    path = tmp_path_factory.mktemp("local") / "params.yaml"
    path.write_text(dump_params(tiny_run.params))
    return path


@pytest.fixture(scope="session")
def done(params_file: Path) -> Done:
    sets = ("--set", f"registry.store={params_file.parent / 'store'}", "--set", "registry.onnx=false")
    done = run_local(params_file.parent / "out", "--params", params_file, *sets)
    assert done.code == 0, done.err[-4000:]
    return done


def test_it_ends_with_the_table_and_the_report_and_says_no_more_on_stdout(done: Done) -> None:
    assert re.search(r"mIoU +│ +\d+\.\d │ +\d+\.\d │ +[+-]?\d+\.\d", done.out)
    report = done.folder / "evaluate" / "reports" / "report.html"
    assert done.out.splitlines()[-1] == f"report: {report}"
    assert report.read_text().startswith("<!doctype html>")
    assert "KFP Executor" not in done.out and "KFP Executor" in done.err


def test_kfp_gives_no_warning_which_is_how_it_tells_of_a_task_it_skipped(done: Done) -> None:
    log = (done.folder / "log.txt").read_text()
    assert len(re.findall(r"finished with status \S*SUCCESS", log)) == len(TASKS) + 1
    assert not re.search(r"^[\d:.]+ - WARNING", log, flags=re.MULTILINE)


def test_it_scores_to_the_digit_what_the_steps_score_one_by_one(done: Done, tiny_run: TinyRun) -> None:
    """Checkpoints too: metrics.json has their SHA-256."""
    ours = json.loads((done.folder / "evaluate/reports/metrics.json").read_text())
    assert ours == json.loads((tiny_run.reports / "metrics.json").read_text())
    assert (done.folder / "split/split/manifest.json").read_bytes() == tiny_run.manifest.read_bytes()


def test_the_ui_gets_headline_scores_confusion_page_and_summary(done: Done) -> None:
    scores = json.loads((done.folder / "evaluate/reports/metrics.json").read_text())
    given = done.output("evaluate")
    for key in ("miou", "baseline_miou", "miou_gain", "boundary_iou", "boundary_f1_3px", "ece", "pixel_accuracy"):
        assert given["metrics"][key] == scores[key]
    assert 0 <= given["metrics"]["pseudo_label_retention"] <= 1
    assert given["metrics"]["images_per_second"] > 0
    matrix = given["confusion"]["confusionMatrix"]
    assert [each["displayName"] for each in matrix["annotationSpecs"]] == scores["confusion"]["class_names"]
    assert [each["row"] for each in matrix["rows"]] == scores["confusion"]["matrix"]
    linked, alone = Page(done.folder / "evaluate/reports/report.html"), Page(done.folder / "evaluate/report")
    assert [attributes["href"] for tag, attributes in linked.tags if tag == "a"] == ["flight.html"]
    assert "a" not in {tag for tag, _ in alone.tags}  # the UI shows this one file: a link to another leads nowhere
    assert alone.headings == linked.headings
    assert "| mIoU |" in (done.folder / "evaluate/summary").read_text()


def test_artifacts_say_where_they_come_from(done: Done, tiny_run: TinyRun) -> None:
    split = done.output("split")["split"]
    assert (split["data"], split["counts.test"]) == (str(tiny_run.data), 6)
    hashes = {split["hash"], done.output("warmup")["warmup"]["split_hash"], done.output("train")["train"]["split_hash"]}
    assert hashes == {json.loads(tiny_run.manifest.read_text())["hash"]}
    registration = done.output("register")["registration"]
    assert (registration["decision"], registration["version"]) == ("registered", "1.0.0")


def test_checkpoints_lie_in_the_folder_of_the_run_and_in_the_artifact(done: Done) -> None:
    (run,) = (done.root / "runs").iterdir()
    for stage, file in (("warmup", "warmup.pt"), ("train", "last.pt")):
        assert (run / stage / file).read_bytes() == (done.folder / stage / stage / file).read_bytes()


def test_a_task_that_left_nothing_did_not_run(done: Done, tmp_path: Path) -> None:
    spec = build(dict.fromkeys([*(f"{step}_params" for step in STEPS), "data"], "")).pipeline_spec
    check_all_ran(spec, done.folder)
    for task in TASKS:
        shutil.copytree(done.folder / task, tmp_path / task, copy_function=shutil.copyfile)
    (tmp_path / "verdict" / "executor_output.json").unlink()
    with pytest.raises(CwbassError, match="verdict did not run"):
        check_all_ran(spec, tmp_path)


def test_a_task_that_fails_stops_the_run_with_its_error_in_one_line_and_its_exit_code(params_file: Path, tmp_path: Path) -> None:
    failed = run_local(tmp_path / "out", "--params", params_file, "--data", tmp_path / "nothing")
    assert failed.code == 4
    (line,) = [line for line in failed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: split failed: ") and str(tmp_path / "nothing") in line
    assert str(failed.folder / "log.txt") in line
    assert not (failed.folder / "warmup").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_training_which_saves_and_the_run_ends_with_its_exit_code(
    number: signal.Signals, params_file: Path, tmp_path: Path
) -> None:
    """A real one to the process that was started alone, as a supervisor sends it."""
    root = tmp_path / "out"
    command = [sys.executable, "-m", "pipeline", "run-local", "--params", str(params_file), "--out", str(root)]
    command += ["--set=train.steps=2000", "--set=train.warmup_steps=1000", "--set=train.epoch_steps=2", "--set=train.probes=0"]
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # where these tests run under nohup, too
    with subprocess.Popen(
        command, cwd=TOP, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    ) as process:
        threading.Timer(0, _signal_once_saved, (process, root, number)).start()
        _, talk = process.communicate(timeout=300)
    assert process.returncode == 75, talk[-4000:]
    (line,) = [line for line in talk.splitlines() if line.startswith("error: ")]
    (state,) = root.glob("runs/*/warmup/state")
    (step,) = re.findall(
        rf"^error: warmup failed: stopped by {number.name} after step (\d+) of warmup; the state is in {state}", line
    )
    assert max(int(path.stem.split("-")[2]) for path in state.glob("*.json")) == int(step)
    assert line.endswith("run-local begins a new run.")


def _signal_once_saved(process: subprocess.Popen[str], root: Path, number: signal.Signals) -> None:
    while process.poll() is None and not list(root.glob("runs/*/warmup/state/*.json")):
        time.sleep(0.05)
    process.send_signal(number)


@pytest.mark.slow
def test_a_signal_to_a_step_that_saves_nothing_ends_the_run_with_its_number(params_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "run-local", "--params", str(params_file), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=TOP, stderr=subprocess.PIPE, text=True) as process:
        threading.Timer(0, _signal_once_a_task_runs, (process,)).start()
        _, talk = process.communicate(timeout=300)
    assert process.returncode == 143, talk[-4000:]
    assert "error: split failed; its output is in" in talk
    assert not list(tmp_path.glob("out/cwbass-*/warmup"))


def _signal_once_a_task_runs(process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        for child in children(process.pid):
            if b"kfp.dsl.executor_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                process.send_signal(signal.SIGTERM)
                return
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("last_words", "kind", "message"),
    [
        ("    cwbass.errors.GateError: shapes is not registered.", GateError, "verdict failed: shapes is not registered."),
        ("cwbass.errors.DataError: a\ncwbass.errors.GateError: b", GateError, "verdict failed: b"),
        (
            "    cwbass.steps.compare.CellsFailed: 1 failed:\n      a/b: x\n    c",
            CwbassError,
            "verdict failed: 1 failed: a/b: x (All",
        ),
        ("KeyError: 'x'", CwbassError, "verdict failed; its output is in"),
    ],
)
def test_the_last_error_in_the_log_is_the_cause(tmp_path: Path, last_words: str, kind: type, message: str) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"Traceback (most recent call last):\n{last_words}\n")
    error = failure_of(
        "Pipeline 'p' finished with status \x1b[91mFAILURE\x1b[0m. Inner task failed: \x1b[96m'verdict'\x1b[0m.", log
    )
    assert type(error) is kind
    assert message in str(error)


def test_a_second_run_in_one_folder_is_refused_and_leaves_the_log_of_the_first(tmp_path: Path) -> None:
    """It would write over that, and might take the first one's folder, and scores, for its own."""
    (tmp_path / "log.txt").write_text("of the first")
    code = (
        "import sys; from pathlib import Path; from cwbass.training.lock import lock_folder\n"
        "held = lock_folder(Path(sys.argv[1])); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline()
        done = run_local(tmp_path, "--params", SMOKE)
    assert done.code == 6
    assert f"{tmp_path}: process {first.pid} on " in done.err
    assert (tmp_path / "log.txt").read_text() == "of the first"


def test_a_refusal_is_written_down_by_register_and_fails_the_run_in_verdict(tiny_run: TinyRun, tmp_path: Path) -> None:
    registration, summary = dsl.Artifact(uri=str(tmp_path / "registration")), dsl.Markdown(uri=str(tmp_path / "summary"))
    components.register.python_func(
        params=f"registry: {{name: shapes, min_miou: 0.99, store: {tmp_path / 'store'}}}",
        **{"data_version": "", "run_id": "run", "image": ""},
        train=dsl.Model(uri=str(tiny_run.train)),
        reports=dsl.Artifact(uri=str(tiny_run.reports)),
        registration=registration,
        summary=summary,
    )
    assert registration.metadata["decision"] == "refused"
    page = (tmp_path / "summary").read_text()
    assert "0.99" in page and "refused" in page
    assert not (tmp_path / "store").exists()
    with pytest.raises(GateError, match=r"not registered: .*0\.99"):
        components.verdict.python_func(registration=registration)


def test_register_fails_where_it_cannot_decide(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        components.register.python_func(
            params="registry: {name: shapes}",
            **{"data_version": "", "run_id": "run", "image": ""},
            train=dsl.Model(uri=str(tiny_run.train)),
            reports=dsl.Artifact(uri=str(tmp_path)),
            registration=dsl.Artifact(uri=str(tmp_path / "registration")),
            summary=dsl.Markdown(uri=str(tmp_path / "summary")),
        )


def component(
    task: str,
    run: TinyRun,
    out: Path,
    runs: Path,
    run_id: str = "run",
    data: str | None = None,
    trained: dict[str, str] | None = None,
    params: str | None = None,
) -> dict[str, dsl.Artifact]:
    """A component in this process, on what the steps before it left in the tiny run; returns its artifacts."""
    store = {"registry": {"name": "shapes", "store": str(out.parent / "store"), "onnx": False}}
    arguments = pipeline_arguments(run.params.model_dump(mode="json") | store)
    inputs = {
        "split": dsl.Dataset(uri=str(run.root / "split")),
        "warmup": dsl.Model(uri=str(run.warmup)),
        "train": dsl.Model(uri=str(run.train)),
        "reports": dsl.Artifact(uri=str(run.reports)),
    }
    spec = getattr(components, task).component_spec
    inputs["train"].metadata.update(trained or {})
    kinds = {"Metrics": dsl.Metrics, "ClassificationMetrics": dsl.ClassificationMetrics}
    outputs = {
        name: kinds.get(given.type.partition("@")[0].removeprefix("system."), dsl.Artifact)(name=name, uri=str(out / name))
        for name, given in (spec.outputs or {}).items()
    }
    texts = {
        "params": params or arguments[f"{task}_params"],
        "data": data or str(run.data),
        "data_version": "v3",
        "runs": str(runs),
        "run_id": run_id,
    }
    pod = {"image": "registry/ours@sha256:1f", "cpu": "1", "memory": "1Gi", "accelerator": ""}
    known = {**inputs, **texts, **pod}
    getattr(components, task).python_func(**{name: known[name] for name in spec.inputs or {}}, **outputs)
    return outputs


@pytest.mark.parametrize("task", ["split", "warmup", "train", "evaluate"])
def test_data_that_cannot_be_had_are_a_failure_of_the_step_in_its_metrics(
    task: str, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWBASS_METRICS_TEXTFILE", str(tmp_path / "step.prom"))
    with pytest.raises(ParamsError, match=r"data\.root is shelf://gone"):
        component(task, tiny_run, out=tmp_path / "out", runs=tmp_path / "runs", data="shelf://gone")
    outcome = f'cwbass_stage_last_completion_timestamp_seconds{{outcome="failed",stage="{task}"}}'
    assert outcome in (tmp_path / "step.prom").read_text()


@pytest.mark.parametrize("task", STEPS)
def test_parameters_that_somebody_wrote_wrong_in_the_ui_are_a_failure_of_the_step_in_its_metrics(
    task: str, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step to read them fails, of which only a push can tell an alert."""
    monkeypatch.setenv("CWBASS_METRICS_TEXTFILE", str(tmp_path / "step.prom"))
    with pytest.raises(ParamsError, match="sede: unknown key"):
        component(task, tiny_run, out=tmp_path / "out", runs=tmp_path / "runs", params="{sede: 0}")
    outcome = f'cwbass_stage_last_completion_timestamp_seconds{{outcome="failed",stage="{task}"}}'
    assert outcome in (tmp_path / "step.prom").read_text()


@pytest.mark.parametrize("task", ["warmup", "train"])
def test_metadata_of_a_training_without_a_selection_slice_leave_its_score_out(
    task: str, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher fails on a null, when hours of training are done."""
    report = TrainReport(task, 16, "abc", {"last": "last.pt"}, {task: None})
    monkeypatch.setattr(f"cwbass.steps.launch.{task}_where_asked", lambda *_, **__: report)
    (tmp_path / "runs/run" / task).mkdir(parents=True)
    made = component(task, tiny_run, out=tmp_path / "out", runs=tmp_path / "runs")
    told = {"stage": task, "steps": 16, "split_hash": "abc", "checkpoints.last": "last.pt", "incidents": 0}
    assert made[task].metadata == told


def test_a_version_says_of_which_run_image_and_data_it_is(tiny_run: TinyRun, tmp_path: Path) -> None:
    component(
        "register", tiny_run, out=tmp_path / "out", runs=tmp_path / "runs", run_id="run-7", trained={"data_listing": "0a1b"}
    )
    version = tmp_path / "store/models/shapes/versions/1.0.0"
    provenance = json.loads((version / "provenance.json").read_text())
    image = "registry/ours@sha256:1f"
    assert provenance["origin"] == {"data_version": "v3", "data_listing": "0a1b", "run_id": "run-7", "image": image}
    assert provenance["data"]["root"] == str(tiny_run.data)
    card = (version / "README.md").read_text()
    for row in (("Pipeline run", "run-7"), ("Image", image), ("Version of the data", "v3")):
        assert f"| {row[0]} | {row[1]} |" in card


def test_what_is_recorded_names_the_data_that_a_component_was_given(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not ``data.root`` of the parameters, from which the pipeline was compiled; the copy is named by its listing."""
    monkeypatch.setitem(STORES, "shelf", lambda url, copies: tiny_run.data)
    component("split", tiny_run, out=tmp_path, runs=tmp_path / "runs", data="shelf://streets")
    assert read_params(tmp_path / "split/params.yaml")["data"]["root"] == "shelf://streets"

    seen: list[TrainTask] = []

    def train(task: TrainTask, **_: object) -> TrainReport:
        seen.append(task)
        task.out_dir.mkdir(parents=True)
        return TrainReport("train", 16, "abc", {"last": "last.pt"}, {})

    monkeypatch.setattr("cwbass.steps.launch.train_where_asked", train)
    made = component("train", tiny_run, out=tmp_path, runs=tmp_path / "runs", data="shelf://streets")
    assert (seen[0].params.data.root, seen[0].data_root) == ("shelf://streets", tiny_run.data)
    assert made["train"].metadata["data_listing"] == tiny_run.data.name


@pytest.mark.parametrize("task", STEPS)
def test_a_component_names_the_place_that_it_cannot_write_to_and_how_to_mend_it(
    task: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CwbassError, match=f"{tmp_path / 'file'}.*: Not a directory.* Name a place that can be written to"):
        component(task, tiny_run, out=tmp_path / "file", runs=tmp_path / "file")


def test_a_component_whose_artifact_finds_no_room_says_so(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.warmup, tmp_path / "runs/1/warmup")  # done: it is only handed over
    (tmp_path / "out/warmup").mkdir(parents=True)
    (tmp_path / "out/warmup/warmup.pt").symlink_to("/dev/full")
    with pytest.raises(ServiceError, match=f"{tmp_path / 'out/warmup/warmup.pt'}: No space left on device. Make room"):
        component("warmup", tiny_run, out=tmp_path / "out", runs=tmp_path / "runs", run_id="1")
