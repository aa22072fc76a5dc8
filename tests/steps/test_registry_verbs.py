"""A model's life on a real S3 server, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import TOP, call
from tiny import TinyRun

PARAMS = TOP / "configs" / "smoke.yaml"
NAME = "cwbass-smoke"


def register(run: TinyRun, store: str, out: Path, metrics: Path, **settings: object) -> Any:
    sets = {"registry.store": store, "registry.onnx": "false", "registry.promote": "champion", **settings}
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return call(
        "register", "--params", PARAMS, *arguments, "--checkpoint", run.train, "--metrics", metrics, "--out", out
    )  # fmt: skip


@pytest.fixture
def better(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """Scores of the same checkpoint that are higher than those measured, to have a second version."""
    scores = json.loads((tiny_run.reports / "metrics.json").read_text())
    scores["miou"] += 0.1
    scores["miou_gain"] += 0.1
    path = tmp_path / "better.json"
    path.write_text(json.dumps(scores))
    return path


def test_promoted_refused_and_rolled_back(
    tiny_run: TinyRun, better: Path, s3_location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWBASS_CACHE", str(tmp_path / "cache"))
    measured = tiny_run.reports / "metrics.json"
    store = ("--store", s3_location)

    done = register(tiny_run, s3_location, tmp_path / "first", measured)
    assert (done.returncode, json.loads(done.stdout)["version"]) == (0, "1.0.0"), done.stderr
    done = register(tiny_run, s3_location, tmp_path / "second", better, **{"registry.min_champion_gain": 0.05})
    assert (done.returncode, json.loads(done.stdout)["version"]) == (0, "1.1.0"), done.stderr

    # The first model's scores again, now against the better champion: no new version, no move.
    worse = json.loads(measured.read_text()) | {"note": "measured again"}
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    done = register(tiny_run, s3_location, tmp_path / "third", tmp_path / "worse.json", **{"registry.min_champion_gain": 0.05})
    assert (done.returncode, done.stdout) == (5, "")
    [line] = done.stderr.splitlines()[-1:]
    assert f"{NAME} is not registered: gain over champion 1.1.0 is -0.1000" in line
    assert (tmp_path / "third" / "gate.md").read_text().startswith(f"# {NAME}: refused")

    listed = json.loads(call("registry", "list", *store).stdout)
    assert listed["models"] == [{"name": NAME, "versions": 2, "latest": "1.1.0", "aliases": {"champion": "1.1.0"}}]

    done = call("registry", "rollback", NAME, "--reason", "drifts at night", *store)
    assert json.loads(done.stdout)["version"] == "1.0.0"
    done = call("registry", "promote", f"{NAME}@1.1.0", "--alias", "shadow", "--dry-run", *store)
    assert json.loads(done.stdout)["dry_run"] is True
    shown = json.loads(call("registry", "show", NAME, *store).stdout)
    assert shown["aliases"] == {"champion": "1.0.0"}
    assert [row["version"] for row in shown["versions"]] == ["1.0.0", "1.1.0"]
    moves = [(move["action"], move["version"], move["reason"]) for move in shown["history"]["champion"]]
    assert moves == [
        ("promote", "1.0.0", "passed the gate"), ("promote", "1.1.0", "passed the gate"), ("rollback", "1.0.0", "drifts at night"),
    ]  # fmt: skip
    version = json.loads(call("registry", "show", f"{NAME}@champion", *store).stdout)
    assert (version["version"], version["aliases"]) == ("1.0.0", ["champion"])
    assert version["metrics"] == json.loads(measured.read_text())
    done = call("registry", "rollback", NAME, *store)
    assert (done.returncode, "no version before it" in done.stderr) == (4, True)

    # What the registry gives scores as what was registered, on the same split and on data alone.
    done = call("eval", "--checkpoint", f"{NAME}@champion", *store, "--manifest", tiny_run.manifest, "--json")
    assert done.returncode == 0, done.stderr
    again, original = json.loads(done.stdout), json.loads(measured.read_text())
    for key in ("miou", "boundary_iou", "ece", "split_hash", "protocol", "seed", "weights", "checkpoint_sha256"):
        assert again[key] == original[key], key
    assert {name: row["iou"] for name, row in again["per_class"].items()} == {
        name: row["iou"] for name, row in original["per_class"].items()
    }
    assert again["checkpoint"] == f"{NAME}@1.0.0"
    uri = f"{s3_location}/models/{NAME}/versions/1.0.0"
    out = tmp_path / "reports"
    done = call("eval", "--checkpoint", uri, "--data", tiny_run.data, "--set", "eval.flip=true", "--json", "--out", out)
    assert (done.returncode, json.loads(done.stdout)["protocol"]) == (0, "whole scale:1 flip"), done.stderr
    assert (out / "report.html").is_file()

    done = call(
        *("predict", "--checkpoint", f"{NAME}@champion", *store, "--images", tiny_run.data / "unlabeled", "--out", tmp_path / "p")
    )
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (0, {}), done.stderr
    assert len(list((tmp_path / "p" / "masks").iterdir())) == 16


def test_a_registry_that_nobody_named_is_asked_for(tmp_path: Path) -> None:
    done = call("registry", "list", "--params", tmp_path / "none.yaml")
    assert (done.returncode, "none.yaml: no such file" in done.stderr) == (3, True)
    for sign in ("", "@"):
        done = call("registry", "show", f"no-such-model{sign}", "--store", tmp_path / "empty")
        assert (done.returncode, "has no model 'no-such-model'; it has: none" in done.stderr) == (4, True)
        done = call("registry", "promote", f"model{sign}", "--store", tmp_path / "empty")
        assert (done.returncode, "says no version; write model@1.4.0" in done.stderr) == (3, True)
