from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import TinyRun, make_split
from typer.testing import CliRunner

from cwbass.cli import app
from cwbass.data.manifest import Manifest
from cwbass.errors import CheckpointError, DataError
from cwbass.steps.thresholds import thresholds


def test_measuring_again_gives_what_the_warm_up_wrote(tiny_run: TinyRun) -> None:
    checkpoint = tiny_run.warmup / "warmup.pt"
    written = json.loads((tiny_run.warmup / "sweep.json").read_text())
    assert written["step"] == 8
    assert written["images"] == 4
    pixels = sum(sum(sample.pixels or ()) for sample in Manifest.read(tiny_run.manifest).selection)
    assert sum(map(sum, written["counts"]["total"])) == pixels  # every known one of the slice
    assert thresholds(checkpoint).to_dict() == written
    assert thresholds(checkpoint, manifest=tiny_run.manifest, data_root=tiny_run.data).to_dict() == written


def test_the_verb_prints_a_table_or_all(tiny_run: TinyRun) -> None:
    arguments = ["thresholds", "--checkpoint", str(tiny_run.warmup / "warmup.pt"), "--target", "0.99"]
    whole = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(whole.stdout)["rule"]["target"] == 0.99
    table = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert table.exit_code == 0
    assert "all classes" in table.stdout
    assert "never reaches 99.0%" in table.stdout  # eight steps do not make a good network


def test_a_sweep_of_another_checkpoint_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(CheckpointError, match=r"of another checkpoint than baseline_last\.pt.*--manifest"):
        thresholds(tiny_run.warmup / "baseline_last.pt")
    with pytest.raises(DataError, match=r"sweep\.json: no such file.*--manifest FILE` measures any"):
        thresholds(tiny_run.train / "best.pt")
    found = thresholds(tiny_run.train / "best.pt", manifest=tiny_run.manifest, data_root=tiny_run.data)
    assert found.source["checkpoint"] == "best.pt"


def test_another_split_is_refused_as_its_slice_may_have_been_trained_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = make_split(TinyRun(tmp_path, tiny_run.data, tiny_run.params.model_copy(update={"seed": 5})))
    with pytest.raises(CheckpointError, match="was trained on split"):
        thresholds(tiny_run.warmup / "warmup.pt", manifest=other)


def test_the_report_has_the_sweep_and_the_probes_beside_it(tiny_run: TinyRun) -> None:
    assert json.loads((tiny_run.reports / "sweep.json").read_text()) == json.loads((tiny_run.warmup / "sweep.json").read_text())
    assert (tiny_run.reports / "probes.zip").read_bytes() == (tiny_run.train / "probes.zip").read_bytes()
