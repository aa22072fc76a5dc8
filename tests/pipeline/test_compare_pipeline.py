"""The comparison as a compiled pipeline: its loops, and what its pods are given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kfp", reason="needs kfp: pip install -c constraints.txt -e '.[pipeline]'")

from components import compare as components
from cwbass.comparison.plan import Plan
from cwbass.errors import ParamsError
from cwbass.params import Params, load_params, parse_yaml, read_params
from pipeline.arguments import compare_arguments
from pipeline.compare import build
from pipeline.compile import compile_pipeline

TOP = Path(__file__).parents[2]
VALUES = read_params(TOP / "configs" / "smoke.yaml")
GRID = {"methods": "cw_bass,fixmatch", "seeds": "0,1", "labels": "1/4", "budget": "steps=16"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("compare") / "pipeline.yaml"
    return list(yaml.safe_load_all(compile_pipeline(compare_arguments(VALUES, **GRID), path, build=build).read_text()))


@pytest.fixture(scope="module")
def spec(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def tasks_of(spec: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """What a loop or a pipeline in the pipeline is made of."""
    return dict(spec["components"][task["componentRef"]["name"]]["dag"]["tasks"])


def loop(spec: dict[str, Any], tasks: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one loop among tasks, and the tasks inside it."""
    (found,) = [task for name, task in tasks.items() if name.startswith("for-loop")]
    return found, tasks_of(spec, found)


