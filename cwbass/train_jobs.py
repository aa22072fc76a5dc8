"""Kubeflow TrainJobs, through the Kubernetes API: start one, follow it to its end, say why it failed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cwbass.errors import CwbassError, ParamsError, ServiceError, error_of

logger = logging.getLogger(__name__)

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
JOB_OF_POD = "jobset.sigs.k8s.io/jobset-name"  # label of its pods
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
ANSWER_SECONDS = 30  # within which the API answers, or does not; an int, for the client passes over a float
_LOST = 5  # questions in a row without an answer, after which the cluster is given up


class TrainJobs:
    """The TrainJobs of a namespace, with the answers of the Kubernetes API turned into our errors.

    Every method raises ParamsError where the cluster refuses, and ServiceError where it does not answer.

    Args:
        api: A ``kubernetes.client.ApiClient``.
        namespace: Of the jobs.
    """

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
        self._ask("create a TrainJob", self.jobs.create_namespaced_custom_object, *self.place, dict(job))

    def follow(self, name: str, *, poll: float) -> dict[str, Any] | None:
        """Wait for the end: None where the job is complete, else the condition that says it failed.

        Args:
            name: Of the job.
            poll: Seconds between two looks.

        Raises:
            CwbassError: The job was deleted.
        """
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
        return error_of(code or 1)(f"TrainJob {self.namespace}/{name} failed{ended}: {said}")

    def delete(self, name: str) -> None:
        """Delete a job and its pods; one that is gone is no error."""
        self._ask(
            "delete a TrainJob",
            self.jobs.delete_namespaced_custom_object,
            *self.place,
            name,
            propagation_policy="Foreground",
            may_be_gone=True,
        )

    def _first_failure(self, name: str) -> tuple[int | None, str]:
        """Exit code and last error line of the pod that failed first."""
        selector = f"{JOB_OF_POD}={name}"
        pods = self._ask("list pods", self.pods.list_namespaced_pod, self.namespace, label_selector=selector).items
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
        log = self._ask("read a pod's log", self.pods.read_namespaced_pod_log, pod, self.namespace, tail_lines=50)
        errors = [text for text in log.splitlines() if text.startswith("error")]
        return code, next((text for text in errors if "ended with exit code" not in text), "")[:500]

    def _get(self, name: str) -> dict[str, Any] | None:
        job: dict[str, Any] | None = self._ask(
            "read a TrainJob", self.jobs.get_namespaced_custom_object, *self.place, name, may_be_gone=True
        )
        return job

    def _ask(self, what: str, request: Callable[..., Any], *arguments: Any, may_be_gone: bool = False, **options: Any) -> Any:
        """The answer to a request; None where what it asks for is not there, if it may be gone."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return request(*arguments, _request_timeout=ANSWER_SECONDS, **options)
        except ApiException as error:
            if error.status == 404 and may_be_gone:
                return None
            said = _message(error)
            if error.status in (401, 403):
                raise ParamsError(
                    f"the cluster does not let us {what} in namespace {self.namespace} ({error.status}: {said}). "
                    "Give the service account the role in k8s/base/access."
                ) from error
            if error.status == 404:
                raise ParamsError(
                    f"the cluster has no {PLURAL}.{GROUP}, or no namespace {self.namespace} ({said}). "
                    "Install Kubeflow Trainer 2.2 or newer."
                ) from error
            if error.status and 400 <= error.status < 500 and error.status != 429:
                raise ParamsError(f"the cluster refuses to {what} ({error.status}: {said}).") from error
            raise ServiceError(f"the Kubernetes API cannot {what} ({error.status}: {said}).") from error
        except (HTTPError, OSError) as error:
            raise ServiceError(f"the Kubernetes API does not answer: cannot {what} ({str(error)[:200]}).") from error


def own_namespace() -> str:
    """The namespace of the pod that this process runs in; elsewhere the one that k8s/ makes."""
    return _POD_NAMESPACE.read_text(encoding="utf-8").strip() if _POD_NAMESPACE.is_file() else "cwbass"


def connect() -> Any:
    """A client of the cluster that this process runs in, or that kubectl talks to.

    Raises:
        ParamsError: There is no cluster, or the package kubernetes is missing.
    """
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
