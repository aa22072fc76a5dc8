"""Options that verbs share, and where files lie when nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ParamsFile = Annotated[Path, typer.Option("--params", help="File of parameters.", dir_okay=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a parameter, as train.steps=500; the value is YAML. As often as needed."
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="FOLDER|s3://...", help="The dataset, in place of data.root. What lies at a URL is copied first."
    ),
]
DeviceName = Literal["auto", "cpu", "cuda"]
Store = Annotated[
    str | None, typer.Option("--store", metavar="FOLDER|s3://...", help="Registry, in place of registry.store of params.yaml.")
]

PARAMS = Path("params.yaml")
SPLIT_DIR, WARMUP_DIR, TRAIN_DIR = Path("artifacts/split"), Path("artifacts/warmup"), Path("artifacts/train")
REPORTS, REGISTRATION = Path("reports"), Path("artifacts/registration")
MANIFEST, WARMUP = SPLIT_DIR / "manifest.json", WARMUP_DIR / "warmup.pt"
