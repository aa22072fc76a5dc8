"""The Katib experiment: what it searches exists, what it maximises is never the test split, and its trials are pods as ours are."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import typer
import yaml
from k8s_checks import K8S, TOP, network_allows, render, restricted_violations, validate

from cwbass.cli import app
from cwbass.models.ema import decay_of_run
from cwbass.params import Params, apply_overrides, load_params, read_params
from cwbass.steps.training import TrainReport

EXPERIMENT, POLICY = yaml.safe_load_all((K8S / "examples" / "katib-experiment.yaml").read_text())
SPEC, TEMPLATE = EXPERIMENT["spec"], EXPERIMENT["spec"]["trialTemplate"]
POD = TEMPLATE["trialSpec"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
VALUES = {parameter["name"]: parameter["feasibleSpace"] for parameter in SPEC["parameters"]}


def command(values: dict[str, str]) -> list[str]:
    """The words of a trial's `cwbass train`, as Katib fills them in."""
    text = CONTAINER["command"][-1].partition(" && ")[0]
    for parameter in TEMPLATE["trialParameters"]:
        text = text.replace(f"${{trialParameters.{parameter['name']}}}", values.get(parameter["reference"], "trial-1"))
    assert "${" not in text
    return shlex.split(text)


def test_the_trial_is_a_valid_job_within_the_restricted_profile() -> None:
    job = {**TEMPLATE["trialSpec"], "metadata": {"name": "trial"}}
    validate(job, "1.37")
    assert restricted_violations(POD) == []
    assert TEMPLATE["primaryContainerName"] == CONTAINER["name"]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_katib_and_its_trials_reach_each_other_and_others_do_not(direction: str) -> None:
    closed, opened = render("overlays/prod"), (*render("overlays/prod"), POLICY)
    asked = [(closed, "kubeflow"), (opened, "kubeflow"), (opened, "other")]
    assert [network_allows(policies, direction, 6789, namespace=space) for policies, space in asked] == [False, True, False]


def test_every_parameter_of_the_search_is_used_and_every_reference_is_one() -> None:
    references = [parameter["reference"] for parameter in TEMPLATE["trialParameters"]]
    assert sorted(references) == sorted([*VALUES, "${trialSpec.Name}"])
    used = set(re.findall(r"\$\{trialParameters\.(\w+)\}", CONTAINER["command"][-1]))
    assert used == {parameter["name"] for parameter in TEMPLATE["trialParameters"]}


def searched(overrides: list[str]) -> dict[str, float]:
    """What a trial searches, in the parameters that it trains with."""
    values = apply_overrides(read_params(TOP / "params.yaml"), overrides)
    params = load_params(values, Params)
    terms = params.method.cwbass  # type: ignore[attr-defined]
    decay = decay_of_run(terms.ema.decay, params.train.steps or 1)
    return {"threshold": terms.threshold.scale, "unsup_weight": terms.unsup_weight, "ema_decay": decay}


@pytest.mark.parametrize("end", ["min", "max"])
def test_both_ends_of_the_search_are_parameters_that_the_trainer_takes(end: str) -> None:
    program, *words = command({name: space[end] for name, space in VALUES.items()})
    context = (
        typer.main.get_command(app)
        .commands["train"]
        .make_context(  # type: ignore[attr-defined]
            "train", [word for word in words if word not in ("--quiet", "train")]
        )
    )
    assert program == "cwbass"
    assert searched(context.params["overrides"]) == {name: float(space[end]) for name, space in VALUES.items()}


def test_the_default_run_lies_inside_the_search() -> None:
    for name, default in searched([]).items():
        assert float(VALUES[name]["min"]) < default < float(VALUES[name]["max"]), name


def test_the_objective_is_read_from_the_report_of_a_training_and_is_that_of_the_selection_slice() -> None:
    report = json.dumps(TrainReport("train", 16, "a" * 64, {"last": "last.pt"}, {"train": 0.4321}).to_dict())
    (pattern,) = SPEC["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]
    assert re.findall(pattern, report) == [("selection_miou", "0.4321")]
    assert SPEC["objective"]["objectiveMetricName"] == "selection_miou"
    assert "eval" not in CONTAINER["command"][-1]
