"""A run whose networks are compiled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed
from tiny import TinyRun, make_split, rows, smoke_params, training, warm
from torch import Tensor, nn

from cwbass.config import ModelConfig
from cwbass.models import MODELS
from cwbass.models.base import SegmentationNet
from cwbass.training.checkpoint import load_checkpoint


class Small(SegmentationNet):
    """Compiled in seconds."""

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config.mean, config.std)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, len(class_names), 1)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.stem(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(features[0])
        return logits

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.stem.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler: apt-get install g++")
def test_a_compiled_run_has_the_losses_of_a_plain_one_and_goes_on_where_it_was_stopped(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: Any
) -> None:
    monkeypatch.setitem(MODELS, "small", Small)
    made = []
    real = SegmentationNet.compile
    monkeypatch.setattr(SegmentationNet, "compile", lambda net, **settings: (made.append(net), real(net, **settings)))

    def run(name: str, **values: Any) -> TinyRun:
        params = smoke_params(save_minutes=1e-9, baseline=False, **values).model_copy(update={"model": ModelConfig(arch="small")})
        done = TinyRun(tmp_path / name, shapes, params)
        make_split(done)
        warm(done)
        return done

    def history(run: TinyRun, out: Path) -> list[dict[str, Any]]:
        training(run, out)
        return rows(out / "history.jsonl")

    plain = run("plain")
    losses = [row["loss"] for row in history(plain, plain.train)]
    assert not made
    fast = run("fast", compile=True)
    compiled = history(fast, fast.train)
    assert len(made) == 4  # the student and its average, of warm-up and training
    assert [row["loss"] for row in compiled] == pytest.approx(losses, rel=1e-3)

    killed_at(3)
    with pytest.raises(Killed):
        training(fast, fast.root / "stopped")
    assert history(fast, fast.root / "stopped") == compiled
    whole, stopped = (load_checkpoint(folder / "last.pt") for folder in (fast.train, fast.root / "stopped"))
    assert whole.step == stopped.step == 16
    assert all(torch.equal(value, stopped.method_state[key]) for key, value in whole.method_state.items())
    assert whole.method_state.keys() == load_checkpoint(plain.train / "last.pt").method_state.keys()
