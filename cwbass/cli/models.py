"""Verbs about trained models: score them, use them, hand them on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwbass.cli.common import dataset_folder, load, load_changed, local_checkpoint, print_json
from cwbass.cli.completion import models
from cwbass.cli.options import (
    MANIFEST,
    PARAMS,
    REGISTRATION,
    REPORTS,
    TRAIN_DIR,
    WARMUP,
    DataRoot,
    DeviceName,
    Overrides,
    ParamsFile,
    Store,
)
from cwbass.errors import DataError, ParamsError, counted

if TYPE_CHECKING:
    from cwbass.steps.evaluate import EvaluateParams

Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="Checkpoint, folder of a training, s3:// URI, name@1.4.0 or name@champion.",
        autocompletion=models,
    ),
]
HowFile = Annotated[
    Path | None, typer.Option("--params", help="How to predict: the eval section of this file; default: of the checkpoint.")
]
Device = Annotated[DeviceName, typer.Option("--device", help="auto: a GPU where there is one.")]


def eval_(
    checkpoint: Checkpoint,
    baseline: Annotated[
        str | None,
        typer.Option(help="What to compare with: the supervised baseline, or name@champion.", autocompletion=models),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="sweep.json of the warm-up, for the report in --out; default: beside --baseline or --checkpoint."
        ),
    ] = None,
    params: HowFile = None,
    overrides: Overrides = None,
    manifest: Annotated[
        Path | None, typer.Option(help=f"Split to score the test images of; default without --data: {MANIFEST}.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|s3://...",
            help="A dataset; without --manifest, the test images that it names, or else all with masks.",
        ),
    ] = None,
    store: Store = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, the report and the plots; without it, nothing is written.")
    ] = None,
    device: Device = "auto",
    per_image: Annotated[
        bool, typer.Option("--per-image", help="Also write the confusion matrix of every image: confusions.npz in --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All scores as JSON on stdout, not a table.")] = False,
) -> None:
    """Score a checkpoint on the test split, or on other data."""
    from cwbass.steps.evaluate import evaluate
    from cwbass.telemetry import observe_here

    if out is None and (per_image or sweep):
        raise ParamsError(f"{'--per-image' if per_image else '--sweep'} is for files in the folder of --out. Give --out, too.")
    path = local_checkpoint(checkpoint, store, params)
    other = None if baseline is None else local_checkpoint(baseline, store, params)
    loaded = _how(path, params, overrides)
    if manifest is None and data is None:
        manifest = MANIFEST
    with observe_here("evaluate") as telemetry:
        report = evaluate(
            loaded,
            checkpoint=path,
            baseline=other,
            sweep=sweep,
            manifest=manifest,
            data_root=None if data is None else dataset_folder(data),
            out_dir=out,
            device=device,
            per_image=per_image,
            telemetry=telemetry,
        )
    if as_json:
        print_json(report.to_dict())
        return
    from cwbass.cli.console import print_scores

    print_scores(report.metrics, report.report)


def _how(checkpoint: Path, params: Path | None, overrides: list[str] | None) -> EvaluateParams | None:
    """How to predict, by ``--params`` or the checkpoint, and ``--set`` on top; None: as the checkpoint says."""
    from cwbass.params import parse_yaml
    from cwbass.registry.resolve import open_checkpoint
    from cwbass.steps.checkpoints import chosen_file
    from cwbass.steps.evaluate import EvaluateParams

    if params is not None:
        return load(EvaluateParams, params, overrides)
    if not overrides:
        return None
    values = parse_yaml(open_checkpoint(chosen_file(checkpoint)).params, str(checkpoint))
    return load_changed(EvaluateParams, values, overrides)


def thresholds(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint whose labels are judged.", dir_okay=False)] = WARMUP,
    manifest: Annotated[
        Path | None, typer.Option(help="Measure now, on this split's selection slice, rather than read sweep.json.")
    ] = None,
    data: DataRoot = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, help="Precision asked of the labels that are kept; default: 0.9.")
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The whole sweep as JSON on stdout, not a table.")] = False,
) -> None:
    """Suggest a threshold for each class, from how right its labels are on the selection slice."""
    from cwbass.steps.thresholds import thresholds

    root = None if data is None else dataset_folder(data)
    sweep = thresholds(checkpoint, manifest=manifest, data_root=root, target=target, device=device)
    if as_json:
        print_json(sweep.to_dict())
        return
    from cwbass.cli.console import print_thresholds

    print_thresholds(sweep)


def predict(
    checkpoint: Checkpoint,
    images: Annotated[Path, typer.Option(help="An image, or a folder of images.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder for masks/ (class indices), overlays/, confidence/.")] = Path("predictions"),
    overlays: Annotated[bool, typer.Option(help="Whether to draw masks over images, in overlays/.")] = True,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also write how sure the network is of each pixel, 0 to 255.")
    ] = False,
    params: HowFile = None,
    overrides: Overrides = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Write masks and overlays for a folder of images."""
    from cwbass.steps.predict import predict

    keys = [override.partition("=")[0].strip() for override in overrides or ()]
    if foreign := [key for key in keys if key.partition(".")[0] != "eval"]:
        raise ParamsError(f"--set {', '.join(foreign)}: nothing but eval.* can be set, the rest is the checkpoint's.")
    path = local_checkpoint(checkpoint, store, params)
    how = _how(path, params, overrides)
    done = predict(
        None if how is None else how.eval,
        checkpoint=path,
        images=images,
        out_dir=out,
        overlays=overlays,
        confidence=confidence,
        device=device,
    )
    print_json(done.to_dict())
    if done.failed:
        raise DataError(
            f"{counted(len(done.failed), 'image')} of {len(done.failed) + done.images} cannot be used: see `failed` in the result."
        )


