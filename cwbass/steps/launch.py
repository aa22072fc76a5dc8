"""Train where it was asked for: in processes of this machine, or on several, as a Kubeflow TrainJob that is followed to its end.

The job runs ``cwbass train`` under torchrun in each of its pods. What travels are files on the work
volume, which all pods mount at the same place: parameters, manifest and warm-up go there, results come from
there. The runtime that the job names (k8s/base/training) says everything else about its pods.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cwbass.config import TrainConfig
from cwbass.errors import CheckpointError, DataError, ParamsError, error_of
from cwbass.files import file_sha256
from cwbass.params import dump_params, naming
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import TrainReport, WarmupParams, check_batches
from cwbass.steps.warmup import warmup
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.train_jobs import GROUP, JOB_OF_POD, VERSION, TrainJobs, connect, own_namespace
from cwbass.training.interrupt import handling
from cwbass.training.torchrun import run_processes

logger = logging.getLogger(__name__)

# What a pod does: torchrun reads number, rank and address of the machines from the variables that Trainer sets.
COMMAND = ("python", "-m", "cwbass.training.torchrun", "-m", "cwbass", "train")
# What metrics say of the run; docs/monitoring.md has them. Where they go to is the matter of the runtime.
PIPELINE, RUN_ID = "CWBASS_PIPELINE", "CWBASS_RUN_ID"

OpenTelemetry = Callable[[], AbstractContextManager[Telemetry]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a job runs, and what of it is not in the parameters."""

    image: str
    namespace: str = field(default_factory=own_namespace)
    runtime: str = "cwbass-torch"  # a TrainingRuntime of the namespace
    work: Path = Path("/workspace")  # where this process and the job's pods mount the work volume
    cpu: str = "4"  # of each machine
    memory: str = "16Gi"  # of each machine
    accelerator: str | None = "nvidia.com/gpu"  # resource of which each process gets one; None trains on CPUs
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None  # seconds that the job may be active; the cluster ends it
    poll: float = 5.0  # seconds between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupTask:
    """A warm-up that may run elsewhere: what it starts from, and where its results go."""

    params: WarmupParams
    manifest: Path  # of ``cwbass split``
    data_root: Path  # folder of the dataset
    out_dir: Path  # of the results
    run_id: str = ""  # of the pipeline's run, for the metrics of other processes; empty takes that of this process's environment

    verb: ClassVar[str] = "warmup"

    @property
    def inputs(self) -> dict[str, Path]:
        """The files it starts from, by the options that name them."""
        return {"manifest": self.manifest}

    def check_inputs(self) -> None:
        """Raise a DataError unless all of them are there."""
        for source in self.inputs.values():
            if not source.is_file():
                raise DataError(f"{source}: no such file. `cwbass split` and `cwbass warmup` write what training starts from.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask(WarmupTask):
    """A training likewise."""

    params: TrainParams
    warmup: Path  # ``warmup.pt`` of ``cwbass warmup``

    verb: ClassVar[str] = "train"

    @property
    def inputs(self) -> dict[str, Path]:
        return {"manifest": self.manifest, "warmup": self.warmup}


def launch(task: TrainTask, *, cluster: Cluster, api: Any = None) -> TrainReport:
    """Train as :func:`cwbass.steps.train.train` does, on ``train.nodes`` machines with ``train.processes`` each.

    On SIGTERM and SIGINT the job is deleted. A launcher that was killed leaves it; the next one with the same
    parameters, inputs and folder follows it where it is still active.

    Args:
        task: Dataset and results lie on the work volume; what it starts from is copied there.
        cluster: Where the job runs.
        api: A ``kubernetes.client.ApiClient``; None connects as the pod's service account, or else as kubectl does.

    Raises:
        ParamsError: A folder is not on the work volume, a batch cannot be divided, or the cluster refuses the job.
        DataError: Manifest or warm-up is missing, or the job's training said so.
        ServiceError: The cluster does not answer.
        Interrupted: The job's training stopped with a clean checkpoint.
        CwbassError: The job failed otherwise.
    """
    job = planned_job(task, cluster=cluster)
    report = _hand_over(task)["report"]
    client, name = TrainJobs(connect() if api is None else api, cluster.namespace), job["metadata"]["name"]
    with handling(_interrupt, [signal.SIGTERM]):
        try:
            client.start(job, fresh=lambda: report.unlink(missing_ok=True))
            logger.info(
                "TrainJob %s/%s on %d x %d processes; its log: kubectl logs -n %s -l %s=%s -f",
                cluster.namespace,
                name,
                task.params.train.nodes,
                task.params.train.processes,
                cluster.namespace,
                JOB_OF_POD,
                name,
            )
            failure = client.follow(name, poll=cluster.poll)
        except (SystemExit, KeyboardInterrupt):
            logger.warning("stopped: deleting TrainJob %s", name)
            client.delete(name)
            raise
        if failure is not None:
            raise client.explain(name, failure)
    return _read_report(report)


def planned_job(task: TrainTask, *, cluster: Cluster) -> dict[str, Any]:
    """The TrainJob that :func:`launch` would start, with the same arguments; nothing is written and no cluster asked.

    Its name is a function of everything it computes, so that a second launcher finds the first one's job.

    Raises:
        ParamsError: A folder is not on the work volume, or a batch cannot be divided.
        DataError: Manifest or warm-up is missing.
    """
    train = task.params.train
    check_batches(train, train.nodes * train.processes)
    for name, folder in (("the dataset", task.data_root), ("the folder of results", task.out_dir)):
        if not folder.resolve().is_relative_to(cluster.work.resolve()):
            raise ParamsError(
                f"{name} is {folder}, which the pods of a TrainJob cannot see: it must lie on the work volume, {cluster.work}."
            )
    task.check_inputs()
    arguments = _arguments(_places(task), task.params.data.root, task.data_root.resolve(), task.out_dir.resolve())
    inputs = [hashlib.sha256(dump_params(task.params).encode()).hexdigest(), *map(file_sha256, task.inputs.values())]
    return _train_job(train, cluster, arguments, inputs, _variables(task.run_id))


def train_where_asked(
    task: TrainTask, *, cluster: Cluster, telemetry: OpenTelemetry = lambda: nullcontext(SILENT)
) -> TrainReport:
    """Train here, in one process or in ``train.processes``, or as a TrainJob where ``train.nodes`` is above 1.

    Args:
        task: What is trained.
        cluster: Where a TrainJob would run.
        telemetry: Opened where this very process trains; others tell of themselves.

    Raises:
        CwbassError: As :func:`launch` and :func:`cwbass.steps.train.train` do.
    """
    if task.params.train.nodes > 1:
        return launch(task, cluster=cluster)
    if task.params.train.processes > 1:
        return _in_processes(task)
    with telemetry() as told:
        return train(
            task.params,
            manifest=task.manifest,
            warmup=task.warmup,
            data_root=task.data_root,
            out_dir=task.out_dir,
            telemetry=told,
        )


def warmup_where_asked(task: WarmupTask, *, telemetry: OpenTelemetry = lambda: nullcontext(SILENT)) -> TrainReport:
    """Warm up here, in one process or in ``train.processes``; the arguments are those of :func:`train_where_asked`.

    Raises:
        CwbassError: As :func:`cwbass.steps.warmup.warmup` does.
    """
    if task.params.train.processes > 1:
        return _in_processes(task)
    with telemetry() as told:
        return warmup(task.params, manifest=task.manifest, data_root=task.data_root, out_dir=task.out_dir, telemetry=told)


def _in_processes(task: WarmupTask) -> TrainReport:
    task.check_inputs()
    files, processes = _hand_over(task), task.params.train.processes
    files["report"].unlink(missing_ok=True)
    code = run_processes(
        processes, [task.verb, *_arguments(files, task.params.data.root, task.data_root, task.out_dir)], _variables(task.run_id)
    )
    if code:
        raise error_of(code)(f"{task.verb} in {processes} processes ended with exit code {code}; see above.")
    return _read_report(files["report"])


def _variables(run_id: str) -> dict[str, str]:
    """Variables by which processes that are started say whose run they are; none where nobody has said it here."""
    values = {PIPELINE: os.environ.get(PIPELINE), RUN_ID: run_id or os.environ.get(RUN_ID)}
    return {name: value for name, value in values.items() if value}


def _train_job(
    train: TrainConfig, cluster: Cluster, arguments: list[str], inputs: list[str], told: Mapping[str, str]
) -> dict[str, Any]:
    """The TrainJob of a training, for the options of ``cwbass train``, the digests of what it starts from, and whose run it is."""
    digest = hashlib.sha256(json.dumps([cluster.image, *inputs, *arguments]).encode()).hexdigest()
    devices = {cluster.accelerator: str(train.processes)} if cluster.accelerator and train.device != "cpu" else {}
    trainer: dict[str, Any] = {
        "image": cluster.image,
        "command": list(COMMAND),
        "args": arguments,
        "numNodes": train.nodes,
        "numProcPerNode": train.processes,
        # These take the place of all the runtime's own.
        "resourcesPerNode": {
            "requests": {"cpu": cluster.cpu, "memory": cluster.memory, **devices},
            "limits": {"memory": cluster.memory, **devices},
        },
    }
    if told:  # Trainer adds these to the runtime's
        trainer["env"] = [{"name": name, "value": value} for name, value in told.items()]
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": cluster.runtime},
        "trainer": trainer,
    }
    if cluster.timeout is not None:
        spec["activeDeadlineSeconds"] = max(1, round(cluster.timeout))
    labels = {"app.kubernetes.io/name": "cwbass", "app.kubernetes.io/component": "train", "app.kubernetes.io/part-of": "cwbass"}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": f"cwbass-train-{digest[:12]}",
            "namespace": cluster.namespace,
            "labels": {**labels, **cluster.labels},
        },
        "spec": spec,
    }


