"""Train on several machines: start a Kubeflow TrainJob, follow it to its end, and bring home what it says.

The job runs ``cwbass train`` under torchrun in each of its pods. What travels are files on the work
volume, which all pods mount at the same place: parameters, manifest and warm-up go there, results come from
there. The runtime that the job names (k8s/base/training) says everything else about its pods.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwbass.errors import CheckpointError, DataError, ParamsError, error_of
from cwbass.params import dump_params
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import TrainReport, check_batches
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.train_jobs import GROUP, JOB_OF_POD, VERSION, TrainJobs, connect
from cwbass.training.torchrun import run_processes

logger = logging.getLogger(__name__)

# What a pod does: torchrun reads number, rank and address of the machines from the variables that Trainer sets.
COMMAND = ("python", "-m", "cwbass.training.torchrun", "-m", "cwbass", "train")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a job runs, and what of it is not in the parameters."""

    image: str
    namespace: str = "cwbass"
    runtime: str = "cwbass-torch"  # a TrainingRuntime of the namespace
    work: Path = Path("/workspace")  # where this process and the job's pods mount the work volume
    cpu: str = "4"  # of each machine
    memory: str = "16Gi"  # of each machine
    accelerator: str | None = "nvidia.com/gpu"  # resource of which each process gets one; None trains on CPUs
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None  # seconds that the job may be active; the cluster ends it
    poll: float = 5.0  # seconds between two looks


def launch(
    params: TrainParams, *, cluster: Cluster, manifest: Path, warmup: Path, data_root: Path, out_dir: Path, api: Any = None
) -> TrainReport:
    """Train as :func:`cwbass.steps.train.train` does, on ``train.nodes`` machines with ``train.processes`` each.

    On SIGTERM and SIGINT the job is deleted. A launcher that was killed leaves it; the next one with the same
    parameters, inputs and folder follows it where it is still active.

    Args:
        params: Sections training depends on.
        cluster: Where the job runs.
        manifest: File of ``cwbass split``; copied to the work volume.
        warmup: ``warmup.pt`` of ``cwbass warmup``; likewise.
        data_root: Folder of the dataset, on the work volume.
        out_dir: Where results go, on the work volume.
        api: A ``kubernetes.client.ApiClient``; None connects as the pod's service account, or else as kubectl does.

    Raises:
        ParamsError: A folder is not on the work volume, a batch cannot be divided, or the cluster refuses the job.
        DataError: The job's training said so.
        ServiceError: The cluster does not answer.
        Interrupted: The job's training stopped with a clean checkpoint.
        CwbassError: The job failed otherwise.
    """
    check_batches(params.train, params.train.nodes * params.train.processes)
    for name, folder in (("the dataset", data_root), ("the folder of results", out_dir)):
        if not folder.resolve().is_relative_to(cluster.work.resolve()):
            raise ParamsError(
                f"{name} is {folder}, which the pods of a TrainJob cannot see: it must lie on the work volume, {cluster.work}."
            )
    files = _hand_over(params, manifest, warmup, out_dir)
    job = train_job(params, cluster, files=files, data_root=data_root.resolve(), out_dir=out_dir.resolve())
    client = TrainJobs(connect() if api is None else api, cluster.namespace)
    report = files["report"]
    with _signals_interrupt(), _deleted_unless_done(client, job["metadata"]["name"]) as done:
        client.start(job, fresh=lambda: report.unlink(missing_ok=True))
        logger.info(
            "TrainJob %s/%s on %d x %d processes; its log: kubectl logs -n %s -l %s=%s -f",
            cluster.namespace,
            job["metadata"]["name"],
            params.train.nodes,
            params.train.processes,
            cluster.namespace,
            JOB_OF_POD,
            job["metadata"]["name"],
        )
        failure = client.follow(job["metadata"]["name"], poll=cluster.poll)
        done()
        if failure is not None:
            raise client.explain(job["metadata"]["name"], failure)
    return _read_report(report)


