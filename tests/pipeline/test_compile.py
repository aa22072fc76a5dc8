"""The compiled pipeline: the same bytes each time, and for each pod what it needs."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from full_disk import files_of_at_most

pytest.importorskip("kfp", reason="needs kfp: pip install -c constraints.txt -e '.[pipeline]'")

import components
from cwbass.errors import ParamsError, ServiceError, disk_failures
from cwbass.params import read_params
from pipeline import compare
from pipeline.__main__ import main
from pipeline.arguments import STEPS, compare_arguments, pipeline_arguments
from pipeline.compile import compile_pipeline

TOP = Path(__file__).parents[2]
GOLDEN = TOP / "tests/pipeline/pipeline.golden.yaml"
REGENERATE = "python -m pipeline compile --params configs/smoke.yaml --out tests/pipeline/pipeline.golden.yaml"
GPU_STEPS = ("warmup", "train", "evaluate")
COMPONENTS = {name: getattr(components, name) for name in components.__all__}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = pipeline_arguments(read_params(TOP / "configs/smoke.yaml"))
    return compile_pipeline(arguments, tmp_path_factory.mktemp("compiled") / "pipeline.yaml")


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    first, _ = yaml.safe_load_all(compiled.read_text())
    return dict(first)


@pytest.fixture(scope="module")
def pods(compiled: Path) -> dict[str, Any]:
    _, second = yaml.safe_load_all(compiled.read_text())
    executors = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): pod for name, pod in executors.items()}


@pytest.fixture(scope="module")
def tasks(spec: dict[str, Any]) -> dict[str, Any]:
    return dict(spec["root"]["dag"]["tasks"])


def container(spec: dict[str, Any], task: str) -> dict[str, Any]:
    return dict(spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"])


def test_it_is_the_golden_file_byte_for_byte(compiled: Path) -> None:
    found, golden = compiled.read_text().splitlines(), GOLDEN.read_text().splitlines()
    changes = "\n".join(difflib.unified_diff(golden, found, "golden", "compiled", lineterm="", n=1))
    assert compiled.read_bytes() == GOLDEN.read_bytes(), f"If this is meant, run:\n  {REGENERATE}\n{changes[:4000]}"


def test_the_command_compiles_the_same_bytes_and_says_their_sum(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The golden file is of another process, with another seed of hashes: the order of mappings does not show."""
    command = ["pipeline", "compile", "--params", str(TOP / "configs/smoke.yaml"), "--out", str(tmp_path / "again.yaml")]
    monkeypatch.setattr(sys, "argv", command)
    with suppress(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["sha256"] == hashlib.sha256(compiled.read_bytes()).hexdigest()
    assert (tmp_path / "again.yaml").read_bytes() == compiled.read_bytes()


def test_the_header_is_comments_alone(compiled: Path) -> None:
    header = compiled.read_text().partition("\ncomponents:\n")[0].splitlines()
    assert header[1:] == [
        "# Name: cwbass-train-eval-register",
        "# Description: CW-BASS: split, warm up, train semi-supervised, evaluate, register.",
    ]


def test_the_defaults_of_the_parameters_are_those_of_the_file(spec: dict[str, Any]) -> None:
    defaults = {name: body["defaultValue"] for name, body in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert defaults == {
        **pipeline_arguments(read_params(TOP / "configs/smoke.yaml")),
        "data_version": "",
        "cpu": "4",
        "memory": "16Gi",
        "accelerator_type": "nvidia.com/gpu",
        "accelerator_count": "1",
        "node_selector": {},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }


def gpus(spec: dict[str, Any], task: str) -> int:
    """How many GPUs a task's pod asks for as the pipeline was compiled."""
    given = {name: body.get("defaultValue") for name, body in spec["root"]["inputDefinitions"]["parameters"].items()}
    accelerator = container(spec, task)["resources"].get("accelerator", {"resourceType": "", "resourceCount": "0"})

    def value(text: str) -> str:
        channel = re.fullmatch(r"\{\{\$\.inputs\.parameters\['pipelinechannel--(\w+)'\]\}\}", text)
        return str(given[channel[1]]) if channel else text

    # The back end asks for none where the type is empty (initPodSpecPatch of its driver).
    return int(value(accelerator["resourceCount"])) if value(accelerator["resourceType"]) else 0


@pytest.mark.parametrize(
    ("train", "counts", "cells"),
    [
        ({}, (1, 1, 1), (1, 1, 1)),
        ({"processes": 2}, (2, 2, 1), (1, 2, 2)),
        ({"processes": 2, "nodes": 3}, (2, 0, 1), None),  # the GPUs are those of the TrainJob's pods
        ({"processes": 2, "device": "cpu"}, (0, 0, 0), (0, 0, 0)),
    ],
)
def test_a_pod_asks_for_a_gpu_for_each_of_its_processes(
    train: dict[str, Any], counts: tuple[int, ...], cells: tuple[int, ...] | None, tmp_path: Path
) -> None:
    values, out = read_params(TOP / "configs/smoke.yaml"), tmp_path / "pipeline.yaml"
    values["train"] |= train
    compile_pipeline(pipeline_arguments(values), out)
    spec = next(yaml.safe_load_all(out.read_text()))
    assert tuple(gpus(spec, task) for task in GPU_STEPS) == counts
    if cells is not None:
        grid = compare_arguments(values, methods="", seeds="", labels="", budget="")
        spec = next(yaml.safe_load_all(compile_pipeline(grid, out, build=compare.build).read_text()))
        assert tuple(gpus(spec, task) for task in ("plan", "cell", "cell-2")) == cells


def test_a_pod_that_starts_a_train_job_asks_for_little_and_is_not_scraped(tmp_path: Path) -> None:
    values = read_params(TOP / "configs/smoke.yaml")
    values["train"] |= {"nodes": 2}
    out = compile_pipeline(pipeline_arguments(values), tmp_path / "pipeline.yaml")
    spec, platform = yaml.safe_load_all(out.read_text())
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert container(spec, "train")["resources"]["resourceCpuRequest"] == "1"
    assert "tolerations" not in pod  # it leaves nodes with GPUs to others
    monitor, _ = yaml.safe_load_all((TOP / "k8s/base/monitoring/podmonitor.yaml").read_text())
    (among,) = monitor["spec"]["selector"]["matchExpressions"]
    assert pod["podMetadata"]["labels"][among["key"]] not in among["values"]  # it would be a target that never answers


def test_nothing_is_cached(tasks: dict[str, Any]) -> None:
    """A cache goes by texts and names of artifacts: data may change below the same name, and models of all runs have one name."""
    assert {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")} == set()


def test_every_step_is_started_again_with_growing_delays_and_the_verdict_is_not(tasks: dict[str, Any]) -> None:
    policy = {"maxRetryCount": 3, "backoffDuration": "60s", "backoffFactor": 2.0}
    found = {name: task.get("retryPolicy") for name, task in tasks.items()}
    assert found.pop("verdict") is None
    assert {name: {key: each[key] for key in policy} for name, each in found.items()} == dict.fromkeys(STEPS, policy)


def test_no_attempt_comes_too_late_to_be_started_or_is_cut_short(tasks: dict[str, Any], pods: dict[str, Any]) -> None:
    """Argo counts the longest duration of a back-off from the start of the first attempt, the attempts' own time included."""
    for name in STEPS:
        policy, attempt = tasks[name]["retryPolicy"], pods[name]["activeDeadlineSeconds"]
        attempts = 1 + policy["maxRetryCount"]
        waits = sum(60 * 2**turn for turn in range(policy["maxRetryCount"]))
        assert int(policy["backoffMaxDuration"].removesuffix("s")) >= attempts * int(attempt) + waits, name


def test_training_keeps_its_checkpoints_by_the_id_of_the_run(tasks: dict[str, Any]) -> None:
    for name in ("warmup", "train"):
        given = tasks[name]["inputs"]["parameters"]
        # Alone in its parameter: inside of a longer text the back end would leave the placeholder as it is.
        assert given["run_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
        assert given["runs"]["runtimeValue"]["constant"] == "artifacts/runs"


def test_no_decision_is_taken_by_the_dag(tasks: dict[str, Any]) -> None:
    assert not any("triggerPolicy" in task or "iterator" in str(task) for task in tasks.values())


@pytest.mark.parametrize("task", COMPONENTS)
def test_a_container_installs_nothing_and_runs_the_one_image(spec: dict[str, Any], task: str) -> None:
    found = container(spec, task)
    assert found["image"] == "ghcr.io/cwbass/cwbass:0.1.0-gpu"
    assert "pip install" not in " ".join(found["command"])


@pytest.mark.parametrize("task", GPU_STEPS)
def test_a_step_on_the_gpu_asks_for_what_the_parameters_say(spec: dict[str, Any], pods: dict[str, Any], task: str) -> None:
    resources = container(spec, task)["resources"]
    assert resources["accelerator"]["resourceType"] == "{{$.inputs.parameters['pipelinechannel--accelerator_type']}}"
    count = "1" if task == "evaluate" else "{{$.inputs.parameters['pipelinechannel--accelerator_count']}}"
    assert resources["accelerator"]["resourceCount"] == count
    assert resources["resourceCpuRequest"] == "{{$.inputs.parameters['pipelinechannel--cpu']}}"
    assert resources["resourceMemoryRequest"] == "{{$.inputs.parameters['pipelinechannel--memory']}}"
    assert pods[task]["nodeSelector"]["nodeSelectorJson"] == {"componentInputParameter": "node_selector"}
    assert pods[task]["tolerations"] == [{"tolerationJson": {"componentInputParameter": "tolerations"}}]
    assert pods[task]["emptyDirMounts"] == [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory"}]


@pytest.mark.parametrize("task", ["split", "register", "verdict"])
def test_a_step_that_needs_no_gpu_holds_none(spec: dict[str, Any], pods: dict[str, Any], task: str) -> None:
    assert "accelerator" not in container(spec, task)["resources"]
    assert container(spec, task)["resources"]["resourceCpuRequest"] == "1"
    assert "tolerations" not in pods[task]


@pytest.mark.parametrize("task", STEPS)
def test_a_step_has_the_work_volume_as_its_working_directory_and_s3_from_an_optional_secret(
    pods: dict[str, Any], task: str
) -> None:
    (volume,) = pods[task]["pvcMount"]
    assert (volume["constant"], volume["mountPath"]) == ("cwbass-work", "/workspace")
    (secret,) = pods[task]["secretAsEnv"]
    assert (secret["secretName"], secret["optional"]) == ("cwbass-s3", True)
    # Temporary credentials are refused without the last of the three.
    credentials = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    keys = credentials | {"AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "CWBASS_S3_CHECKSUM"}
    assert {(item["secretKey"], item["envVar"]) for item in secret["keyToEnv"]} == {(key, key) for key in keys}


@pytest.mark.parametrize("task", COMPONENTS)
def test_a_pod_is_labelled_has_a_deadline_and_is_not_root(pods: dict[str, Any], task: str) -> None:
    labels = pods[task]["podMetadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "cwbass"
    assert labels["app.kubernetes.io/component"] == task
    assert int(pods[task]["activeDeadlineSeconds"]) >= 3600
    assert pods[task]["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_thin_and_imports_cwbass_alone(name: str) -> None:
    source = inspect.getsource(COMPONENTS[name].python_func)
    body = source.rpartition('"""')[2]
    imported = set(re.findall(r"^ +(?:from|import) ([a-z]+)", body, flags=re.MULTILINE))
    assert imported <= {"contextlib", "cwbass", "functools", "pathlib", "shutil"}
    lines = [line for line in body.splitlines() if line.strip() and not re.match(r" +(?:from|import|#) ?", line)]
    assert len(lines) <= 12, body


@pytest.mark.parametrize("name", STEPS)
def test_a_component_calls_the_steps_whose_import_keeps_freed_memory(name: str) -> None:
    assert re.search(r"^ +from cwbass\.steps(\.\w+)? import", inspect.getsource(COMPONENTS[name].python_func), flags=re.MULTILINE)


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_ui_can_say_what_a_component_and_each_of_its_inputs_and_outputs_is(name: str) -> None:
    spec = COMPONENTS[name].component_spec
    described = {**(spec.inputs or {}), **(spec.outputs or {})}
    assert spec.description
    assert [key for key, value in described.items() if not value.description] == []


def test_a_file_that_is_not_yaml_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    arguments = pipeline_arguments({"train": {"steps": 1}})
    with pytest.raises(ParamsError, match=r"name it \.yaml"):
        compile_pipeline(arguments, tmp_path / "pipeline.json")
    (tmp_path / "file").touch()
    with pytest.raises(ParamsError, match="cannot be written"):
        compile_pipeline(arguments, tmp_path / "file" / "pipeline.yaml")


def test_a_full_disk_leaves_the_pipeline_that_was_compiled_before(tmp_path: Path) -> None:
    out = tmp_path / "pipeline.yaml"
    out.write_text("before")
    with files_of_at_most(4096), pytest.raises(ServiceError, match="File too large"), disk_failures():
        compile_pipeline(pipeline_arguments({"train": {"steps": 1}}), out)
    assert out.read_text() == "before"


def test_the_ui_can_say_what_each_parameter_of_the_pipeline_is(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert [name for name, body in parameters.items() if not body.get("description")] == []
