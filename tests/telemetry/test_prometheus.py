"""A real Prometheus scrapes a real short training, and answers what the dashboard asks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from commands import call
from prometheus_servers import clean_environment, free_port, need, prometheus, promtool, pushgateway, wait_for
from tiny import TinyRun

from cwbass.errors import Interrupted
from cwbass.files import file_sha256
from cwbass.telemetry import TelemetrySettings, observe
from cwbass.training.checkpoint import load_checkpoint

TOP = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((TOP / "k8s/base/monitoring/dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
EXPRESSIONS = [target["expr"] for panel in PANELS.values() for target in panel["targets"]]
SMOKE = TOP / "configs" / "smoke.yaml"
STEPS, WARMUP_STEPS = 120, 8  # some seconds: on a busy machine single scrapes time out, and a rate needs two on the way
LINGER = 4.0

Series = list[tuple[dict[str, str], float]]


@dataclass
class Observed:
    """What was seen of a run: eval and register are pushed, the training is scraped as well."""

    answers: dict[str, Series] = field(default_factory=dict)  # of each expression of the dashboard
    exposition: str = ""  # what the training's port showed at its end
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def value(self, expression: str, **labels: str) -> float:
        """Of the one series of an answer that has these labels."""
        (found,) = [value for own, value in self.answers[expression] if labels.items() <= own.items()]
        return found


def write_params(run: TinyRun, path: Path) -> Path:
    """The parameters of the tiny run, for the command line."""
    path.write_text(json.dumps(run.params.model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def observed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    need("prometheus")
    need("prometheus-pushgateway", "pushgateway")
    folder = tmp_path_factory.mktemp("observed")
    params, port = write_params(tiny_run, folder / "params.yaml"), free_port()
    seen = Observed(folder=folder)
    with (
        pushgateway(folder) as gateway,
        prometheus(folder, trainings=[f"127.0.0.1:{port}"], gateway=gateway) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        told = {"CWBASS_PUSHGATEWAY": gateway.url, "CWBASS_PIPELINE": "shapes", "CWBASS_RUN_ID": "run-7"}
        command = [sys.executable, "-m", "cwbass", "train", "--params", str(params), "--set", f"train.steps={STEPS}"]
        command += ["--manifest", str(tiny_run.manifest), "--data", str(tiny_run.data), "--out", str(folder / "train")]
        command += ["--warmup", str(tiny_run.warmup / "warmup.pt")]
        command += ["--metrics-port", str(port), "--metrics-linger", str(LINGER)]
        environment = clean_environment() | told
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=TOP
        ) as process:
            assert process.stderr is not None
            talk = []
            for line in process.stderr:
                talk.append(line)
                if "served for" in line:
                    ended = time.time()
                    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                        seen.exposition = answer.read().decode()
        assert process.returncode == 0, "".join(talk)
        seen.history = [json.loads(line) for line in (folder / "train" / "history.jsonl").read_text().splitlines()]

        for name, value in told.items():
            patch.setenv(name, value)
        reports, store = folder / "reports", f"registry.store={folder / 'store'}"
        evaluated = call(
            *("eval", "--checkpoint", tiny_run.train, "--baseline", tiny_run.warmup, "--manifest", tiny_run.manifest),
            *("--out", reports),
        )
        assert evaluated.returncode == 0, evaluated.stderr
        seen.scores = json.loads((reports / "metrics.json").read_text())
        registered = call(
            *("register", "--params", params, "--set", store, "--set", "registry.onnx=false", "--checkpoint", tiny_run.train),
            *("--metrics", reports / "metrics.json", "--out", folder / "registration"),
        )
        assert registered.returncode == 0, registered.stderr
        wait_for(lambda: server.query("cwbass_registry_operations_total > 0"), "the push to be scraped")
        for expression in EXPRESSIONS:
            asked = expression.replace("$window", "2m").replace("$instance", ".+").replace("$pipeline", ".+")
            # A training's series end with its process: ask for the time when it was lingering.
            at = ended + LINGER / 2 if "$instance" in expression else time.time()
            seen.answers[expression] = server.query(asked, time=f"{at:.3f}")
        yield seen


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_of_the_dashboard_is_fed(observed: Observed, panel: str) -> None:
    for target in PANELS[panel]["targets"]:
        answer = observed.answers[target["expr"]]
        if "cwbass_gpu_memory" in target["expr"] and not torch.cuda.is_available():
            assert answer == []  # there is no GPU whose memory could be told
            continue
        assert answer, target["expr"]
        assert any(math.isfinite(value) for _, value in answer), answer


def expression(panel: str, target: int = 0) -> str:
    found: str = PANELS[panel]["targets"][target]["expr"]
    return found


def test_the_answers_are_those_of_the_run(observed: Observed) -> None:
    last = observed.history[-1]
    assert observed.value(expression("Progress of the phase")) == 1.0
    for term, key in (("total", "loss"), ("sup", "loss_sup"), ("unsup", "loss_unsup"), ("boundary", "loss_boundary")):
        assert observed.value(expression("Loss"), term=term) == pytest.approx(last[key])
    assert observed.value(expression("Norm of the gradient")) == pytest.approx(last["grad_norm"])
    for name in ("student", "teacher"):
        seen = observed.value(expression("mIoU on the selection slice"), weights=name)
        assert seen == pytest.approx(last[f"selection_miou_{name}"])
    boundary = observed.value(expression("Precision, all classes and near boundaries", 1))
    assert boundary == pytest.approx(last["boundary_precision"])
    thresholds = {labels["class"]: value for labels, value in observed.answers[expression("Threshold, by class")]}
    assert list(thresholds.values()) == pytest.approx(
        [last["threshold"][list(observed.scores["per_class"]).index(name)] for name in thresholds]
    )
    assert observed.value(expression("Test mIoU"), weights="teacher") == pytest.approx(observed.scores["miou"])
    assert observed.value(expression("Test mIoU"), weights="baseline") == pytest.approx(observed.scores["baseline_miou"])
    for labels, value in observed.answers[expression("Test IoU by class")]:
        key = "baseline_iou" if labels["weights"] == "baseline" else "iou"
        assert value == pytest.approx(observed.scores["per_class"][labels["class"]][key])
    uploaded = sum(
        path.stat().st_size
        for path in (observed.folder / "store").rglob("*")
        if path.is_file() and path.name not in ("MANIFEST.json", "SHA256SUMS")
    )
    assert observed.value(expression("Registry upload")) == uploaded
    assert observed.value(expression("Registry"), operation="register", outcome="success") == 1
    for found in ("Kept, all classes", "Kept, by class", "Waiting for data"):
        assert all(0 <= value <= 1 for _, value in observed.answers[expression(found)] if not math.isnan(value)), found


def test_every_step_pixel_and_image_was_counted(observed: Observed, tiny_run: TinyRun) -> None:
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in observed.exposition.splitlines()
        if not line.startswith("#")
    }
    steps, batch, side = STEPS - WARMUP_STEPS, tiny_run.params.train.batch_unlabeled, tiny_run.params.augment.crop_size
    assert values['cwbass_train_steps_total{phase="train"}'] == steps
    assert values["cwbass_train_step_duration_seconds_count"] == steps
    assert values['cwbass_train_images_total{kind="unlabeled"}'] == steps * batch
    pixels = sum(value for name, value in values.items() if name.startswith("cwbass_pseudo_label_pixels_total"))
    assert pixels == values["cwbass_pseudo_label_confidence_count"]
    assert 0.5 * steps * batch * side**2 < pixels <= steps * batch * side**2  # padding does not count
    epochs = len(observed.history)
    assert (
        epochs <= values['cwbass_checkpoints_total{outcome="written"}'] <= 3 * epochs
    )  # last, the healthiest, and best now and then
    assert values["cwbass_checkpoint_bytes"] == (observed.folder / "train" / "last.pt").stat().st_size


def test_a_training_that_went_on_and_one_that_was_stopped_are_seen_as_such(tmp_path: Path) -> None:
    """It goes on before it is scraped for the first time, and is gone before it is scraped again: no increase sees either."""
    need("prometheus-pushgateway", "pushgateway")
    port = free_port()
    with pushgateway(tmp_path) as gateway, prometheus(tmp_path, trainings=[f"127.0.0.1:{port}"], gateway=gateway) as server:
        settings = TelemetrySettings(port=port, pushgateway=gateway.url, pipeline="shapes")
        with suppress(Interrupted), observe("train", settings) as telemetry:
            telemetry.resumed()
            wait_for(lambda: server.query("cwbass_train_resumes_total"), "the training to be scraped")
            telemetry.interrupted("SIGTERM")
            raise Interrupted("asked to")
        stopped, went_on = (target["expr"] for target in PANELS["Stops and continuations"]["targets"])
        for asked in (stopped, went_on):
            for variable, value in (("$window", "1m"), ("$instance", ".+"), ("$pipeline", ".+")):
                asked = asked.replace(variable, value)
            found = wait_for(lambda asked=asked: server.query(asked), asked)  # type: ignore[misc]
            assert [value for _, value in found] == [1.0], asked


def test_run_and_build_are_named(observed: Observed, tiny_run: TinyRun) -> None:
    runs = {labels["stage"]: labels for labels, _ in observed.answers["cwbass_run_info"]}
    assert set(runs) == {"train", "evaluate", "register"}
    split = json.loads(tiny_run.manifest.read_text())["hash"]
    assert {labels["data_version"] for labels in runs.values()} == {split[:12]}
    assert {labels["run_id"] for labels in runs.values()} == {"run-7"}
    assert runs["train"]["model"] == "unet/tu-mobilenetv4_conv_small_050"
    assert all(labels["torch"] == torch.__version__ for labels, _ in observed.answers["cwbass_build_info"])


def test_promtool_accepts_what_is_served_and_what_is_written(observed: Observed) -> None:
    written = (observed.folder / "train" / "metrics.prom").read_text()
    assert 'cwbass_stage_last_completion_timestamp_seconds{outcome="success",stage="train"}' in written
    for text in (observed.exposition, written):
        checked = promtool("check", "metrics", text=text)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_gateway_that_hangs_changes_nothing_in_the_result(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("CWBASS_PUSHGATEWAY_TIMEOUT", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connects, and never answers
        port = deaf.getsockname()[1]
        done = call(
            *("train", "--params", write_params(tiny_run, tmp_path / "params.yaml"), "--manifest", tiny_run.manifest),
            *("--warmup", tiny_run.warmup / "warmup.pt", "--data", tiny_run.data, "--out", tmp_path / "train"),
            *("--pushgateway", f"127.0.0.1:{port}", "--metrics-port", port),  # the port is taken, too
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "train"
    assert load_checkpoint(tmp_path / "train" / "last.pt").step == load_checkpoint(tiny_run.train / "last.pt").step
    for name in ("last.pt", "best.pt", "history.jsonl"):
        assert file_sha256(tmp_path / "train" / name) == file_sha256(tiny_run.train / name), name
