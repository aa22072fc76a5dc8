"""What is proposed when Tab is pressed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cwbass.cli import app
from cwbass.cli.completion import models
from cwbass.registry import Number, register_version
from cwbass.registry.aliases import promote
from cwbass.storage import FolderStore


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a registry of one model, two versions of it and the alias champion, and a folder of a training."""
    monkeypatch.chdir(tmp_path)
    store = FolderStore(tmp_path / "reg")
    config = json.dumps({"classes": ["a"], "model": {"mean": [0], "std": [1]}}).encode()
    for weights in (b"one", b"two"):
        register_version(store, name="roads", files={"config.json": config, "model.safetensors": weights})
    promote(store, "roads", "champion", Number(1), seen=None, reason="a test")
    (tmp_path / "params.yaml").write_text("registry: {store: reg}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "road.pt").touch()
    return tmp_path


def test_versions_and_aliases_are_proposed_and_the_paths_that_begin_alike() -> None:
    assert models("ro") == ["roads@champion", "roads@1.1.0", "roads@1.0.0", "road.pt"]
    assert models("roads@c") == ["roads@champion"]
    assert models("") == ["roads@champion", "roads@1.1.0", "roads@1.0.0", "params.yaml", "reg/", "road.pt", "runs/"]


def test_where_no_model_begins_so_the_shell_is_left_to_propose_paths() -> None:
    assert models("run") == models("./ro") == []


@pytest.mark.parametrize("text", ["registry: {store: s3://bucket/x}", "registry: 3", "[", "registry: {store: gone}"])
def test_nothing_is_proposed_of_a_registry_that_is_elsewhere_or_broken(here: Path, text: str) -> None:
    (here / "params.yaml").write_text(text)
    assert models("ro") == []


@pytest.mark.parametrize("words", ["eval --checkpoint ro", "predict --checkpoint ro", "eval --baseline ro", "registry show ro"])
def test_the_verbs_that_take_a_model_propose_it(words: str) -> None:
    asked = {"_CWBASS_COMPLETE": "complete_bash", "COMP_WORDS": f"cwbass {words}", "COMP_CWORD": str(len(words.split()))}
    done = CliRunner().invoke(app, [], env=asked, prog_name="cwbass")
    assert "roads@champion" in done.stdout.split()