def _arguments(files: Mapping[str, Path], root: str, data_root: Path, out_dir: Path) -> list[str]:
    """Options of ``cwbass train`` or ``cwbass warmup``; a copy of the dataset is read, and what it is a copy of is recorded."""
    inputs = {name: path for name, path in files.items() if name != "report"}
    paths = {**inputs, "data": data_root, "out": out_dir, "report": files["report"]}
    return [*(f"--{name}={path}" for name, path in paths.items()), *(f"--set={key}" for key in naming(root))]


def _places(task: WarmupTask) -> dict[str, Path]:
    """Where a training finds what it starts from, and leaves its report: beside its results."""
    folder = task.out_dir.resolve() / "launch"
    names = {"params": "params.yaml", "manifest": "manifest.json", "warmup": "warmup.pt", "report": "report.json"}
    return {name: folder / file for name, file in names.items() if name in ("params", "report", *task.inputs)}


def _hand_over(task: WarmupTask) -> dict[str, Path]:
    """Put what a training starts from beside its results."""
    files = _places(task)
    files["params"].parent.mkdir(parents=True, exist_ok=True)
    files["params"].write_text(dump_params(task.params), encoding="utf-8")
    for name, source in task.inputs.items():
        if source.resolve() != files[name]:
            shutil.copyfile(source, files[name])
    return files


def _read_report(path: Path) -> TrainReport:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TrainReport(**values)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"training is complete, but {path} holds no report ({error}). "
            "Do the pods of the job mount the same work volume, with the same version of cwbass in their image?"
        ) from error


def _interrupt(number: int, frame: object) -> None:
    """Raises, as SIGINT does, so that what is under way is cleaned up."""
    raise SystemExit(128 + number)