def train_where_asked(
    params: TrainParams,
    *,
    cluster: Cluster,
    manifest: Path,
    warmup: Path,
    data_root: Path,
    out_dir: Path,
    telemetry: Callable[[], AbstractContextManager[Telemetry]] = lambda: nullcontext(SILENT),
) -> TrainReport:
    """Train here, in one process or in ``train.processes``, or as a TrainJob where ``train.nodes`` is above 1.

    Args:
        params: Sections training depends on.
        cluster: Where a TrainJob would run.
        manifest: File of ``cwbass split``.
        warmup: ``warmup.pt`` of ``cwbass warmup``.
        data_root: Folder of the dataset.
        out_dir: Where results go.
        telemetry: Opened where this very process trains; others tell of themselves.

    Raises:
        CwbassError: As :func:`launch` and :func:`cwbass.steps.train.train` do.
    """
    if params.train.nodes > 1:
        return launch(params, cluster=cluster, manifest=manifest, warmup=warmup, data_root=data_root, out_dir=out_dir)
    if params.train.processes == 1:
        with telemetry() as told:
            return train(params, manifest=manifest, warmup=warmup, data_root=data_root, out_dir=out_dir, telemetry=told)
    files = _hand_over(params, manifest, warmup, out_dir)
    files["report"].unlink(missing_ok=True)
    code = run_processes(params.train.processes, ["train", *_arguments(files, data_root, out_dir)])
    if code:
        raise error_of(code)(f"training in {params.train.processes} processes ended with exit code {code}; see above.")
    return _read_report(files["report"])


def train_job(
    params: TrainParams, cluster: Cluster, *, files: Mapping[str, Path], data_root: Path, out_dir: Path
) -> dict[str, Any]:
    """The TrainJob of a training.

    Its name is a function of everything it computes, so that a second launcher finds the first one's job.

    Args:
        params: Sections training depends on.
        cluster: Where the job runs.
        files: Absolute paths of ``params``, ``manifest``, ``warmup`` and ``report`` on the work volume.
        data_root: Folder of the dataset, absolute.
        out_dir: Where results go, absolute.
    """
    train = params.train
    arguments = _arguments(files, data_root, out_dir)
    inputs = [hashlib.sha256(files[name].read_bytes()).hexdigest() for name in ("params", "manifest", "warmup")]
    digest = hashlib.sha256(json.dumps([cluster.image, *inputs, *arguments]).encode()).hexdigest()
    devices = {} if cluster.accelerator is None else {cluster.accelerator: str(train.processes)}
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


def _arguments(files: Mapping[str, Path], data_root: Path, out_dir: Path) -> list[str]:
    """Options of ``cwbass train``."""
    options = {**{name: files[name] for name in ("params", "manifest", "warmup")}, "data": data_root, "out": out_dir}
    return [f"--{name}={path}" for name, path in {**options, "report": files["report"]}.items()]


def _hand_over(params: TrainParams, manifest: Path, warmup: Path, out_dir: Path) -> dict[str, Path]:
    """Put what the job starts from beside its results."""
    folder = out_dir.resolve() / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("params.yaml", "manifest.json", "warmup.pt", "report.json")}
    files["params.yaml"].write_text(dump_params(params), encoding="utf-8")
    for source, copy in ((manifest, files["manifest.json"]), (warmup, files["warmup.pt"])):
        if not source.is_file():
            raise DataError(f"{source}: no such file. `cwbass split` and `cwbass warmup` write what training starts from.")
        if source.resolve() != copy:
            shutil.copyfile(source, copy)
    return {path.stem: path for path in files.values()}


def _read_report(path: Path) -> TrainReport:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TrainReport(**values)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"training is complete, but {path} holds no report ({error}). "
            "Do the pods of the job mount the same work volume, with the same version of cwbass in their image?"
        ) from error


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises as SIGINT does, so that what is under way is cleaned up."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread alone
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deleted_unless_done(client: TrainJobs, name: str) -> Iterator[Callable[[], None]]:
    """Delete a job when this process is told to stop; gives what to call once the job has ended."""
    done = False

    def ended() -> None:
        nonlocal done
        done = True

    try:
        yield ended
    except (SystemExit, KeyboardInterrupt):
        if not done:
            logger.warning("stopped: deleting TrainJob %s", name)
            client.delete(name)
        raise
