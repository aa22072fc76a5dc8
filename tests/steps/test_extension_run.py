"""One file beside the package, ``tests/extension.py``, and a run of all stages on what it adds."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cwbass.data.manifest import Manifest
from cwbass.data.synthetic import CLASS_NAMES

TESTS = Path(__file__).parents[1]
STEPS, LR, FLOOR = 16, 0.02, 0.1
PARAMS = f"""
data: {{layout: inner, root: data}}
split: {{selection: 0}}
augment: {{crop_size: 32}}
model: {{arch: named}}
method: {{name: tagged, classes: [box, disc]}}
train:
  steps: {STEPS}
  warmup_steps: 8
  batch_labeled: 2
  batch_unlabeled: 2
  epoch_steps: 8
  cache: null
  optimizer: {{name: nesterov, lr: {LR}, schedule: cosine, options: {{momentum: 0.8, floor: {FLOOR}}}}}
"""
CODE = """
import json, sys, extension
from pathlib import Path
from cwbass.cli import main
from cwbass.training.checkpoint import load_checkpoint
for command in ("check", "split", "warmup", "train", "eval --checkpoint artifacts/train --out reports"):
    sys.argv = ["cwbass", "--quiet", *command.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
scored = load_checkpoint(Path("artifacts/train/last.pt")).network()
Path("letters.json").write_text(json.dumps(scored.letters.sum(1).tolist()))
"""


@pytest.fixture(scope="module")
def work(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all stages leave. Of 16 unlabelled images 4 are said to show a disc and a box, 4 a disc alone, 7 neither."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "params.yaml").write_text(PARAMS)
    shutil.copytree(shapes, folder / "data")
    ids = sorted(path.stem for path in (shapes / "unlabeled").iterdir())
    said = [", disc, box"] * 4 + [", disc"] * 4 + [""] * 7  # and nothing is said of the last
    (folder / "data" / "tags.txt").write_text("".join(f"{id}{classes}\n" for id, classes in zip(ids[:15], said, strict=True)))
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    program = [sys.executable, "-c", CODE]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


def last_row(work: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((work / "artifacts" / "train" / "history.jsonl").read_text().splitlines()[-1])
    return row


def test_tags_reach_the_method_with_their_images(work: Path) -> None:
    row = last_row(work)
    assert row["shown"] == [4 / 16, 8 / 16]  # of box and disc: eight steps of two images are each of them once
    assert row["known"] == 15 / 16
    manifest = Manifest.read(work / "artifacts" / "split" / "manifest.json")
    assert [sample.tags for sample in manifest.unlabeled] == [(1, 2)] * 4 + [(1,)] * 4 + [()] * 7 + [None]


def test_a_network_is_built_from_the_names_of_the_classes_and_scored(work: Path) -> None:
    assert json.loads((work / "letters.json").read_text()) == [len(name) for name in CLASS_NAMES]
    assert list(json.loads((work / "reports" / "metrics.json").read_text())["per_class"]) == list(CLASS_NAMES)


def test_the_rate_and_the_optimiser_are_the_files_own(work: Path) -> None:
    factor = FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (STEPS - 1) / STEPS)) / 2
    assert last_row(work)["lr"] == pytest.approx(LR * factor)
    groups = torch.load(work / "artifacts" / "train" / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {(group["momentum"], group["nesterov"]) for group in groups} == {(0.8, True)}
