"""A warm-up, and the baseline that goes on from it, by another supervised method than the built-in one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from killing import Killed
from tiny import TinyRun, rows, run_training, smoke_params, warm
from torch import Tensor

from cwbass.data.manifest import Manifest
from cwbass.data.streams import index_at
from cwbass.files import file_sha256
from cwbass.methods import METHODS
from cwbass.methods.base import MethodConfig
from cwbass.methods.supervised import Supervised, SupervisedConfig
from cwbass.params import Params
from cwbass.training.checkpoint import load_checkpoint
from cwbass.types import PLACE, LabeledBatch, Progress, StepOutput, UnlabeledBatch


class CountingConfig(SupervisedConfig):
    name: Literal["counting"] = "counting"  # type: ignore[assignment]


class Counting(Supervised):
    """Counts how often it has seen each labelled image."""

    config_cls: ClassVar[type[MethodConfig]] = CountingConfig
    wants_places: ClassVar[bool] = True
    seen: Tensor

    def __init__(self, *arguments: Any, **data: Any) -> None:
        super().__init__(*arguments, **data)
        self.register_buffer("seen", torch.zeros(self.num_labeled, dtype=torch.int64))

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert labeled.place is not None
        images = labeled.place[:, PLACE.index("index")]
        self.seen.scatter_add_(0, images, torch.ones_like(images))
        return super().training_step(labeled, unlabeled, progress)


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setitem(METHODS, "counting", Counting)
    return smoke_params(save_minutes=1e-9).model_copy(update={"warmup": CountingConfig()})


def test_it_trains_warm_up_and_baseline_and_is_told_as_the_baseline(params: Params, shapes: Path, tmp_path: Path) -> None:
    run = run_training(tmp_path, shapes, params)
    images, batch = len(Manifest.read(run.manifest).labeled), params.train.batch_labeled
    for name, steps in (("warmup.pt", 8), ("baseline_last.pt", 16)):
        checkpoint = load_checkpoint(run.warmup / name)
        order = [index_at(position, images, seed=params.seed, stream="labeled") for position in range(steps * batch)]
        assert checkpoint.method == "counting"
        assert checkpoint.method_state["seen"].tolist() == [order.count(index) for index in range(images)]
    metrics = json.loads((run.reports / "metrics.json").read_text())
    assert (metrics["baseline_method"], metrics["method"]) == ("counting", "cw_bass")
    assert {row["stage"] for row in rows(run.reports / "history.jsonl")} == {"warmup", "baseline", "train"}


def test_what_it_remembers_goes_on_where_it_was_killed(params: Params, tiny_run: TinyRun, tmp_path: Path, killed_at: Any) -> None:
    own = replace(tiny_run, params=params)
    warm(own, tmp_path / "whole")
    killed_at(5)
    with pytest.raises(Killed):
        warm(own, tmp_path / "stopped")
    warm(own, tmp_path / "stopped")
    for name in ("warmup.pt", "baseline_last.pt"):
        assert file_sha256(tmp_path / "stopped" / name) == file_sha256(tmp_path / "whole" / name)
