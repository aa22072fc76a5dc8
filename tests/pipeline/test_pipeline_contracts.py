"""dvc.yaml, the compiled pipeline and the command line are three ways to run one thing: the same stages, parameters and artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cwbass.cli import app
from pipeline.arguments import STEPS

TOP = Path(__file__).parents[2]
DVC: dict[str, Any] = yaml.safe_load((TOP / "dvc.yaml").read_text())["stages"]
SPEC: dict[str, Any] = next(yaml.safe_load_all((TOP / "tests/pipeline/pipeline.golden.yaml").read_text()))
KFP: dict[str, Any] = SPEC["root"]["dag"]["tasks"]
Edge = tuple[str, str, str]  # stage, the stage before it, and the artifact between them


def arguments_of(stage: str) -> dict[str, Any]:
    """What the command line makes of a stage's command."""
    _, verb, *arguments = DVC[stage]["cmd"].split()
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return dict(command.make_context(verb, arguments).params)


OUT = {stage: arguments_of(stage)["out"] for stage in DVC}


def artifact(path: Path | str) -> tuple[str, str] | None:
    """The stage that writes a path, and the name of the artifact it belongs to."""
    for stage, out in OUT.items():
        if Path(path) == out or out in Path(path).parents:
            return stage, out.name
    return None


def test_they_have_the_same_stages_in_the_same_order() -> None:
    order: list[str] = []
    while len(order) < len(KFP):
        order += [name for name, task in KFP.items() if name not in order and set(task.get("dependentTasks", ())) <= set(order)]
    # verdict does nothing but fail the run where register has refused: the launcher uploads nothing of a step that fails.
    assert order == [*DVC, "verdict"]
    assert list(STEPS) == list(DVC)
    assert KFP["verdict"]["dependentTasks"] == ["register"]


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_the_same_sections_in_both(stage: str) -> None:
    (name,) = (given["componentInputParameter"] for key, given in KFP[stage]["inputs"]["parameters"].items() if key == "params")
    text = SPEC["root"]["inputDefinitions"]["parameters"][name]["defaultValue"]
    assert set(yaml.safe_load(text)) == set(DVC[stage]["params"]) == set(STEPS[stage].model_fields)


def test_the_same_artifacts_go_from_stage_to_stage() -> None:
    by_dvc = {(stage, *found) for stage, each in DVC.items() for dep in each["deps"] if (found := artifact(dep))}
    by_kfp = {
        (stage, given["taskOutputArtifact"]["producerTask"], given["taskOutputArtifact"]["outputArtifactKey"])
        for stage, task in KFP.items()
        if stage in DVC
        for given in task["inputs"].get("artifacts", {}).values()
    }
    by_cli = {
        (stage, *found)
        for stage in DVC
        for name, value in arguments_of(stage).items()
        if name != "out" and isinstance(value, str | Path) and (found := artifact(Path(value)))
    }
    expected: set[Edge] = {
        ("warmup", "split", "split"),
        ("train", "split", "split"),
        ("train", "warmup", "warmup"),
        ("evaluate", "split", "split"),
        ("evaluate", "warmup", "warmup"),
        ("evaluate", "train", "train"),
        ("register", "train", "train"),
        ("register", "evaluate", "reports"),
    }
    assert by_dvc == expected
    assert by_kfp == expected
    assert by_cli == expected


@pytest.mark.parametrize("stage", STEPS)
def test_what_a_stage_writes_is_an_artifact_of_its_task(stage: str) -> None:
    outputs = SPEC["components"][f"comp-{stage}"]["outputDefinitions"]["artifacts"]
    assert OUT[stage].name in outputs
    for out in [*DVC[stage].get("outs", []), *DVC[stage].get("metrics", []), *DVC[stage].get("plots", [])]:
        path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
        assert options.get("persist") or artifact(path) == (stage, OUT[stage].name), path


@pytest.mark.parametrize("stage", STEPS)
def test_the_stages_that_read_the_dataset_are_the_same(stage: str) -> None:
    reads = "${data.root}" in DVC[stage]["deps"]
    assert ("data" in KFP[stage]["inputs"]["parameters"]) is reads
    assert ("data" in arguments_of(stage)) is reads
