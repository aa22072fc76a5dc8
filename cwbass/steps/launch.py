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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwbass.errors import CheckpointError, CwbassError, DataError, Interrupted, ParamsError, ServiceError
from cwbass.params import dump_params
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import TrainReport, check_batches
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.torchrun import run_processes
from cwbass.world import World

logger = logging.getLogger(__name__)

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
# What a pod does: torchrun reads number, rank and address of the machines from the variables that Trainer sets.
COMMAND = ("python", "-m", "cwbass.training.torchrun", "-m", "cwbass", "train")
JOB_OF_POD = "jobset.sigs.k8s.io/jobset-name"
_ERRORS: Mapping[int, type[CwbassError]] = {
    error.exit_code: error for error in (ParamsError, DataError, ServiceError, Interrupted)
}
_LOST = 5  # questions in a row without an answer, after which the cluster is given up


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
    total = World()
    total.size = params.train.nodes * params.train.processes
    check_batches(params.train, total)
    for name, folder in (("the dataset", data_root), ("the folder of results", out_dir)):
        if not folder.resolve().is_relative_to(cluster.work.resolve()):
            raise ParamsError(
                f"{name} is {folder}, which the pods of a TrainJob cannot see: it must lie on the work volume, {cluster.work}."
            )
    files = _hand_over(params, manifest, warmup, out_dir)
    job = train_job(params, cluster, files=files, data_root=data_root.resolve(), out_dir=out_dir.resolve())
    client = _Jobs(_connect() if api is None else api, cluster.namespace)
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
        raise _ERRORS.get(code, CwbassError)(
            f"training in {params.train.processes} processes ended with exit code {code}; see above."
        )
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


