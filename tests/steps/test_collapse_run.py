"""A tiny training that collapses: what the guard does, and that the run can be stopped anywhere all the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed
from tiny import TinyRun, changed, make_split, rows, training, warm

from cwbass.files import file_sha256
from cwbass.params import Params, load_params
from cwbass.reporting.findings import find_concerns
from cwbass.steps.training import TrainReport
from cwbass.telemetry.base import Telemetry
from cwbass.training.checkpoint import Checkpoint, load_checkpoint
from cwbass.training.stage import Stage

RESULTS = ("last.pt", "best.pt", "history.jsonl", "run.json")
WRONG = {"unsup_weight": 1000.0, "ramp_epochs": 0.0, "ema": {"decay": 0.5}}
GUARD = {"patience": 1, "variety": 1.0, "miou_fall": 0.05}  # without patience


def wrong(params: Params, **train: Any) -> Params:
    """Labels of a young teacher, nearly all of them kept, and hardly anything else in the loss."""
    values = params.model_dump(mode="json")
    values["method"] = {"name": "cw_bass", "recipe": "paper", "paper": WRONG}
    values["train"] |= {"steps": 36, "save_minutes": 1e-9, "guard": GUARD, **train}
    return load_params(values, Params)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return rows(out / "history.jsonl")


class Heard(Telemetry):
    """What the guard tells."""

    def __init__(self) -> None:
        self.signs: list[str] = []

    def collapsed(self, signs: Any) -> None:
        self.signs += signs


@pytest.fixture(scope="module")
def collapsed(
    tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainReport, Heard, dict[int, Checkpoint]]:
    """The run, and what each epoch left in last.pt."""
    out, heard, left = tmp_path_factory.mktemp("collapsed") / "train", Heard(), {}
    real = Stage._save

    def save(self: Stage, state: Checkpoint, name: str) -> str:
        digest = real(self, state, name)
        if name == "last.pt":
            left[state.step] = load_checkpoint(out / name)
        return digest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "_save", save)
        report = training(tiny_run, out, wrong(tiny_run.params), telemetry=heard)
    return out, report, heard, left


def test_the_incident_is_in_history_report_findings_and_metrics(collapsed: Any) -> None:
    out, report, heard, _ = collapsed
    rows = rows_of(out)
    incidents = [row["incident"] for row in rows if "incident" in row]
    assert incidents
    assert report.incidents == report.to_dict()["incidents"] == len(incidents)
    assert heard.signs == [sign for each in incidents for sign in each["signs"]]
    assert [each["unsup_scale"] for each in incidents] == [0.25**count for count in range(1, len(incidents) + 1)]
    scale = 1.0
    for row in rows:  # an epoch is trained with what the epochs before it have left
        assert row["unsup_weight"] == pytest.approx(1000 * scale)
        scale = row.get("incident", {"unsup_scale": scale})["unsup_scale"]
    first = next(row for row in rows if "incident" in row)
    said = [sentence for sentence in find_concerns(rows, ["?"] * 9) if "collapse guard" in sentence]
    assert len(said) == len(incidents)
    assert said[0].startswith(f"At step {first['step']} the collapse guard acted: {first['incident']['reasons'][0]}")
    assert (
        f"had 25% of its weight from there, and training went on with the weights of step {first['incident']['back_to']}."
        in said[0]
    )


def test_training_goes_on_from_the_last_healthy_weights_and_steps_are_counted_on(collapsed: Any, tiny_run: TinyRun) -> None:
    out, _, _, left = collapsed
    start = load_checkpoint(tiny_run.warmup / "warmup.pt")
    seen = 0
    for row in rows_of(out):
        if (back_to := row.get("incident", {}).get("back_to")) is None:
            continue
        if back_to == start.step:
            continue
        seen += 1
        now, then = left[row["step"]], left[back_to]
        assert all(torch.equal(value, then.method_state[key]) for key, value in now.method_state.items())
        assert now.step == row["step"]
        assert all(
            torch.equal(value, then.optimizer["state"][index][name])
            for index, moments in now.optimizer["state"].items()
            for name, value in moments.items()
        )
    assert seen
    assert [row["step"] for row in rows_of(out)] == [12, 16, 20, 24, 28, 32, 36]
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".pt") == ["best.pt", "last.pt"]  # healthy.pt is gone


def test_a_collapsing_run_that_is_killed_anywhere_ends_in_the_same_bytes(
    collapsed: Any, tiny_run: TinyRun, tmp_path: Path, killed_at: Any
) -> None:
    out, report, _, _ = collapsed
    first = next(row["step"] for row in rows_of(out) if "incident" in row) - 8
    for taken in (first - 1, first + 1):  # before the epoch's end at which the guard acts, and in the epoch after
        killed_at(taken)
        with pytest.raises(Killed):
            training(tiny_run, tmp_path / str(taken), wrong(tiny_run.params))
        (tmp_path / str(taken) / "healthy.pt").unlink()  # as DVC does with what a stage writes
        again = training(tiny_run, tmp_path / str(taken), wrong(tiny_run.params))
        assert again.incidents == report.incidents
        for name in RESULTS:
            assert file_sha256(tmp_path / str(taken) / name) == file_sha256(out / name), (taken, name)


def test_a_guard_that_stays_silent_changes_no_number(tiny_run: TinyRun, tmp_path: Path) -> None:
    params = tiny_run.params.model_dump(mode="json")
    params["train"]["guard"]["enabled"] = False
    training(tiny_run, tmp_path / "off", load_params(params, Params))
    assert (tmp_path / "off" / "history.jsonl").read_bytes() == (tiny_run.train / "history.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        on, off = load_checkpoint(tiny_run.train / name), load_checkpoint(tmp_path / "off" / name)
        assert all(torch.equal(value, off.method_state[key]) for key, value in on.method_state.items())
    assert not (tiny_run.train / "healthy.pt").exists()


def test_without_a_selection_slice_the_teacher_alone_is_watched(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, tiny_run.data, changed(wrong(tiny_run.params, baseline=False), "split", selection=0.0))
    make_split(run)
    warm(run)
    report = training(run)
    rows = rows_of(run.train)
    assert not any("selection_miou" in row for row in rows)
    assert report.incidents > 0
    assert {sign for row in rows for sign in row.get("incident", {"signs": ()})["signs"]} <= {"classes", "starved"}
    assert not any(math.isnan(row["loss"]) for row in rows)
