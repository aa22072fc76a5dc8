"""train.class_balance reaches the loss of every stage, the baseline's too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import sections, smoke_params

from cwbass.data.manifest import Manifest
from cwbass.losses.supervised import balanced_class_weights
from cwbass.steps.split import SplitParams, split
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import WarmupParams, start_run
from cwbass.steps.warmup import warmup
from cwbass.training.resume import Resume

STEPS = {"steps": 4, "warmup_steps": 2, "epoch_steps": 2}


def losses(folder: Path) -> dict[str, float]:
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return {row["stage"]: row["loss_sup"] for row in rows}


def test_it_changes_the_labelled_loss_of_every_stage(shapes: Path, tmp_path: Path) -> None:
    plain, balanced = smoke_params(**STEPS), smoke_params(**STEPS, class_balance=1.0)
    split(sections(plain, SplitParams), data_root=shapes, out_dir=tmp_path / "split")
    manifest = tmp_path / "split" / "manifest.json"
    found = {}
    for name, params in (("plain", plain), ("balanced", balanced)):
        out = tmp_path / name
        warmup(sections(params, WarmupParams), manifest=manifest, data_root=shapes, out_dir=out / "warmup")
        start = tmp_path / "plain" / "warmup" / "warmup.pt"  # the same weights for both
        train(
            sections(params, TrainParams),
            manifest=manifest,
            warmup=start,
            data_root=shapes,
            out_dir=out / "train",
            resume=Resume(force=("train.class_balance",)),
        )
        found[name] = losses(out / "warmup") | losses(out / "train")
    assert found["plain"].keys() == found["balanced"].keys() == {"warmup", "baseline", "train"}
    for stage, loss in found["plain"].items():
        assert loss != pytest.approx(found["balanced"][stage], rel=1e-3), stage

    nowhere = {"manifest": manifest, "data_root": shapes, "out_dir": tmp_path / "none", "work_dir": None, "resume": Resume()}
    run = start_run("warmup", sections(balanced, WarmupParams), **nowhere)
    labeled = Manifest.read(manifest).labeled
    pixels = torch.tensor([sample.pixels for sample in labeled]).sum(0)
    assert run.class_weight is not None
    assert torch.equal(run.class_weight, balanced_class_weights(pixels.tolist(), 1.0))
