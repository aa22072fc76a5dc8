"""Verbs about data: make or describe a dataset, split it, check it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cwbass.cli.common import dataset_folder, load, print_json
from cwbass.cli.options import PARAMS, SPLIT_DIR, DataRoot, DeviceName, Overrides, ParamsFile


def synthesize(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Generate the default dataset where data.root does not exist yet."""
    from cwbass.steps.synthesize import SynthesizeParams, synthesize

    print_json(synthesize(load(SynthesizeParams, params, overrides)))


def init(
    root: Annotated[str, typer.Argument(metavar="FOLDER|s3://...", help="The dataset. What lies at a URL is copied first.")],
    out: Annotated[Path, typer.Option(help="File to write.", dir_okay=False)] = PARAMS,
    device: Annotated[DeviceName, typer.Option(help="What the run is planned for; a GPU need not be here.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
) -> None:
    """Write parameters that fit a dataset: layout, size of images and crops, network, budget."""
    from cwbass.steps.init import init

    print_json(init(dataset_folder(root), root=root, out=out, device=device, overwrite=overwrite).to_dict())


def import_(
    annotations: Annotated[Path, typer.Argument(help="COCO's JSON, with polygons or masks.", dir_okay=False)],
    root: Annotated[Path, typer.Option(help="Folder of the dataset; the images are in images/ there.", file_okay=False)],
    background: Annotated[
        str, typer.Option(help="Class of pixels that no object covers; '' ignores them.", metavar="NAME")
    ] = "background",
    empty: Annotated[
        bool, typer.Option("--empty", help="Images without objects show the background alone; else they count as unlabelled.")
    ] = False,
    list_file: Annotated[
        str | None, typer.Option("--list", metavar="NAME", help="Also list these images in this file, e.g. test.txt.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over masks that are there.")] = False,
) -> None:
    """Paint masks/ and classes.txt of a folder of images from COCO annotations."""
    from cwbass.steps.import_coco import import_coco

    done = import_coco(annotations, root=root, background=background, empty=empty, list_file=list_file, overwrite=overwrite)
    print_json(done.to_dict())


def split(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    labeled_list: Annotated[Path | None, typer.Option(help="File of labelled ids, in place of split.labeled_list.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the manifest.")] = SPLIT_DIR,
) -> None:
    """Draw which images are labelled, unlabelled, held out for selection, and tested on."""
    from cwbass.steps.split import SplitParams, split
    from cwbass.telemetry import observe_here

    sets = [*(overrides or ()), *([f"split.labeled_list={json.dumps(str(labeled_list))}"] if labeled_list else ())]
    loaded = load(SplitParams, params, sets, data)
    with observe_here("split"):
        report = split(loaded, data_root=dataset_folder(data or loaded.data.root), out_dir=out)
    print_json(report.to_dict())


def check(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON on stdout.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write findings, classes and some masks in colours as one page.", dir_okay=False),
    ] = None,
    params_only: Annotated[bool, typer.Option("--params-only", help="Check parameters, not data and weights.")] = False,
) -> None:
    """Check parameters, weights and data before any long step; exit code 4 where the data is wrong."""
    from cwbass.errors import ParamsError
    from cwbass.params import Params
    from cwbass.steps.check import check, check_params, refuse_errors, warn_of_missing_sections

    if params_only and html is not None:
        raise ParamsError("--html shows the data, and --params-only looks at none. Leave one of them out.")
    loaded = load(Params, params, overrides)
    warn_of_missing_sections(loaded, params, pipeline=Path("dvc.yaml"))
    if params_only:
        check_params(loaded)
        print_json({"params": str(params), "ok": True})
        return
    root = dataset_folder(data or loaded.data.root)
    report = check(loaded, data_root=root)
    if html is not None:
        from cwbass.reporting.check import write_check

        write_check(html, report, name=data or loaded.data.root, root=root)
    if as_json:
        print_json(report.to_dict())
    else:
        from cwbass.cli.console import print_findings

        print_findings(report, root)
    refuse_errors(report, params=params, data_root=root)
