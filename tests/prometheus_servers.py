"""A real Prometheus and a real Pushgateway on local ports, for the tests that ask them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from servers import die_with_parent, free_port

HOW = "apt-get install --no-install-recommends prometheus prometheus-pushgateway"


def need(program: str, *others: str) -> str:
    """Path of an installed program, under any of its names; the test is skipped where it is missing."""
    found = next((path for name in (program, *others) if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"{program} is not installed; on Debian: {HOW}")
    return found


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [need("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str

    def get(self, path: str, **query: str) -> str:
        with urlopen(f"{self.url}{path}{'?' if query else ''}{urlencode(query)}", timeout=10) as answer:
            return str(answer.read().decode())

    def query(self, expression: str, **settings: str) -> list[tuple[dict[str, str], float]]:
        """What Prometheus answers, now or at ``time``: labels and value of each series."""
        answer = json.loads(self.get("/api/v1/query", query=expression, **settings))
        assert answer["status"] == "success", answer
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]


@contextmanager
def running(command: list[str], url: str, folder: Path) -> Iterator[Server]:
    """The server until the block ends, its talk in ``folder``."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("w") as talk, subprocess.Popen(command, stdout=talk, stderr=talk, preexec_fn=die_with_parent) as process:
        server = Server(url)
        try:
            wait_for(lambda: server.get("/-/ready") is not None, f"{command[0]} to be ready: {log}")
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@contextmanager
def pushgateway(folder: Path) -> Iterator[Server]:
    program = need("prometheus-pushgateway", "pushgateway")
    address = f"127.0.0.1:{free_port()}"
    with running([program, f"--web.listen-address={address}"], f"http://{address}", folder) as server:
        yield server


@contextmanager
def prometheus(folder: Path, *, trainings: list[str], gateway: Server, rules: Path | None = None) -> Iterator[Server]:
    """A Prometheus that scrapes as k8s/base/monitoring/podmonitor.yaml says, only faster."""
    program, address = need("prometheus"), f"127.0.0.1:{free_port()}"
    host = gateway.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "250ms", "evaluation_interval": "250ms"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {"job_name": "cwbass", "static_configs": [{"targets": trainings}]},
            {"job_name": "pushgateway", "honor_labels": True, "static_configs": [{"targets": [host]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with running(command, f"http://{address}", folder) as server:
        yield server


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """What ``condition`` gives once it is true; an address that does not answer yet counts as false."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except (URLError, OSError):
            pass
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} seconds for {what}")
        time.sleep(0.1)


def clean_environment() -> dict[str, str]:
    """Without variables that would send metrics anywhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CWBASS_") and name != "RANK"}