def register(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint, or the folder of a training.")] = TRAIN_DIR,
    metrics: Annotated[Path, typer.Option(help="Scores, written by `cwbass eval`.", dir_okay=False)] = REPORTS / "metrics.json",
    report: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Report to keep with the version, and flight.html beside it; default: beside --metrics.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for registration.json and gate.md.")] = REGISTRATION,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the gate, and write nothing.")] = False,
) -> None:
    """Write a version into the registry, unless the gate refuses the model (exit code 5)."""
    from cwbass.steps.register import RegisterParams, register
    from cwbass.steps.report import REPORT
    from cwbass.telemetry import observe_here

    beside = metrics.parent / REPORT
    page = report or (beside if beside.is_file() else None)
    loaded = load(RegisterParams, params, overrides)
    files: dict[str, Any] = {"checkpoint": checkpoint, "metrics": metrics, "report": page, "out_dir": out}
    if dry_run:
        print_json(register(loaded, **files, dry_run=True).to_dict())
        return
    with observe_here("register") as telemetry, telemetry.registry_operation("register"):
        outcome = register(loaded, **files, telemetry=telemetry)
    print_json(outcome.to_dict())


def report(
    reports: Annotated[Path, typer.Option("--reports", help="Folder that `cwbass eval --out` wrote.")] = REPORTS,
) -> None:
    """Draw report.html and flight.html again, and print the table of scores."""
    from cwbass.cli.console import print_scores
    from cwbass.jsonfile import read_metrics
    from cwbass.steps.report import report

    path = report(reports)
    print_scores(read_metrics(reports / "metrics.json"), path)


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="ONNX file to write.", dir_okay=False)] = Path("model.onnx"),
    weights: Annotated[str, typer.Option(help="student or teacher; auto: the one that is scored.")] = "auto",
    store: Store = None,
) -> None:
    """Write the network as one ONNX file, checked against it at three sizes."""
    from cwbass.steps.export import export

    print_json(export(checkpoint=local_checkpoint(checkpoint, store), out=out, weights=weights).to_dict())
