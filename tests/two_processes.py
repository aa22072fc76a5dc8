"""What the test of real processes runs: `run` in one process, this file under torchrun in two."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwbass.params import Params, load_params
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import WarmupParams
from cwbass.steps.warmup import warmup
from cwbass.training.checkpoint import load_checkpoint
from cwbass.world import World

RECIPES = ("paper", "cwbass")
# A network whose norms have more than a few values to average, and an optimiser that does not divide rounding by rounding.
SETTINGS: dict[str, Any] = {
    "augment": {"crop_size": 32, "scale": [0.7, 1.4]},
    "model": {
        "arch": "unet",
        "encoder": "tu-mobilenetv4_conv_small_050",
        "options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    },
    "train": {
        "steps": 7,
        "warmup_steps": 3,
        "baseline": False,
        "batch_labeled": 4,
        "batch_unlabeled": 4,
        "epoch_steps": 2,
        "accumulate": 2,
        "cache": None,
        "device": "cpu",
        "precision": "float32",
        "optimizer": {"name": "sgd", "lr": 0.01},
        "guard": {"patience": 1, "variety": 1.0},  # acts at the smallest loss of variety, so that going back is compared, too
    },
}


def run(root: Path, data: Path, manifest: Path, world: World) -> dict[str, Any]:
    """Warm up and train with both recipes; what this process's networks and histories became."""
    found: dict[str, Any] = {}
    dumped = load_params(SETTINGS, Params).model_dump(mode="json")
    places = {"manifest": manifest, "data_root": data}
    warm = load_params({name: dumped[name] for name in WarmupParams.model_fields}, WarmupParams)
    warmup(warm, out_dir=root / "warmup", world=world, **places)  # type: ignore[arg-type]
    for recipe in RECIPES:
        values = {name: dumped[name] for name in TrainParams.model_fields} | {"method": {"name": "cw_bass", "recipe": recipe}}
        found[recipe] = train(
            load_params(values, TrainParams), warmup=root / "warmup" / "warmup.pt", out_dir=root / recipe, world=world, **places
        ).to_dict()
    return found


def states(root: Path) -> dict[str, dict[str, Tensor]]:
    """Weights, running statistics and thresholds of each training's end."""
    files = {"supervised": root / "warmup" / "warmup.pt", **{recipe: root / recipe / "last.pt" for recipe in RECIPES}}
    return {name: dict(load_checkpoint(path).method_state) for name, path in files.items()}


def digest(method: torch.nn.Module) -> str:
    """SHA-256 of everything a method has learnt."""
    return hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in sorted(method.state_dict().items()))).hexdigest()


if __name__ == "__main__":
    from cwbass.training import stage
    from cwbass.training.distributed import joined

    root, data, manifest = map(Path, sys.argv[1:])
    torch.set_default_dtype(torch.float64)
    with joined("cpu", os.environ) as world:
        trained: list[torch.nn.Module] = []  # only the first process writes files; the others are asked here
        start = stage.Stage.train

        def remember(self: stage.Stage, *args: Any, **kwargs: Any) -> None:
            start(self, *args, **kwargs)
            trained.append(self.method)

        stage.Stage.train = remember  # type: ignore[method-assign]
        reports = world.collect(run(root, data, manifest, world))
        digests = world.collect([digest(method) for method in trained])
        if world.main:
            (root / "found.json").write_text(json.dumps({"reports": reports, "digests": digests}))
