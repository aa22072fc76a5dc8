"""What can be said of the image without building it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from tools import tool

TOP = Path(__file__).parents[2]
DOCKERFILE = TOP / "components/Dockerfile"
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)", flags=re.MULTILINE)
PINS = dict(PIN.findall((TOP / "components/requirements.txt").read_text()))
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9.-]+", item)[0].lower() for item in requirements}  # type: ignore[index]


def instructions(keyword: str) -> list[str]:
    return re.findall(rf"^{keyword} (.+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_have_something_to_say(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.read_text().replace('ENTRYPOINT ["cwbass"]', "ENTRYPOINT cwbass"))
    done = subprocess.run([tool("hadolint"), str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DL3025" in done.stdout  # the shell form, in which SIGTERM does not reach Python


def test_a_pod_sees_the_gpus_that_it_asks_for_and_no_others() -> None:
    """The device plugin names them; where it does not, the image's own word would count."""
    assert "NVIDIA_VISIBLE_DEVICES" not in " ".join(instructions("ENV"))


def test_no_module_is_imported_from_the_volume_that_is_the_working_directory() -> None:
    text = DOCKERFILE.read_text()
    assert "WORKDIR /workspace" in text
    assert re.search(r"^ENV (?:.*\\\n)*.*\bPYTHONSAFEPATH=1\b", text, flags=re.MULTILINE)


def test_every_stage_stands_on_the_pinned_base_or_on_another_stage() -> None:
    stages = [re.fullmatch(r"(\S+) AS (\S+)", item) for item in instructions("FROM")]
    assert all(stages)
    known = {"${BASE}${BASE_DIGEST:+@}${BASE_DIGEST}"}
    for stage in stages:
        assert stage[1] in known  # type: ignore[index]
        known.add(stage[2])  # type: ignore[index]
    assert {"cpu", "gpu"} <= known
    (base,) = (item for item in instructions("ARG") if item.startswith("BASE="))
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-bookworm", base)


def test_the_image_is_pinned_to_the_versions_that_are_tested() -> None:
    tested = dict(PIN.findall((TOP / "constraints.txt").read_text()))
    assert {name: tested.get(name) for name in PINS} == PINS


def test_every_pin_has_a_hash() -> None:
    text = (TOP / "components/requirements.txt").read_text()
    assert len(re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, flags=re.MULTILINE)) == len(PINS)


def test_the_image_holds_kfp_and_export_but_neither_dvc_nor_tools() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = names(PROJECT["dependencies"]) | names(extras["pipeline"]) | names(extras["export"])
    assert wanted <= PINS.keys()
    unwanted = names(extras["dvc"]) | names(extras["dev"]) | names(extras["bench"])
    assert not (unwanted & PINS.keys())
    assert not [name for name in PINS if name.startswith("dvc")]


@pytest.mark.parametrize(
    "secret", ["data/shapes/images/a.png", ".git/config", ".env", "artifacts/train/best.pt", ".dvc/config.local"]
)
def test_the_build_sees_only_what_is_let_in(secret: str) -> None:
    first, *rest = [line for line in (TOP / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert first == "*"
    let_in = [line.removeprefix("!") for line in rest if line.startswith("!")]
    assert let_in == ["cwbass", "pyproject.toml", "README.md", "LICENSE", "components/requirements.txt"]
    assert not any(secret == path or secret.startswith(f"{path}/") for path in let_in)