def test_a_loop_over_splits_holds_the_baseline_and_after_it_a_loop_over_methods(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    groups, inside = loop(spec, tasks)
    assert groups["dependentTasks"] == ["plan"]
    assert list(inside) == ["group"]
    inside = tasks_of(spec, inside["group"])
    methods, innermost = loop(spec, inside)
    (baseline,) = [task for name, task in inside.items() if name == "cell"]
    assert baseline["inputs"]["parameters"]["variant"]["runtimeValue"]["constant"] == "supervised"
    assert methods["dependentTasks"] == ["cell"]
    assert list(innermost) == ["cell-2"]
    assert innermost["cell-2"]["inputs"]["parameters"]["run_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
    assert tasks["table"]["dependentTasks"] == [groups["taskInfo"]["name"]]
    assert (groups["iteratorPolicy"]["parallelismLimit"], methods["iteratorPolicy"]["parallelismLimit"]) == (8, 8)


def play(
    spec: dict[str, Any], dag: dict[str, Any], given: dict[str, Any], ran: list[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Follow a DAG as a back end should; ``ran`` gets its tasks with what each is given. Returns its outputs."""
    outputs: dict[str, dict[str, Any]] = {}
    left = dict(dag["dag"]["tasks"])

    def value(source: dict[str, Any]) -> Any:
        if "componentInputParameter" in source:
            return given[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            return outputs[source["taskOutputParameter"]["producerTask"]][source["taskOutputParameter"]["outputParameterKey"]]
        return source["runtimeValue"]["constant"]

    while left:
        name = next(name for name, task in left.items() if set(task.get("dependentTasks", ())) <= outputs.keys())
        task = left.pop(name)
        component = spec["components"][task["componentRef"]["name"]]
        taken = {key: value(source) for key, source in task["inputs"]["parameters"].items()}
        if iterator := task.get("parameterIterator"):
            items = taken[iterator["items"]["inputParameter"]]
            each = [play(spec, component, {**taken, iterator["itemInput"]: item}, ran) for item in items]
            outputs[name] = {key: [found[key] for found in each] for key in each[0]}
        elif "dag" in component:
            outputs[name] = play(spec, component, taken, ran)
        else:
            ran.append((name, taken))
            outputs[name] = {"Output": ["a", "b"] if name == "plan" else f"{taken.get('group')}/{taken.get('variant')}"}
    selectors = {key: found["valueFromParameter"] for key, found in dag["dag"].get("outputs", {}).get("parameters", {}).items()}
    return {key: outputs[found["producerSubtask"]][found["outputParameterKey"]] for key, found in selectors.items()}


def test_followed_task_by_task_it_runs_each_method_after_its_baseline_and_then_the_table(spec: dict[str, Any]) -> None:
    defaults = {name: body["defaultValue"] for name, body in spec["root"]["inputDefinitions"]["parameters"].items()}
    ran: list[tuple[str, dict[str, Any]]] = []
    play(spec, spec["root"], defaults, ran)
    (first, _), *cells, (last, table) = ran
    assert (first, last) == ("plan", "table")
    variants = ("supervised", "cw_bass", "fixmatch")
    assert [(given["group"], given["variant"]) for _, given in cells] == [(group, name) for group in "ab" for name in variants]
    assert table["cells"] == [["a/cw_bass", "a/fixmatch"], ["b/cw_bass", "b/fixmatch"]]


def test_a_task_takes_no_parameter_that_the_loop_around_it_does_not_have(documents: list[dict[str, Any]]) -> None:
    """kfp compiles such a pipeline without a word; the back end then fails the task."""
    spec, platform = documents
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    dags = {"root": spec["root"], **{name: body for name, body in spec["components"].items() if "dag" in body}}
    seen = set()
    for name, dag in dags.items():
        known = dag["inputDefinitions"]["parameters"].keys()
        for task in dag["dag"]["tasks"].values():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            given = json.dumps([task["inputs"], executors.get(label)])
            taken = set(re.findall(r'"componentInputParameter": "([^"]+)"', given))
            assert taken <= known, (name, task["taskInfo"]["name"])
            seen |= taken
    assert {"cpu", "node_selector"} <= seen and {"pipelinechannel--cpu", "pipelinechannel--node_selector"} <= seen


def test_the_defaults_are_the_grid_and_all_parameters(spec: dict[str, Any]) -> None:
    defaults = {name: body["defaultValue"] for name, body in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert {name: defaults[name] for name in GRID} == {**GRID, "methods": ["cw_bass", "fixmatch"]}
    assert load_params(parse_yaml(defaults["params"], "params"), Params) == load_params(VALUES, Params)
    assert defaults["data"] == "data/shapes"
    assert not [name for name, body in spec["root"]["inputDefinitions"]["parameters"].items() if not body.get("description")]


@pytest.mark.parametrize("task", ["plan", "cell", "cell-2", "table"])
def test_a_pod_has_the_volume_no_rights_a_label_and_no_cache(documents: list[dict[str, Any]], task: str) -> None:
    spec, platform = documents
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task}"]
    assert [volume["mountPath"] for volume in pod["pvcMount"]] == ["/workspace"]
    assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
    assert pod["podMetadata"]["labels"]["app.kubernetes.io/component"] == task.removesuffix("-2")
    container = spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"]
    assert container["image"] == "ghcr.io/cwbass/cwbass:0.1.0-gpu"
    assert ("accelerator" in container["resources"]) == (task != "table")


def test_a_pod_that_trains_a_cell_is_scraped(documents: list[dict[str, Any]]) -> None:
    spec, platform = documents
    monitor, _ = yaml.safe_load_all((TOP / "k8s/base/monitoring/podmonitor.yaml").read_text())
    (among,) = monitor["spec"]["selector"]["matchExpressions"]
    for task in ("cell", "cell-2"):
        pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task}"]
        assert pod["podMetadata"]["labels"][among["key"]] in among["values"]
        told = {item["name"]: item["value"] for item in spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"]["env"]}
        assert (told["CWBASS_METRICS_PORT"], told["CWBASS_METRICS_ADDRESS"]) == ("9095", "0.0.0.0")


def test_no_result_is_taken_from_a_cache_and_every_step_is_started_again(spec: dict[str, Any]) -> None:
    _, groups = loop(spec, spec["root"]["dag"]["tasks"])
    inside = tasks_of(spec, groups["group"])
    _, innermost = loop(spec, inside)
    found = {**spec["root"]["dag"]["tasks"], **inside, **innermost}
    assert found.keys() >= {"plan", "cell", "cell-2", "table"}
    for name, task in found.items():
        if not name.startswith("for-loop"):
            assert not task["cachingOptions"].get("enableCache")
            assert task["retryPolicy"]["maxRetryCount"] == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": "unimach"}, "--methods names unimach"),
        ({"seeds": "a"}, "--seeds has a"),
        ({"labels": "half"}, "--labels has 'half'"),
        ({"budget": "hours=1"}, "--budget is 'hours=1'"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_sent(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        compare_arguments(VALUES, **{**GRID, **wrong})


@pytest.mark.parametrize("methods", ["cw_bass,fixmatch", "supervised,cw_bass,fixmatch"])
def test_the_baseline_is_no_item_of_the_loop_over_methods(methods: str) -> None:
    assert compare_arguments(VALUES, **{**GRID, "methods": methods})["methods"] == ["cw_bass", "fixmatch"]
    assert compare_arguments(VALUES, **{**GRID, "methods": ""})["methods"] == ["cw_bass"]  # that of the parameters


def test_the_first_component_gives_what_the_outer_loop_goes_over(shapes: Path, tmp_path: Path) -> None:
    values = {**compare_arguments(VALUES, **{**GRID, "labels": "1/4,5"}), "data": str(shapes)}
    groups = components.plan.python_func(**values, runs=str(tmp_path), run_id="run-1")
    assert groups == ["1-4/seed0", "1-4/seed1", "5/seed0", "5/seed1"]
    plan = Plan.read(tmp_path / "run-1" / "compare")
    names = ("supervised", *values["methods"])
    assert {f"{group}/{name}" for group in groups for name in names} == {cell.id for cell in plan.cells()}
