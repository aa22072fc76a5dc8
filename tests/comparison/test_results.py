"""Folders of two cells, written by hand, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwbass.comparison.budget import Budget
from cwbass.comparison.plan import Cell, Plan
from cwbass.comparison.results import Result, read_results
from cwbass.comparison.variants import method_variants
from cwbass.errors import DataError
from cwbass.evaluation.per_image import PerImage
from cwbass.params import Params, dump_params, load_params

NAMES = ("road", "sky")
BASELINE, METHOD = Cell("as-given", 0, "supervised"), Cell("as-given", 0, "cw_bass")
METRICS: Mapping[str, Any] = {
    "miou": 0.5,
    "per_class": {},
    "weights": "teacher",
    "checkpoints": {"teacher selected": {"miou": 0.5}, "teacher last": {"miou": 0.6}, "student last": {"miou": 0.9}},
    "snapshots": [],
    "split": {"counts": {"labeled": 9, "selection": 3, "unlabeled": 5, "test": 2}},
    "split_hash": "a" * 64,
    "protocol": "whole scale:1",
}
MATRICES = np.array([[[2, 0], [1, 1]], [[3, 1], [0, 0]]])
WARMUP = [{"stage": "warmup", "seconds": seconds, "step_seconds": 9.0} for seconds in (10.0, 12.0)]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    params = load_params({"train": {"steps": 300, "warmup_steps": 100}}, Params)
    made = Plan(tmp_path, params, Budget("steps", 300), method_variants(["cw_bass"], params), [0, 1], {"as-given": {}})
    for seed in (0, 1):
        baseline, method = (Cell("as-given", seed, name) for name in made.variants)
        write_training(made.warmup_folder(baseline), "warmup", [*WARMUP, *timed("baseline", 0.2, 0.3, 1.0)])
        write_training(made.folder(method), "train", timed("train", 0.1, 0.5, 1.2))
        for cell in (baseline, method):
            write_reports(made, cell, split_hash=str(seed) * 64)
    return made


def timed(stage: str, *step_seconds: float) -> list[dict[str, Any]]:
    return [{"stage": stage, "seconds": 100 * each, "step_seconds": each} for each in step_seconds]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_training(folder: Path, stage: str, timings: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    write_rows(folder / "timings.jsonl", timings)
    write_rows(folder / "history.jsonl", [{"step": 150}, {"step": 200, "incident": {}}, {"step": 250, "incident": None}])
    (folder / "run.json").write_text('{"run": {"code": "0.1.0+a", "plugin.mine": "b"}}')
    (folder / "resources.json").write_text(
        json.dumps({stage: {"seconds": 1, "peak_mb": 512}, "eval": {"seconds": 1, "peak_mb": 999}})
    )


def write_reports(plan: Plan, cell: Cell, matrices: Any = MATRICES, **changes: Any) -> None:
    reports = plan.folder(cell) / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    params = plan.warmup_params(cell) if cell.variant == "supervised" else plan.cell_params(cell)
    (reports / "params.yaml").write_text(dump_params(params))
    (reports / "metrics.json").write_text(json.dumps({**METRICS, **changes}))
    (reports / "confusions.npz").write_bytes(PerImage(("u", "v"), NAMES, matrices).serialize())


def read(plan: Plan) -> dict[str, Result]:
    return {result.cell.id: result for result in read_results(plan)}


def test_a_cell_took_its_warm_up_and_its_own_steps(plan: Plan) -> None:
    found = read(plan)
    assert list(found) == [f"as-given/seed{seed}/{name}" for seed in (0, 1) for name in ("supervised", "cw_bass")]
    baseline, method = found[BASELINE.id], found[METHOD.id]
    assert (baseline.step_seconds, baseline.train_seconds) == (0.3, 22 + 150)
    assert (method.step_seconds, method.train_seconds) == (0.5, 22 + 180)  # without the steps that the baseline went on
    assert (method.miou, method.labeled, method.peak_mb, method.code) == (0.5, 12, 512, "0.1.0+a mine+b")
    assert method.guarded == [200]


@pytest.mark.parametrize(
    ("selected", "last", "states", "best"), [(0.5, 0.6, [0.55], 0.6), (0.7, 0.6, [0.5], 0.7), (0.5, 0.6, [0.8, 0.4], 0.8)]
)
def test_the_oracle_is_the_best_of_all_states_of_the_network_that_counts(
    plan: Plan, selected: float, last: float, states: list[float], best: float
) -> None:
    rows = [{"step": step, "miou": miou} for step, miou in zip((200, 300), states, strict=False)]
    checkpoints = {"teacher selected": {"miou": selected}, "teacher last": {"miou": last}, "student last": {"miou": 0.9}}
    write_reports(plan, METHOD, split_hash="0" * 64, checkpoints=checkpoints, snapshots=rows)
    assert read(plan)[METHOD.id].oracle == best


def test_without_a_selection_slice_nothing_was_selected(plan: Plan) -> None:
    write_reports(plan, METHOD, split_hash="0" * 64, checkpoints={"teacher last": {"miou": 0.6}})
    found = read(plan)[METHOD.id]
    assert (found.of_checkpoint("selected"), found.oracle) == (None, 0.6)


def test_scores_of_deleted_states_are_those_of_the_reports_or_else_those_that_were_kept(plan: Plan) -> None:
    rows = [{"step": 200, "miou": 0.4}, {"step": 300, "miou": 0.6}]
    for folder in (plan.warmup_folder(BASELINE), plan.folder(METHOD)):
        write_rows(folder / "snapshots.jsonl", rows)
    write_reports(plan, METHOD, split_hash="0" * 64, snapshots=[{"step": 300, "miou": 0.7}])
    found = read(plan)
    assert (found[BASELINE.id].curve, found[METHOD.id].curve) == ({200: 0.4, 300: 0.6}, {300: 0.7})


def test_a_test_mask_that_was_changed_between_two_cells_is_refused(plan: Plan) -> None:
    changed = MATRICES.copy()
    changed[1] = [[2, 1], [1, 0]]  # a pixel of road is sky now, and every prediction is the same
    write_reports(plan, METHOD, changed, split_hash="0" * 64)
    with pytest.raises(
        DataError,
        match=r"supervised has another mask of test image v than .*cw_bass: 4 pixels of road there, 3 pixels of road here\. .*"
        r"Delete all `reports` and `snapshots\.jsonl` of the comparison, and run it again, which trains nothing\.",
    ):
        read_results(plan)


def test_a_cell_without_a_labelled_test_pixel_is_refused(plan: Plan) -> None:
    write_reports(plan, METHOD, np.zeros((2, 2, 2), dtype=np.int64), split_hash="0" * 64, miou=None)
    with pytest.raises(
        DataError, match=r"seed0/cw_bass/reports/metrics\.json has no mIoU: no pixel of the test images is labelled"
    ):
        read_results(plan)


def test_cells_of_one_seed_share_a_split_and_other_seeds_need_not(plan: Plan) -> None:
    assert len({result.metrics["split_hash"] for result in read_results(plan)}) == 2
    write_reports(plan, METHOD, split_hash="1" * 64)
    with pytest.raises(DataError, match=r"seed0/supervised has another split than .*seed0/cw_bass: 0{64} there, 1{64} here"):
        read_results(plan)
