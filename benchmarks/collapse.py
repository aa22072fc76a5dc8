"""The collapse guard on runs that collapse and on runs that do not.

    python benchmarks/collapse.py [--runs NAME ...] [--seeds 0 1] [--out FOLDER] [--json]

Five healthy recipes with two seeds each, and three recipes that are wrong on purpose, each with the guard and without it, all on a
small generated dataset. The guard must act in every one of the wrong ones and in none of the healthy; exit code 1 if not.
With --out, runs that are done are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwbass.data.manifest import Manifest
from cwbass.data.synthetic import write_shapes
from cwbass.params import apply_overrides, load_params
from cwbass.steps.evaluate import EvaluateParams, evaluate
from cwbass.steps.split import SplitParams, split
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import WarmupParams
from cwbass.steps.warmup import warmup

PARAMS: dict[str, Any] = {
    "split": {"selection": 0.34, "min_selection": 2},
    "augment": {"crop_size": 48, "scale": [0.7, 1.4]},
    "model": {"arch": "unet", "encoder": "tu-mobilenetv4_conv_small_050", "options": {"decoder_channels": [32, 24, 16, 16, 8]}},
    "method": {"name": "cw_bass"},
    "train": {
        "steps": 320, "warmup_steps": 160, "baseline": False, "batch_labeled": 4, "batch_unlabeled": 4, "epoch_steps": 10,
        "class_balance": 0.5, "cache": None, "precision": "float32", "optimizer": {"lr": 0.003},
    },
    "eval": {"gallery": 0},
}  # fmt: skip
HEALTHY: dict[str, list[str]] = {
    "cwbass": [],
    "cwbass, auto": ["method.cwbass.threshold={rule: auto}"],
    "cwbass, strict, hard": ["method.cwbass.threshold={rule: strict, strict: 0.9}", "method.cwbass.labels=hard"],
    "cwbass, no slice": ["split.selection=0.0"],
    "paper": ["method.recipe=paper"],
}
LOUD = ["method.recipe=paper", "method.paper.ramp_epochs=0.0", "method.paper.ema.decay=0.9"]  # nearly every label is kept
WRONG: dict[str, list[str]] = {
    "paper, lambda 30": [*LOUD, "method.paper.unsup_weight=30.0"],
    "paper, lambda 100, no slice": [*LOUD, "method.paper.unsup_weight=100.0", "split.selection=0.0"],
    "paper, lambda 30, noisy masks": [*LOUD, "method.paper.unsup_weight=30.0"],
}
NOISY = "noisy masks"  # in the name of a run: two labelled training images in three have another's mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=[*HEALTHY, *WRONG], default=[*HEALTHY, *WRONG])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the healthy runs; the wrong ones take the first")
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        for name in arguments.runs:
            if name in HEALTHY:
                rows += [run(out, name, HEALTHY[name], seed, guard=True) for seed in arguments.seeds]
            else:
                rows += [run(out, name, WRONG[name], arguments.seeds[0], guard=guard) for guard in (True, False)]
    if arguments.json:
        print(json.dumps(rows))
    else:
        print_table(rows)
    sys.exit(not all(row["right"] for row in rows))


def run(out: Path, name: str, overrides: Sequence[str], seed: int, *, guard: bool) -> dict[str, Any]:
    """Warm up, train and score."""
    started = time.monotonic()
    kind = f"{seed}{'-noisy' if NOISY in name else ''}"
    data = out / f"data-{kind}"
    write_shapes(data, seed=seed, labeled=18, unlabeled=48, test=12, size=(64, 64))
    values = apply_overrides(json.loads(json.dumps(PARAMS)), [f"seed={seed}", *overrides])
    values["data"] = {"root": str(data)}
    shared = out / f"shared-{kind}-{values['split']['selection']}"
    cell = out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}{'' if guard else '-unguarded'}"
    places = {"manifest": shared / "split" / "manifest.json", "data_root": data}
    if not places["manifest"].exists():
        split(load_params(values, SplitParams), data_root=data, out_dir=shared / "split")
        if NOISY in name:
            exchange_masks(data, places["manifest"])
    warmup(load_params(values, WarmupParams), out_dir=shared / "warmup", **places)
    values["train"]["guard"] = {"enabled": guard}
    train(load_params(values, TrainParams), warmup=shared / "warmup" / "warmup.pt", out_dir=cell, **places)
    evaluate(load_params(values, EvaluateParams), checkpoint=cell, out_dir=cell / "reports", **places)
    history = [json.loads(line) for line in (cell / "history.jsonl").read_text().splitlines()]
    scores = [row["selection_miou"] for row in history if "selection_miou" in row]
    incidents = [(row["step"], row["incident"]) for row in history if "incident" in row]
    test = json.loads((cell / "reports" / "metrics.json").read_text())
    print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return {
        "run": name,
        "seed": seed,
        "guard": guard,
        "epochs": len(history),
        "incidents": [{"step": step, **incident} for step, incident in incidents],
        "selection_best": max(scores, default=None),
        "selection_last": scores[-1] if scores else None,
        "test_last": test["checkpoints"]["teacher last"]["miou"],
        "right": not guard or bool(incidents) == (name in WRONG),
    }


def exchange_masks(data: Path, manifest: Path) -> None:
    """Give the masks of labelled images to others; those of the slice and of the test images stay."""
    paths = [data / str(sample.mask) for index, sample in enumerate(Manifest.read(manifest).labeled) if index % 3]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A row for each run; mIoU in per cent."""
    print(f"{'run':32}{'seed':>5}{'guard':>7}{'epochs':>7}  {'slice best, last':18}{'test last':>10}  incidents")
    for row in rows:
        scores = "-" if row["selection_best"] is None else f"{percent(row['selection_best'])}, {percent(row['selection_last'])}"
        told = "; ".join(
            f"step {each['step']}: {', '.join(each['signs'])} -> {each['unsup_scale']:.3g} of lambda"
            + ("" if each["back_to"] is None else f", back to {each['back_to']}")
            for each in row["incidents"]
        )
        wrong = "" if row["right"] else "   WRONG"
        print(f"{row['run']:32}{row['seed']:5}{'on' if row['guard'] else 'off':>7}{row['epochs']:7}  {scores:18}"
              f"{percent(row['test_last']):>10}  {told or 'none'}{wrong}")  # fmt: skip


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
