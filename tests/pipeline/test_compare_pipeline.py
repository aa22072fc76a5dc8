"""The comparison as a compiled pipeline: its loops, and what its pods are given."""

from __future__ import annotations

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


def loop(spec: dict[str, Any], tasks: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one loop among tasks, and the tasks inside it."""
    (found,) = [task for name, task in tasks.items() if name.startswith("for-loop")]
    return found, spec["components"][found["componentRef"]["name"]]["dag"]["tasks"]


def test_a_loop_over_splits_holds_the_baseline_and_after_it_a_loop_over_methods(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    groups, inside = loop(spec, tasks)
    variants, innermost = loop(spec, inside)
    assert groups["dependentTasks"] == ["plan"]
    (baseline,) = [task for name, task in inside.items() if name == "cell"]
    assert baseline["inputs"]["parameters"]["variant"]["runtimeValue"]["constant"] == "supervised"
    assert "cell" in variants["dependentTasks"]
    assert list(innermost) == ["cell-2"]
    given = innermost["cell-2"]["inputs"]["parameters"]
    assert {"group", "variant", "runs", "run_id"} <= given.keys()
    assert given["run_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
    assert tasks["table"]["dependentTasks"] == [groups["taskInfo"]["name"]]
    assert (groups["iteratorPolicy"]["parallelismLimit"], variants["iteratorPolicy"]["parallelismLimit"]) == (8, 8)


def test_the_defaults_are_the_grid_and_all_parameters(spec: dict[str, Any]) -> None:
    defaults = {name: body["defaultValue"] for name, body in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert {name: defaults[name] for name in GRID} == GRID
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


def test_no_result_is_taken_from_a_cache_and_every_step_is_started_again(spec: dict[str, Any]) -> None:
    _, inside = loop(spec, spec["root"]["dag"]["tasks"])
    _, innermost = loop(spec, inside)
    for name, task in {**spec["root"]["dag"]["tasks"], **inside, **innermost}.items():
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


def test_the_first_component_gives_what_the_loops_go_over(shapes: Path, tmp_path: Path) -> None:
    values = {**compare_arguments(VALUES, **{**GRID, "labels": "1/4,5"}), "data": str(shapes)}
    groups, variants = components.plan.python_func(**values, runs=str(tmp_path), run_id="run-1")
    assert groups == ["1-4/seed0", "1-4/seed1", "5/seed0", "5/seed1"]
    assert variants == ["cw_bass", "fixmatch"]
    plan = Plan.read(tmp_path / "run-1" / "compare")
    assert {f"{group}/{name}" for group in groups for name in ("supervised", *variants)} == {cell.id for cell in plan.cells()}
