"""Train a grid of variants and seeds, and tabulate test scores.

    python benchmarks/grid.py --params configs/camvid.yaml --seeds 0 1 2 --out artifacts/grid/camvid

Every seed draws its split, warms up and trains its supervised baseline once; each variant
branches from there. A cell that is done is not run again: stop the script at any time and start
it anew. Every number is read from a metrics.json, which carries its split hash and protocol.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwbass.params import Params, flatten, load_params, read_params

VARIANTS: dict[str, list[str]] = {
    "paper": ["method.recipe=paper"],
    "cwbass": ["method.recipe=cwbass"],
}
ABLATIONS: dict[str, list[str]] = {
    "hard labels": ["method.cwbass.labels=hard"],
    "hard, strict 0.95": ["method.cwbass.labels=hard", "method.cwbass.threshold={rule: strict, strict: 0.95}"],
    "no boundary": ["method.cwbass.boundary.weight=0.0"],
    "no confidence weight": ["method.cwbass.gamma=0.0"],
    "no decay": ["method.cwbass.decay.rule=none"],
    "no threshold": ["method.cwbass.threshold={rule: strict, strict: 0.0}"],
    "no CutMix": ["method.cwbass.cutmix=0.0"],
    "no ClassMix": ["method.cwbass.classmix=0.0"],
    "decay 0.99": ["method.cwbass.ema.decay=0.99"],
    "same views": ["method.cwbass.views=same"],
    "joint batch norm": ["method.cwbass.norm=joint"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, required=True, help="parameters of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, for every run")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *ABLATIONS], help="these alone")
    parser.add_argument("--ablate", action="store_true", help="each term of recipe cwbass off, too")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="run nothing; print what there is")
    arguments = parser.parse_args()
    variants = VARIANTS | (ABLATIONS if arguments.ablate else {})
    if arguments.variants:
        variants = {name: (VARIANTS | ABLATIONS)[name] for name in arguments.variants}
    if not arguments.table:
        # Seed by seed, so that a table stopped half-way compares like with like.
        for seed in arguments.seeds:
            for name, overrides in variants.items():
                run_cell(arguments.params, seed, name, [*arguments.set, *overrides], arguments.out)
    print_table(arguments.out, arguments.seeds, variants)


def run_cell(params: Path, seed: int, name: str, overrides: Sequence[str], out: Path) -> None:
    """Run what is missing of one cell."""
    shared, cell = out / f"seed{seed}", out / f"seed{seed}" / folder_of(name)
    values = load_params(read_params(params, [f"seed={seed}", *overrides]), Params).model_dump(mode="json")
    claim(cell, values)
    claim(shared, {key: value for key, value in values.items() if key not in ("method", "registry")})
    common = ["--params", str(params), *(part for value in (f"seed={seed}", *overrides) for part in ("--set", value))]
    manifest = shared / "split" / "manifest.json"
    steps = [
        (manifest, ["split", *common, "--out", str(shared / "split")]),
        (shared / "warmup" / "done", ["warmup", *common, "--manifest", str(manifest), "--out", str(shared / "warmup")]),
        (
            cell / "done",
            ["train", *common, "--manifest", str(manifest), "--warmup", str(shared / "warmup" / "warmup.pt"), "--out", str(cell)],
        ),
        (
            cell / "reports" / "metrics.json",
            [
                *("eval", *common, "--checkpoint", str(cell), "--baseline", str(shared / "warmup")),
                *("--manifest", str(manifest), "--out", str(cell / "reports")),
            ],
        ),
    ]
    for result, command in steps:
        if result.exists():
            continue
        started = time.time()
        say(f"seed {seed}, {name}: cwbass {command[0]}")
        result.parent.mkdir(parents=True, exist_ok=True)
        with (result.parent / f"{command[0]}.log").open("w") as log:
            done = subprocess.run([sys.executable, "-m", "cwbass", *command], stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            sys.exit(f"failed with exit code {done.returncode}: see {log.name}")
        if result.name == "done":
            result.touch()
        say(f"  {time.time() - started:.0f} s")


def folder_of(name: str) -> str:
    """Folder of a variant's results."""
    return name.replace(",", "").replace(" ", "_")


def claim(folder: Path, values: Mapping[str, Any]) -> None:
    """Note what a folder is run with; refuse to mix it with results of other parameters."""
    path, text = folder / "params.json", json.dumps(values, indent=2)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    was, asked = flatten(json.loads(path.read_text())), flatten(json.loads(text))
    if other := sorted(key for key in was.keys() | asked.keys() if was.get(key) != asked.get(key)):
        lines = "\n".join(f"  {key}: {was.get(key)!r} there, {asked.get(key)!r} asked for" for key in other)
        sys.exit(f"{folder} holds results of other parameters; use another --out.\n{lines}")


def print_table(out: Path, seeds: Sequence[int], variants: Mapping[str, Any]) -> None:
    """Mean and standard deviation over seeds, in per cent; what is missing is left out and counted."""
    columns = ("teacher selected", "student selected", "teacher last", "student last")
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name in variants:
            path = out / f"seed{seed}" / folder_of(name) / "reports" / "metrics.json"
            if path.exists():
                metrics = json.loads(path.read_text())
                rows.setdefault(name, []).append(metrics)
                if name == next(iter(variants)):
                    rows.setdefault("supervised", []).append(metrics)
    hashes = sorted({metrics["split_hash"][:12] for group in rows.values() for metrics in group})
    print(f"test mIoU, per cent, mean +- standard deviation over seeds; splits {', '.join(hashes)}\n")
    print(f"| method | seeds | {' | '.join(columns)} | boundary IoU | boundary F1 3 px | gain of each seed |")
    print(f"|---|---|{'---|' * (len(columns) + 3)}")
    for name in ("supervised", *variants):
        group = rows.get(name, [])
        if not group:
            continue
        prefix = "baseline " if name == "supervised" else ""
        key = "baseline_" if name == "supervised" else ""
        cells = [
            spread([m["checkpoints"][f"{prefix}{column}"]["miou"] for m in group if f"{prefix}{column}" in m["checkpoints"]])
            for column in columns
        ]
        cells += [spread([m[f"{key}boundary_iou"] for m in group]), spread([m[f"{key}boundary_f1_3px"] for m in group])]
        gains = "" if name == "supervised" else ", ".join(f"{100 * m['miou_gain']:+.1f}" for m in group)
        print(f"| {name} | {len(group)} | {' | '.join(cells)} | {gains} |")


def spread(values: Sequence[float]) -> str:
    """Mean and deviation, in per cent."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * deviation:.1f}"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
