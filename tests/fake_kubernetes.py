"""An HTTP server that speaks the few routes of the Kubernetes API that a launcher uses. It proves requests, not a cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

import jsonschema

JOBS = r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/(?P<namespace>[^/]+)/trainjobs"
PODS = r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods"

_STRINGS = {"type": "array", "items": {"type": "string", "maxLength": 65536}, "maxItems": 128}
_AMOUNTS = {"type": "object", "additionalProperties": {"type": "string"}}
# The fields of a TrainJob's spec that we use, after the definition of Kubeflow Trainer 2.2.
SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["runtimeRef"],
    "additionalProperties": False,
    "properties": {
        "runtimeRef": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "apiGroup": {"const": "trainer.kubeflow.org"},
                "kind": {"enum": ["TrainingRuntime", "ClusterTrainingRuntime"]},
                "name": {"type": "string", "minLength": 1},
            },
        },
        "trainer": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "image": {"type": "string", "maxLength": 500},
                "command": _STRINGS,
                "args": _STRINGS,
                "env": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "value"],
                        "additionalProperties": False,
                        "properties": {"name": {"type": "string", "minLength": 1}, "value": {"type": "string"}},
                    },
                },
                "numNodes": {"type": "integer", "minimum": 1},
                "numProcPerNode": {"type": "integer", "minimum": 1},
                "resourcesPerNode": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
                },
            },
        },
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
    },
}


def check(job: dict[str, Any]) -> None:
    """Raise a ValidationError unless the API would take the job."""
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"])
    jsonschema.validate(job["spec"], SPEC)


class FakeKubernetes:
    """The server; ``script`` says which status a job has at each look, the last one for ever.

    Args:
        script: Statuses, ``{"conditions": [...]}``. An integer answers with that HTTP status, None not at all.
        pods: Of every job, as the API lists them.
        logs: Of each pod.
        refuse: Method and HTTP status: answers every request of that method so.
        created: Called with each job that is created.
    """

    def __init__(
        self,
        *script: dict[str, Any] | int | None,
        pods: list[dict[str, Any]] | None = None,
        logs: dict[str, str] | None = None,
        refuse: dict[str, int] | None = None,
        created: Callable[[dict[str, Any]], None] = lambda job: None,
    ) -> None:
        self.script, self.pods, self.logs = list(script), pods or [], logs or {}
        self.refuse, self.created = refuse or {}, created
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []  # method and path, in order

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0]
                fake.requests.append(f"{self.command} {path}")
                found = fake.answer(self.command, self.path, json.loads(body) if body else {})
                if found is None:
                    self.close_connection = True
                    return
                status, content = found
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, url: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        path, _, query = url.partition("?")
        if method in self.refuse:
            return self.refuse[method], _status(self.refuse[method], f"{method} is not allowed")
        if match := re.fullmatch(f"{JOBS}/?(?P<name>[^/]*)", path):
            return self._job(method, match["name"], body)
        if re.fullmatch(PODS, path):
            name = re.search(r"jobset-name%3D([a-z0-9-]+)", query)
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": self.pods if name and name[1] in self.jobs else []}
        if match := re.fullmatch(rf"{PODS}/(?P<pod>[^/]+)/log", path):
            return 200, self.logs[match["pod"]]
        return 404, _status(404, f"no route {path}")

    def _job(self, method: str, name: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        if method == "POST":
            try:
                check(body)
            except jsonschema.ValidationError as error:
                return 400, _status(400, f"strict decoding error: {error.message}")
            self.jobs[body["metadata"]["name"]] = body
            self.created(body)
            return 201, body
        if name not in self.jobs:
            return 404, _status(404, f'trainjobs "{name}" not found')
        if method == "DELETE":
            return 200, self.jobs.pop(name)
        status = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(status, int):
            return status, _status(status, "etcd has no leader")
        return None if status is None else (200, {**self.jobs[name], "status": status})


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}


def ended(kind: str, reason: str = "JobsCompleted", message: str = "") -> dict[str, Any]:
    """The status of a job that is Complete, Failed or Suspended."""
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


def active(count: int) -> dict[str, Any]:
    """The status of a job with running pods."""
    return {"jobsStatus": [{"name": "node", "active": count, "ready": count, "failed": 0, "succeeded": 0, "suspended": 0}]}


def failed_pod(name: str, exit_code: int, finished: str) -> dict[str, Any]:
    """A pod whose container ended, as the API lists it."""
    terminated = {"exitCode": exit_code, "finishedAt": finished, "reason": "Error"}
    container = {
        "name": "node",
        "image": "i",
        "imageID": "i",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": terminated},
    }
    return {"metadata": {"name": name}, "status": {"phase": "Failed", "containerStatuses": [container]}}
