"""A small Kubeflow Pipelines API on a local port: what the client sends and receives here is real HTTP.

It proves the shape of the requests, not what a real back end makes of them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "secret-token-4711"
RUN_ID = "0c6a7f7e-run"


class KfpApi(ThreadingHTTPServer):
    """Experiments and runs of API v2beta1, behind a bearer token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments = {"Default": "exp-0", "segmentation": "exp-1"}
        self.runs: list[dict[str, Any]] = []  # as posted
        self.states = ["SUCCEEDED"]  # of the run, one for each look; the last one stays
        self.failed_tasks: list[str] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []  # given in this order in place of what would be right
        self.delay = 0.0  # seconds before every answer
        self.tokens = {TOKEN}
        self.requests: list[str] = []  # "GET /apis/v2beta1/runs/x"
        self.authorizations: list[str | None] = []
        self.cookies: list[str | None] = []
        self.proxied: list[tuple[str, str | None]] = []  # what it is asked for as a proxy, and by whom

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/pipeline"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KfpApi

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_CONNECT(self) -> None:
        self.server.proxied.append((self.path, self.headers.get("proxy-authorization")))
        self._answer(502, {}, b"")

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self, body: Any) -> None:
        api, parts = self.server, urlsplit(self.path)
        api.requests.append(f"{self.command} {parts.path}")
        api.authorizations.append(self.headers.get("authorization"))
        api.cookies.append(self.headers.get("cookie"))
        if parts.netloc:
            api.proxied.append((parts.netloc, self.headers.get("proxy-authorization")))
        time.sleep(api.delay)
        if api.answers:
            self._answer(*api.answers.pop(0))
            return
        if (self.headers.get("authorization") or "").removeprefix("Bearer ") not in api.tokens:
            self._json(401, {"error": "Unauthorized", "message": "Request header error: there is no user identity header."})
            return
        route, query = parts.path.removeprefix("/pipeline/apis/v2beta1"), parse_qs(parts.query)
        if route == "/experiments" and self.command == "GET":
            self._json(200, {"experiments": self._experiments(query)})
        elif route == "/experiments":
            api.experiments[body["display_name"]] = f"exp-{len(api.experiments)}"
            self._json(200, {"experiment_id": api.experiments[body["display_name"]], **body})
        elif route == "/runs":
            api.runs.append(body)
            self._json(200, {**body, "run_id": RUN_ID, "state": "PENDING"})
        elif route == f"/runs/{RUN_ID}":
            state = api.states.pop(0) if len(api.states) > 1 else api.states[0]
            tasks = [{"display_name": name, "state": "FAILED"} for name in api.failed_tasks]
            self._json(200, {"run_id": RUN_ID, "state": state, "run_details": {"task_details": tasks}})
        else:
            self._json(404, {"error": "Not Found"})

    def _experiments(self, query: dict[str, list[str]]) -> list[dict[str, str]]:
        wanted = {item["stringValue"] for f in query.get("filter", []) for item in json.loads(f)["predicates"]}
        found = self.server.experiments.items()
        return [{"display_name": name, "experiment_id": number} for name, number in found if not wanted or name in wanted]

    def _json(self, status: int, body: object) -> None:
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def kfp_api() -> Iterator[KfpApi]:
    """A running server."""
    server = KfpApi()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