class _Jobs:
    """The few things asked of the Kubernetes API, with its answers turned into our errors."""

    def __init__(self, api: Any, namespace: str) -> None:
        from kubernetes import client

        self.jobs, self.pods, self.namespace = client.CustomObjectsApi(api), client.CoreV1Api(api), namespace
        self.place = (GROUP, VERSION, namespace, PLURAL)

    def start(self, job: Mapping[str, Any], fresh: Callable[[], None]) -> None:
        """Create a job, unless it is there and active; one that has ended is deleted first."""
        name = job["metadata"]["name"]
        if (there := self._get(name)) is not None:
            if _ending(there) is None and "deletionTimestamp" not in there["metadata"]:
                logger.info("TrainJob %s is active already; following it", name)
                return
            self.delete(name)
            while self._get(name) is not None:
                time.sleep(0.2)
        fresh()
        self._ask("create a TrainJob", lambda: self.jobs.create_namespaced_custom_object(*self.place, dict(job)))

    def follow(self, name: str, *, poll: float) -> dict[str, Any] | None:
        """Wait for the end: None where the job is complete, else the condition that says it failed."""
        lost, told = 0, ""
        while True:
            try:
                job = self._get(name)
                lost = 0
            except ServiceError:
                lost += 1
                if lost >= _LOST:
                    raise
                logger.warning("the Kubernetes API did not answer (%d of %d); training goes on", lost, _LOST)
                time.sleep(poll)
                continue
            if job is None:
                raise CwbassError(f"TrainJob {self.namespace}/{name} was deleted while it ran; start it again.")
            if (ending := _ending(job)) is not None:
                return None if ending["type"] == "Complete" else ending
            state = _state(job)
            if state != told:
                logger.info("TrainJob %s: %s", name, state)
                told = state
            time.sleep(poll)

    def explain(self, name: str, condition: Mapping[str, Any]) -> CwbassError:
        """The error of a failed job: what the first of its pods to fail said, with its exit code."""
        code, line = None, ""
        with suppress(CwbassError):  # the condition has to do where pods cannot be seen
            code, line = self._first_failure(name)
        said = line or f"{condition.get('reason', 'Failed')}: {condition.get('message', 'no message')}"
        ended = "" if code is None else f" with exit code {code}"
        kind = _ERRORS.get(code or 1, CwbassError)
        return kind(f"TrainJob {self.namespace}/{name} failed{ended}: {said}")

    def delete(self, name: str) -> None:
        """Delete a job and its pods; one that is gone is no error."""
        self._ask(
            "delete a TrainJob",
            lambda: self.jobs.delete_namespaced_custom_object(*self.place, name, propagation_policy="Foreground"),
            missing=None,
        )

    def _first_failure(self, name: str) -> tuple[int | None, str]:
        """Exit code and last error line of the pod that failed first."""
        selector = f"{JOB_OF_POD}={name}"
        pods = self._ask("list pods", lambda: self.pods.list_namespaced_pod(self.namespace, label_selector=selector)).items
        ended = [
            (status.state.terminated.finished_at, status.state.terminated.exit_code, pod.metadata.name)
            for pod in pods
            for status in pod.status.container_statuses or ()
            if status.state.terminated is not None and status.state.terminated.exit_code
        ]
        if not ended:
            return None, ""
        # Pods that lost the first one end with 1 or by a signal; another code says why.
        _, code, pod = min(ended, key=lambda item: (item[1] == 1 or item[1] > 128, item[0]))
        log = self._ask("read a pod's log", lambda: self.pods.read_namespaced_pod_log(pod, self.namespace, tail_lines=50))
        errors = [text for text in log.splitlines() if text.startswith("error")]
        return code, next((text for text in errors if "ended with exit code" not in text), "")[:500]

    def _get(self, name: str) -> dict[str, Any] | None:
        job: dict[str, Any] | None = self._ask(
            "read a TrainJob",
            lambda: self.jobs.get_namespaced_custom_object(*self.place, name, _request_timeout=30),
            missing=None,
        )
        return job

    def _ask(self, what: str, question: Callable[[], Any], **missing: Any) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return question()
        except ApiException as error:
            if error.status == 404 and missing:
                return missing["missing"]
            said = _message(error)
            if error.status in (401, 403):
                raise ParamsError(
                    f"the cluster does not let us {what} in namespace {self.namespace} ({error.status}: {said}). "
                    "Give the service account the role in k8s/base/access."
                ) from error
            if error.status == 404:
                raise ParamsError(
                    f"the cluster has no {PLURAL}.{GROUP}, or no namespace {self.namespace} ({said}). Install Kubeflow Trainer 2."
                ) from error
            if error.status and 400 <= error.status < 500 and error.status != 429:
                raise ParamsError(f"the cluster refuses to {what} ({error.status}: {said}).") from error
            raise ServiceError(f"the Kubernetes API cannot {what} ({error.status}: {said}).") from error
        except (HTTPError, OSError) as error:
            raise ServiceError(f"the Kubernetes API does not answer: cannot {what} ({str(error)[:200]}).") from error


def _connect() -> Any:
    """A client of the cluster that this process runs in, or that kubectl talks to."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ParamsError("train.nodes > 1 needs the kubernetes package. Run: pip install 'cwbass[pipeline]'") from error
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise ParamsError(f"there is no cluster to launch a TrainJob on: {error} Run in a pod, or set KUBECONFIG.") from error
    return client.ApiClient()


def _ending(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The condition that says a job has ended."""
    return next((item for item in _conditions(job) if item["type"] in ("Complete", "Failed") and item["status"] == "True"), None)


def _conditions(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(job.get("status", {}).get("conditions") or ())


def _state(job: Mapping[str, Any]) -> str:
    """What a job that has not ended is doing, for people."""
    if any(item["type"] == "Suspended" and item["status"] == "True" for item in _conditions(job)):
        return "suspended"
    pods = [f"{each['active']} active, {each['ready']} ready" for each in job.get("status", {}).get("jobsStatus") or ()]
    return "; ".join(pods) or "waiting for its pods"


def _message(error: Any) -> str:
    """What the API says of an error, in a line."""
    try:
        return str(json.loads(error.body)["message"])[:300]
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


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
def _deleted_unless_done(client: _Jobs, name: str) -> Iterator[Callable[[], None]]:
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
