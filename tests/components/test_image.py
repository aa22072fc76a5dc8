"""The built image, in a real container, as the cluster runs it: read-only, without rights, as another user.

`make image` builds it. CWBASS_TEST_IMAGE names another one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import cwbass

TOP = Path(__file__).parents[2]
IMAGE = os.environ.get("CWBASS_TEST_IMAGE", f"ghcr.io/cwbass/cwbass:{cwbass.__version__}-cpu")
CONFINED = ["--network=none", "--read-only", "--user=10001", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
WRITABLE = ["--tmpfs=/tmp", "--tmpfs=/workspace:uid=10001,gid=10001"]
CONFIG = f"--volume={TOP / 'configs'}:/config:ro"
PREPARE = "for verb in synthesize split; do cwbass -q $verb --params /config/smoke.yaml > /dev/null; done; "
COMPONENT = """
from kfp import dsl

@dsl.component(install_kfp_package=False)
def where(text: str) -> str:
    import cwbass
    return f"{text} {cwbass.__version__}"
"""

pytestmark = pytest.mark.engine


def docker(*arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    if not shutil.which("docker") or docker("info").returncode != 0:
        pytest.skip("no container engine: `docker info` fails; start one, or set DOCKER_HOST")
    found = docker("image", "inspect", IMAGE)
    if found.returncode != 0:
        pytest.skip(f"no image {IMAGE}; build it with `make image`")
    return json.loads(found.stdout)[0]["Config"]


@pytest.fixture
def sleeper(config: dict[str, Any]) -> Iterator[str]:
    """Name of a container that trains for hours, as its first process."""
    name = f"cwbass-test-{uuid4().hex[:8]}"
    endless = "--set train.warmup_steps=900000 --set train.steps=1000000"
    script = f"{PREPARE} exec cwbass warmup --params /config/smoke.yaml {endless}"
    started = docker("run", "--detach", "--name", name, *CONFINED, *WRITABLE, CONFIG, "--entrypoint=sh", IMAGE, "-euc", script)
    assert started.returncode == 0, started.stderr
    yield name
    docker("rm", "--force", name)


def test_doctor_finds_nothing_wrong_and_all_that_the_image_is_for(config: dict[str, Any]) -> None:
    done = docker("run", "--rm", *CONFINED, "--tmpfs=/tmp", IMAGE, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    seen = {check["name"]: check["value"] for check in report["checks"]}
    assert report["ok"] is True
    assert seen["kfp"][0].isdigit()
    assert seen["dvc"].startswith("not installed")
    assert "/workspace, which cannot be written" in seen["disk"]
    assert config["Labels"]["org.opencontainers.image.revision"] in seen["cwbass"]


def test_a_run_needs_no_more_than_two_writable_folders(config: dict[str, Any]) -> None:
    script = f"{PREPARE} cwbass -q warmup --params /config/smoke.yaml; touch /etc/x /opt/venv/x 2>/dev/null || echo read-only >&2"
    done = docker("run", "--rm", *CONFINED, *WRITABLE, CONFIG, "--entrypoint=sh", IMAGE, "-euc", script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "warmup"
    assert done.stderr.strip() == "read-only"


def test_sigterm_reaches_python(sleeper: str) -> None:
    deadline = time.monotonic() + 120
    while "step" not in docker("logs", sleeper).stderr:
        assert time.monotonic() < deadline, docker("logs", sleeper).stderr
        time.sleep(0.5)
    assert docker("stop", "--time=60", sleeper).returncode == 0
    # 137 would be SIGKILL, after a minute in which SIGTERM was not heard.
    assert docker("inspect", "--format={{.State.ExitCode}}", sleeper).stdout.strip() == "143"


def test_a_thin_component_starts_through_the_executor_of_kfp(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "component.py").write_text(COMPONENT)
    tmp_path.chmod(0o755)
    outputs = {"parameters": {"Output": {"outputFile": "/tmp/out"}}, "outputFile": "/tmp/executor.json"}
    inputs = {"inputs": {"parameterValues": {"text": "seen"}}, "outputs": outputs}
    command = "python3 -m kfp.dsl.executor_main --component_module_path /component/component.py --function_to_execute where"
    script = f'{command} --executor_input "$0" >&2; cat /tmp/executor.json'
    mount = f"--volume={tmp_path}:/component:ro"
    done = docker("run", "--rm", *CONFINED, "--tmpfs=/tmp", mount, "--entrypoint=sh", IMAGE, "-ec", script, json.dumps(inputs))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameterValues"] == {"Output": f"seen {cwbass.__version__}"}


def test_it_says_what_it_is_and_runs_as_nobody_in_particular(config: dict[str, Any]) -> None:
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["version"] == cwbass.__version__
    assert labels["licenses"] == "Apache-2.0"
    assert all(labels[key] for key in ("title", "description", "revision", "created", "base.name"))
    assert (config["User"], config["Entrypoint"], config["WorkingDir"]) == ("10001:10001", ["cwbass"], "/workspace")
    assert "9095/tcp" in config["ExposedPorts"]


def test_it_keeps_no_secret_of_the_build_and_no_checkout(config: dict[str, Any]) -> None:
    places = "/etc/pip.conf /run/secrets/* /src /.git /workspace/* /tmp/*"
    script = f"ls -d {places} 2>/dev/null || true; find / -xdev -name '*.safetensors'"
    done = docker("run", "--rm", "--user=0", "--network=none", "--entrypoint=sh", IMAGE, "-c", script)
    assert (done.returncode, done.stdout) == (0, "")
    history = docker("history", "--no-trunc", "--format={{.CreatedBy}}", IMAGE).stdout
    assert not [word for word in ("index-url =", "password", "AWS_SECRET") if word in history]
