"""One run of the pipeline on a cluster: what is sent, and what came of it."""

from __future__ import annotations

import difflib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kfp_server_api
import yaml

from cwbass.errors import CwbassError, GateError, ParamsError, ServiceError, one_line
from pipeline.compile import compile_pipeline
from pipeline.service import Service, connect, create_run, find_experiment, get_run

logger = logging.getLogger(__name__)

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
GATE = "verdict"  # the task that fails where registration was refused
TOLERATIONS = "tolerations"
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([numkMGTPE]|[KMGTPE]i|[eE][0-9]+)?")
_PATIENCE = 10  # polls in a row that may fail: a run outlives a restart of the service


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is to be run."""

    name: str
    pipeline: Mapping[str, Any]  # pipeline_spec and platform_spec
    parameters: Mapping[str, Any]
    service_account: str

    def to_dict(self) -> dict[str, Any]:
        """The request, but for the experiment."""
        return {
            "display_name": self.name,
            "pipeline_spec": self.pipeline,
            "runtime_config": {"parameters": self.parameters},
            "service_account": self.service_account,
        }


def run_spec(
    arguments: Mapping[str, str], extra: Sequence[str], *, name: str | None, service_account: str, package: Path | None = None
) -> RunSpec:
    """Compile the pipeline, or read it compiled, and set its parameters.

    Args:
        arguments: From ``pipeline_arguments``; with a package none, for it has its own.
        extra: More parameters of the pipeline, ``name=value``; lists and mappings are YAML or JSON.
        name: Of the run; None makes one of pipeline and date.
        service_account: Of the pods.
        package: A compiled pipeline; None compiles.

    Raises:
        ParamsError: The package is no compiled pipeline, or a parameter is unknown or of another type.
    """
    with TemporaryDirectory() as folder:
        path = compile_pipeline(arguments, Path(folder) / "pipeline.yaml") if package is None else package
        pipeline = _read(path)
    parameters = {**arguments, **_parse(extra, pipeline["pipeline_spec"])}
    stamp = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return RunSpec(name or f"{pipeline['pipeline_spec']['pipelineInfo']['name']} {stamp}", pipeline, parameters, service_account)


def submit(spec: RunSpec, service: Service, *, experiment: str, create_experiment: bool, seconds: float) -> tuple[str, str]:
    """Start the run; returns its id and its page.

    Args:
        spec: From :func:`run_spec`.
        service: Where to.
        experiment: Where the run belongs.
        create_experiment: Make it if there is none.
        seconds: To wait for each answer.

    Raises:
        ParamsError: Host, token, experiment or a parameter is wrong.
        ServiceError: The service cannot be reached or fails.
    """
    client = connect(service)
    experiment_id = find_experiment(client, experiment, service.namespace, create=create_experiment, seconds=seconds)
    run = kfp_server_api.V2beta1Run(
        display_name=spec.name,
        experiment_id=experiment_id,
        pipeline_spec=dict(spec.pipeline),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(spec.parameters)),
        service_account=spec.service_account,
    )
    run_id = create_run(client, run, seconds=seconds)
    return run_id, f"{service.host}/#/runs/details/{run_id}"


def wait(run_id: str, service: Service, *, url: str, seconds: float, poll: float) -> str:
    """Wait until a run has ended; returns its state, ``SUCCEEDED``.

    Args:
        run_id: From :func:`submit`.
        service: Where it runs.
        url: Its page, for messages.
        seconds: To wait for each answer.
        poll: Seconds between two looks.

    Raises:
        GateError: Registration was refused, as far as Kubeflow tells.
        CwbassError: The run failed or was cancelled.
        ParamsError: The token is no longer good, or the run is gone.
        ServiceError: The service was out of reach for long; the run goes on without us.
    """
    client, failed, state = connect(service), 0, ""
    while True:
        try:
            run = get_run(client, run_id, seconds=seconds)
            failed = 0
        except ServiceError as error:
            failed += 1
            if failed == _PATIENCE:
                raise ServiceError(f"{error} The run goes on: {url}") from error
            logger.warning("%s", error)
            time.sleep(poll)
            continue
        except ParamsError as error:
            raise ParamsError(f"{error} The run may go on: {url}") from error
        if run.state != state:
            state = run.state or ""
            logger.info("%s: %s", run_id, state)
        if state in ENDED:
            break
        time.sleep(poll)
    if state != "SUCCEEDED":
        raise _ended_badly(run, state, url)
    return state


def _ended_badly(run: kfp_server_api.V2beta1Run, state: str, url: str) -> CwbassError:
    details = run.run_details.task_details if run.run_details else None
    tasks = sorted({str(task.display_name) for task in details or () if task.state == "FAILED"})
    if GATE in tasks:
        # Kubeflow tells no exit code and no message of a task.
        return GateError(
            f"the run failed in {GATE}, as it does where the model is refused; the summary of register says whether it was, and why. "
            f"If it was registered, {GATE} itself could not run: {url}"
        )
    where = f" in {', '.join(tasks)}" if tasks else ""
    why = f": {' '.join(run.error.message.split())}" if run.error and run.error.message else ""
    return CwbassError(f"the run ended {state}{where}{why}. See {url}")


def _read(path: Path) -> dict[str, Any]:
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParamsError(f"--package {path} cannot be read: {one_line(error, 200)}.") from error
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise ParamsError(f"--package {path} is no compiled pipeline. Make one with: python -m pipeline compile")
    return {"pipeline_spec": documents[0], **({"platform_spec": documents[1]} if len(documents) > 1 else {})}


def _parse(extra: Sequence[str], spec: Mapping[str, Any]) -> dict[str, Any]:
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    parsed: dict[str, Any] = {}
    for item in extra:
        name, equals, text = item.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}."
            raise ParamsError(f"--argument {item!r} is not NAME=VALUE of a parameter of the pipeline; {hint}")
        kind = {"STRUCT": dict, "LIST": list}.get(known[name]["parameterType"], str)
        try:
            value = text if kind is str else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ParamsError(f"--argument {name}: {text!r} is no YAML or JSON.") from error
        if not isinstance(value, kind) or (name == TOLERATIONS and not all(isinstance(each, dict) for each in value)):
            wanted = "a mapping such as {zone: a}" if kind is dict else "a list such as [{key: gpu, operator: Exists}]"
            raise ParamsError(f"--argument {name} is {text!r}; it takes {wanted}.")
        if (problem := _problem(name, value)) is not None:
            raise ParamsError(f"--argument {name} is {text!r}; {problem}.")
        parsed[name] = value
    return parsed


def _problem(name: str, value: Any) -> str | None:
    """What of an argument the back end's driver would fail on, hours later perhaps."""
    if name in ("cpu", "memory") and not _QUANTITY.fullmatch(value):
        return "it takes a quantity of Kubernetes such as 4, 500m or 16Gi"
    if name == "accelerator_count" and not re.fullmatch("[1-9][0-9]*", value):
        return "it takes a whole number from 1 on; to train on CPUs, write accelerator_type= with nothing behind it"
    texts = [value] if name == "node_selector" else value if name == TOLERATIONS else ()
    for key, each in ((key, each) for mapping in texts for key, each in mapping.items() if key != "tolerationSeconds"):
        if not isinstance(each, str):
            shown = json.dumps(each, default=str).strip('"')
            return f'{shown} is no text; write {key}: "{shown}"'
    return None
