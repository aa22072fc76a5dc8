"""The command line: parse, call one step, print its report as JSON.

Results go to stdout, talk to stderr. Heavy imports live inside the commands: torch takes
seconds to load, and ``--help`` should not.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from cwbass import __version__
from cwbass.completion import models
from cwbass.errors import CwbassError, ParamsError, counted, disk_failures
from cwbass.json_lines import FORMAT, JsonLines, asks_for_json

if TYPE_CHECKING:
    from cwbass.methods.base import MethodConfig
    from cwbass.params import P, Params
    from cwbass.telemetry import Telemetry

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="cwbass",
    help="Semi-supervised semantic segmentation with CW-BASS.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show and check parameters.", no_args_is_help=True)
app.add_typer(config_app, name="config")
registry_app = typer.Typer(help="Look at registered models, and move their aliases.", no_args_is_help=True)
app.add_typer(registry_app, name="registry")

ParamsFile = Annotated[Path, typer.Option("--params", help="File of parameters.", dir_okay=False)]
Overrides = Annotated[
    Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="Override a parameter: dotted.key=value.")
]
Manifest = Annotated[Path, typer.Option("--manifest", help="Split, written by `cwbass split`.", dir_okay=False)]
DataRoot = Annotated[
    Optional[str],
    typer.Option(
        "--data", metavar="FOLDER|s3://...", help="The dataset, in place of data.root. What is not a folder is copied first."
    ),
]
WarmupFile = Annotated[Path, typer.Option("--warmup", help="Checkpoint to start from, written by `cwbass warmup`.")]
ReportFile = Annotated[Optional[Path], typer.Option("--report", help="Also write what is printed to this file.", dir_okay=False)]
CheckpointFolder = Annotated[Path, typer.Option("--out", help="Folder for checkpoints.")]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="Checkpoint, folder of a training, s3:// URI, name@1.4.0 or name@champion.",
        autocompletion=models,
    ),
]
DeviceName = Literal["auto", "cpu", "cuda"]
Device = Annotated[DeviceName, typer.Option("--device", help="auto: a GPU where there is one.")]
Store = Annotated[
    Optional[str], typer.Option("--store", metavar="FOLDER|s3://...", help="Registry, in place of registry.store of params.yaml.")
]

MetricsPort = Annotated[
    Optional[int],
    typer.Option("--metrics-port", min=0, max=65535, help="Serve Prometheus metrics on this port; 0 takes a free one."),
]
MetricsLinger = Annotated[
    Optional[float], typer.Option("--metrics-linger", min=0, help="Seconds to go on serving metrics when training is done.")
]
MetricsTextfile = Annotated[
    Optional[Path], typer.Option("--metrics-textfile", help="File for the last metrics, in place of metrics.prom in --out.")
]
Pushgateway = Annotated[Optional[str], typer.Option("--pushgateway", metavar="URL", help="Pushgateway that is told the outcome.")]

Alias = Annotated[str, typer.Option(help="Lower-case letters, digits and hyphens.")]
Reason = Annotated[str, typer.Option(help="For the history.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]

Work = Annotated[
    Optional[Path],
    typer.Option("--work", help="Folder for the state of the run until it is done; default: OUT/state.", file_okay=False),
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew: what an earlier run left in the folders is deleted.")]
ResumeForce = Annotated[
    Optional[list[str]],
    typer.Option("--resume-force", metavar="KEY", help="Go on with a run although this parameter, or section, differs."),
]
KeepState = Annotated[bool, typer.Option("--keep-state", help="Leave the last state behind when the run is done.")]

PARAMS = Path("params.yaml")
SPLIT_DIR, WARMUP_DIR, TRAIN_DIR = Path("artifacts/split"), Path("artifacts/warmup"), Path("artifacts/train")
REPORTS, REGISTRATION = Path("reports"), Path("artifacts/registration")
MANIFEST, WARMUP = SPLIT_DIR / "manifest.json", WARMUP_DIR / "warmup.pt"


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cwbass {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors alone.")] = False,
) -> None:
    level = logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if asks_for_json() else logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.ERROR if _rank() else level, handlers=[handler])  # of many processes the first one talks
    for noisy in ("httpx", "botocore", "PIL", "torch", "timm", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _load(kind: type[P], params: Path, overrides: list[str] | None) -> P:
    from cwbass.params import load_params, read_params

    return load_params(read_params(params, overrides or ()), kind)


def _observe(stage: str, out: Path | None = None, **settings: Any) -> AbstractContextManager[Telemetry]:
    """Metrics of a step; docs/monitoring.md has the variables that say where they go."""
    from cwbass.telemetry import observe_here

    return observe_here(stage, out_dir=out, **settings)


def _spread(processes: int, nodes: int = 1) -> None:
    """Run this command line again in as many processes as the parameters say, unless torchrun has done so; then end."""
    if "RANK" in os.environ or processes * nodes == 1:
        return
    if nodes > 1:
        raise ParamsError(
            f"train.nodes is {nodes}. On a cluster, `cwbass launch` starts them as a TrainJob; elsewhere start "
            "`torchrun --nnodes ... -m cwbass train` on each machine, or set train.nodes: 1."
        )
    from cwbass.training.torchrun import run_processes

    raise typer.Exit(run_processes(processes, sys.argv[1:]))


def _folder(data: str) -> Path:
    """The dataset, on this machine."""
    if "://" not in data:
        return Path(data)
    from cwbass.data.remote import local_dataset

    return local_dataset(data)


def _rank() -> int:
    """Of this process among those of torchrun; 0 is the only one, or the first."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def _store(store: str | None, params: Path) -> str:
    """The registry that is named, or else that of the parameters."""
    from cwbass.params import Params

    return store or _load(Params, params, None).registry.store


def _resolve(reference: str, store: str | None, params: Path | None = None) -> Path:
    """A checkpoint on this machine, for a path, a URI, or a model of the registry."""
    if Path(reference).exists():
        return Path(reference)
    from cwbass.resolve import resolve

    named = "@" in reference and (store or params or PARAMS.is_file())  # whatever else a reference is, it needs no registry
    return resolve(reference, store=_store(store, params or PARAMS) if named else None)


def _print(values: Any, file: Path | None = None) -> None:
    typer.echo(json.dumps(values, indent=2))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")


@app.command()
def synthesize(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Generate the default dataset where data.root does not exist yet."""
    from cwbass.steps.synthesize import SynthesizeParams, synthesize

    _print(synthesize(_load(SynthesizeParams, params, overrides)))


@app.command()
def init(
    root: Annotated[str, typer.Argument(metavar="FOLDER|s3://...", help="The dataset. What is not a folder is copied first.")],
    out: Annotated[Path, typer.Option(help="File to write.", dir_okay=False)] = PARAMS,
    device: Annotated[DeviceName, typer.Option(help="What the run is planned for; a GPU need not be here.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
) -> None:
    """Write parameters that fit a dataset: layout, size of images and crops, network, budget."""
    from cwbass.steps.init import init

    _print(init(_folder(root), root=root, out=out, device=device, overwrite=overwrite).to_dict())


@app.command("import")
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
        Optional[str], typer.Option("--list", metavar="NAME", help="Also list these images in this file, e.g. test.txt.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over masks that are there.")] = False,
) -> None:
    """Paint masks/ and classes.txt of a folder of images from COCO annotations."""
    from cwbass.steps.import_coco import import_coco

    done = import_coco(annotations, root=root, background=background, empty=empty, list_file=list_file, overwrite=overwrite)
    _print(done.to_dict())


@app.command()
def split(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    labeled_list: Annotated[Optional[Path], typer.Option(help="File of labelled ids, in place of split.labeled_list.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the manifest.")] = SPLIT_DIR,
) -> None:
    """Draw which images are labelled, unlabelled, held out for selection, and tested on."""
    from cwbass.steps.split import SplitParams, split

    sets = [*(overrides or ()), *([f"split.labeled_list={json.dumps(str(labeled_list))}"] if labeled_list else ())]
    loaded = _load(SplitParams, params, sets)
    with _observe("split"):
        report = split(loaded, data_root=_folder(data or loaded.data.root), out_dir=out)
    _print(report.to_dict())


@app.command()
def check(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON on stdout.")] = False,
    params_only: Annotated[bool, typer.Option("--params-only", help="Check parameters, not data.")] = False,
) -> None:
    """Check parameters, weights and data before any long step; exit code 4 where the data is wrong."""
    from cwbass.params import Params
    from cwbass.steps.check import check, refuse_errors, warn_of_missing_sections

    loaded = _load(Params, params, overrides)
    warn_of_missing_sections(loaded, params, pipeline=Path("dvc.yaml"))
    if params_only:
        _print({"params": str(params), "ok": True})
        return
    root = _folder(data or loaded.data.root)
    report = check(loaded, data_root=root)
    if as_json:
        _print(report.to_dict())
    else:
        from cwbass.console import print_findings

        print_findings(report, root)
    refuse_errors(report, params=params, data_root=root)


@app.command()
def warmup(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    manifest: Manifest = MANIFEST,
    out: CheckpointFolder = WARMUP_DIR,
    metrics_port: MetricsPort = None,
    metrics_linger: MetricsLinger = None,
    metrics_textfile: MetricsTextfile = None,
    pushgateway: Pushgateway = None,
    report_file: ReportFile = None,
    work: Work = None,
    restart: Restart = False,
    resume_force: ResumeForce = None,
    keep_state: KeepState = False,
) -> None:
    """Train supervised: the warm-up, and the baseline that goes on from it. A stopped run goes on where it was."""
    from cwbass.steps.training import WarmupParams
    from cwbass.steps.warmup import warmup
    from cwbass.training.distributed import joined
    from cwbass.training.resume import Resume

    loaded = _load(WarmupParams, params, overrides)
    root = _folder(data or loaded.data.root)  # before there are several processes, which would all copy it
    _spread(loaded.train.processes)
    telling = {"port": metrics_port, "linger": metrics_linger, "textfile": metrics_textfile, "pushgateway": pushgateway}
    chosen = Resume(restart, tuple(resume_force or ()), keep_state)
    with _observe("warmup", out, **telling) as telemetry, joined(loaded.train.device, os.environ) as world:
        report = warmup(
            loaded,
            manifest=manifest,
            data_root=root,
            out_dir=out,
            work_dir=work,
            resume=chosen,
            telemetry=telemetry,
            world=world,
        )
    if world.main:
        _print(report.to_dict(), report_file)


@app.command()
def train(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    manifest: Manifest = MANIFEST,
    warmup: WarmupFile = WARMUP,
    out: CheckpointFolder = TRAIN_DIR,
    metrics_port: MetricsPort = None,
    metrics_linger: MetricsLinger = None,
    metrics_textfile: MetricsTextfile = None,
    pushgateway: Pushgateway = None,
    report_file: ReportFile = None,
    work: Work = None,
    restart: Restart = False,
    resume_force: ResumeForce = None,
    keep_state: KeepState = False,
) -> None:
    """Train semi-supervised, from the warm-up's checkpoint on. A stopped run goes on where it was."""
    from cwbass.steps.train import TrainParams, train
    from cwbass.training.distributed import joined
    from cwbass.training.resume import Resume

    loaded = _load(TrainParams, params, overrides)
    root = _folder(data or loaded.data.root)  # before there are several processes, which would all copy it
    _spread(loaded.train.processes, loaded.train.nodes)
    telling = {"port": metrics_port, "linger": metrics_linger, "textfile": metrics_textfile, "pushgateway": pushgateway}
    chosen = Resume(restart, tuple(resume_force or ()), keep_state)
    with _observe("train", out, **telling) as telemetry, joined(loaded.train.device, os.environ) as world:
        report = train(
            loaded,
            manifest=manifest,
            warmup=warmup,
            data_root=root,
            out_dir=out,
            work_dir=work,
            resume=chosen,
            telemetry=telemetry,
            world=world,
        )
    if world.main:
        _print(report.to_dict(), report_file)


@app.command()
def launch(
    image: Annotated[str, typer.Option(envvar="CWBASS_IMAGE", help="Image of the job's pods.")],
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    manifest: Manifest = MANIFEST,
    warmup: WarmupFile = WARMUP,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, on the work volume.")] = TRAIN_DIR,
    namespace: Annotated[str, typer.Option(help="Of the job.")] = "cwbass",
    runtime: Annotated[str, typer.Option(help="TrainingRuntime of the namespace.")] = "cwbass-torch",
    work: Annotated[Path, typer.Option(help="Where the work volume is mounted.", file_okay=False)] = Path("/workspace"),
    cpu: Annotated[str, typer.Option(help="CPUs of each machine.")] = "4",
    memory: Annotated[str, typer.Option(help="Memory of each machine.")] = "16Gi",
    accelerator: Annotated[str, typer.Option(help="Resource that each process gets one of; empty trains on CPUs.")] = (
        "nvidia.com/gpu"
    ),
    timeout: Annotated[Optional[float], typer.Option(min=1, help="Seconds that the job may take.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the TrainJob, and start none. A dataset of a URL is copied.")
    ] = False,
) -> None:
    """Train on train.nodes machines: start a Kubeflow TrainJob on a cluster, and follow it to its end."""
    from cwbass.steps.launch import Cluster, TrainTask, launch, planned_job
    from cwbass.steps.train import TrainParams

    loaded = _load(TrainParams, params, overrides)
    cluster = Cluster(image, namespace, runtime, work, cpu, memory, accelerator or None, timeout=timeout)
    root = _folder(data or loaded.data.root)
    task = TrainTask(params=loaded, manifest=manifest, warmup=warmup, data_root=root, out_dir=out)
    _print(planned_job(task, cluster=cluster) if dry_run else launch(task, cluster=cluster).to_dict())


@app.command("eval")
def eval_(
    checkpoint: Checkpoint,
    baseline: Annotated[
        Optional[str],
        typer.Option(help="What to compare with: the supervised baseline, or name@champion.", autocompletion=models),
    ] = None,
    sweep: Annotated[
        Optional[Path],
        typer.Option(
            dir_okay=False, help="sweep.json of the warm-up, for the report; default: beside --baseline or --checkpoint."
        ),
    ] = None,
    params: Annotated[
        Optional[Path], typer.Option("--params", help="Takes the eval section from here, not from the checkpoint.")
    ] = None,
    overrides: Overrides = None,
    manifest: Annotated[
        Optional[Path], typer.Option(help=f"Split to score the test images of; default without --data: {MANIFEST}.")
    ] = None,
    data: Annotated[
        Optional[str],
        typer.Option("--data", metavar="FOLDER|s3://...", help="A dataset; without --manifest, all its masked images."),
    ] = None,
    store: Store = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder for metrics.json, the report and the plots.")] = None,
    device: Device = "auto",
    per_image: Annotated[bool, typer.Option("--per-image", help="Also write the confusion matrix of every image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All scores as JSON on stdout, not a table.")] = False,
) -> None:
    """Score a checkpoint on the test split, or on other data."""
    from cwbass.params import apply_overrides, load_params, parse_yaml
    from cwbass.steps.checkpoints import chosen_file
    from cwbass.steps.evaluate import EvaluateParams, evaluate

    path = _resolve(checkpoint, store, params)
    other = None if baseline is None else _resolve(baseline, store, params)
    loaded = None
    if params is not None:
        loaded = _load(EvaluateParams, params, overrides)
    elif overrides:
        from cwbass.resolve import open_checkpoint

        values = parse_yaml(open_checkpoint(chosen_file(path)).params, str(path))
        loaded = load_params(apply_overrides(values, overrides), EvaluateParams)
    if manifest is None and data is None:
        manifest = MANIFEST
    with _observe("evaluate") as telemetry:
        report = evaluate(
            loaded,
            checkpoint=path,
            baseline=other,
            sweep=sweep,
            manifest=manifest,
            data_root=None if data is None else _folder(data),
            out_dir=out,
            device=device,
            per_image=per_image,
            telemetry=telemetry,
        )
    if as_json:
        _print(report.to_dict())
        return
    from cwbass.console import print_scores

    print_scores(report.metrics, report.report)


@app.command()
def thresholds(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint whose labels are judged.", dir_okay=False)] = WARMUP,
    manifest: Annotated[
        Optional[Path], typer.Option(help="Measure now, on this split's selection slice, rather than read sweep.json.")
    ] = None,
    data: DataRoot = None,
    target: Annotated[Optional[float], typer.Option(min=0, max=1, help="Precision asked of the labels that are kept.")] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The whole sweep as JSON on stdout, not a table.")] = False,
) -> None:
    """Suggest a threshold for each class, from how right its labels are on the selection slice."""
    from cwbass.steps.thresholds import thresholds

    root = None if data is None else _folder(data)
    sweep = thresholds(checkpoint, manifest=manifest, data_root=root, target=target, device=device)
    if as_json:
        _print(sweep.to_dict())
        return
    from cwbass.console import print_thresholds

    print_thresholds(sweep)


@app.command()
def measure(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    manifest: Manifest = MANIFEST,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Whether to time steps, or only count images at one.")] = True,
) -> None:
    """Take a few steps of the method, and say what one costs: seconds, images through the encoder."""
    from cwbass.steps.measure import measure
    from cwbass.steps.train import TrainParams

    loaded = _load(TrainParams, params, overrides)
    _print(measure(loaded, manifest=manifest, data_root=_folder(data or loaded.data.root), timed=timed).to_dict())


Seeds = Annotated[Optional[list[str]], typer.Option(metavar="0,1,2", help="Seeds; default: the one of the parameters.")]
Labels = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="1/16,1/8", help="Shares or counts of labelled images, or NAME=FILE of ids; default: as the parameters say."
    ),
]
BudgetOption = Annotated[
    Optional[str],
    typer.Option(
        metavar="KIND=N",
        help="steps=N, minutes=N or passes=N of every run, warm-up included; default: train.steps. For the last two, steps of each "
        "method are measured before the plan is written.",
    ),
]
Grid = Annotated[Path, typer.Option(help="Folder of the comparison; the same command goes on where it was.", file_okay=False)]
OneCell = Annotated[Optional[str], typer.Option("--cell", metavar="ID", help="Run this cell alone, and make no table.")]
ListCells = Annotated[bool, typer.Option("--list", help="Write the plan, print its cells as JSON, and run none; see --budget.")]
TableOnly = Annotated[bool, typer.Option("--table", help="Make the table of what is there, and run nothing.")]


@app.command()
def compare(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    methods: Annotated[
        Optional[list[str]],
        typer.Option(metavar="A,B", help="Methods; supervised is always among them. Default: the one of the parameters."),
    ] = None,
    variants: Annotated[
        Optional[list[str]],
        typer.Option(
            "--variant",
            metavar="'NAME=METHOD KEY=VALUE ...'",
            help="Another row: a method with keys of its section changed, as 'tau0=unimatch threshold.tau=0'. As often as needed.",
        ),
    ] = None,
    seeds: Seeds = None,
    labels: Labels = None,
    budget: BudgetOption = None,
    out: Grid = Path("artifacts/compare"),
    cell: OneCell = None,
    list_cells: ListCells = False,
    table_only: TableOnly = False,
) -> None:
    """Train methods x seeds x labels on one budget, and set them side by side with intervals."""
    from cwbass.comparison.variants import method_variants, own_variants
    from cwbass.params import Params

    if table_only:
        _table(out)
        return
    loaded = _load(Params, params, overrides)
    plain = method_variants(_listed(methods) or [loaded.method.name], loaded)
    own = own_variants(variants or [], loaded)
    _compare(loaded, {**plain, **own}, seeds, labels, budget, out, cell, list_cells)


@app.command()
def ablate(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    variants: Annotated[Optional[list[str]], typer.Option(metavar="A,B", help="These alone; --list names all.")] = None,
    seeds: Seeds = None,
    labels: Labels = None,
    budget: BudgetOption = None,
    out: Grid = Path("artifacts/ablate"),
    cell: OneCell = None,
    list_cells: ListCells = False,
    table_only: TableOnly = False,
) -> None:
    """Compare cw_bass with its terms switched off, one by one, and with each of them alone."""
    from cwbass.comparison.variants import ablation_variants, chosen
    from cwbass.params import Params

    if table_only:
        _table(out)
        return
    loaded = _load(Params, params, overrides)
    _compare(loaded, chosen(ablation_variants(loaded), _listed(variants)), seeds, labels, budget, out, cell, list_cells)


def _compare(
    params: Params,
    variants: Mapping[str, MethodConfig],
    seeds: list[str] | None,
    labels: list[str] | None,
    budget: str | None,
    out: Path,
    cell: str | None,
    list_cells: bool,
) -> None:
    from cwbass.steps.compare import asked_plan, prepare, run_cells

    if "://" in params.data.root:  # all cells read the one copy
        copied = params.data.model_copy(update={"root": str(_folder(params.data.root))})
        params = params.model_copy(update={"data": copied})
    asked = asked_plan(params, variants, seeds=_listed(seeds), labels=_listed(labels), budget=budget, out_dir=out)
    comparison = prepare(asked)
    if list_cells:
        _print(comparison.listing())
    elif cell is not None:
        run_cells(comparison.plan, [comparison.asked.cell(cell)])
        _print({"cell": cell, "folder": str(out / cell)})
    else:
        try:
            run_cells(comparison.plan, comparison.asked.cells())
        except CwbassError:
            _table_so_far(out)
            raise
        _table(out)


def _table_so_far(out: Path) -> None:
    """Of what is done, while an error is on its way that counts for more than one of the table."""
    try:
        if list(out.glob("*/*/*/reports/confusions.npz")):
            _table(out)
    except Exception as error:
        logger.warning("there is no table: %s", error)


def _table(out: Path) -> None:
    from cwbass.steps.compare import write_table

    typer.echo(write_table(out), nl=False)


def _listed(texts: list[str] | None) -> list[str]:
    """``--x a,b --x c`` as a, b, c."""
    from cwbass.steps.compare import listed

    return listed(",".join(texts or ()))


@app.command()
def predict(
    checkpoint: Checkpoint,
    images: Annotated[Path, typer.Option(help="An image, or a folder of images.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder for masks/, overlays/, confidence/.")] = Path("predictions"),
    overlays: Annotated[bool, typer.Option(help="Whether to draw overlays.")] = True,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write how sure the network is of each pixel.")] = False,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Write masks and overlays for a folder of images."""
    from cwbass.steps.predict import predict

    path = _resolve(checkpoint, store)
    done = predict(checkpoint=path, images=images, out_dir=out, overlays=overlays, confidence=confidence, device=device)
    _print(done.to_dict())


@app.command()
def register(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint, or the folder of a training.")] = TRAIN_DIR,
    metrics: Annotated[Path, typer.Option(help="Scores, written by `cwbass eval`.", dir_okay=False)] = REPORTS / "metrics.json",
    report: Annotated[
        Optional[Path],
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Report to keep with the version, and flight.html beside it; default: beside --metrics.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for registration.json and gate.md.")] = REGISTRATION,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Pass the gate, and write nothing.")] = False,
) -> None:
    """Write a version into the registry, unless the gate refuses the model (exit code 5)."""
    from cwbass.steps.register import RegisterParams, register
    from cwbass.steps.report import REPORT

    beside = metrics.parent / REPORT
    page = report or (beside if beside.is_file() else None)
    loaded = _load(RegisterParams, params, overrides)
    files: dict[str, Any] = {"checkpoint": checkpoint, "metrics": metrics, "report": page, "out_dir": out}
    if dry_run:
        _print(register(loaded, **files, dry_run=True).to_dict())
        return
    with _observe("register") as telemetry, telemetry.registry_operation("register"):
        outcome = register(loaded, **files, telemetry=telemetry)
    _print(outcome.to_dict())


@app.command()
def report(
    reports: Annotated[Path, typer.Option("--reports", help="Folder that `cwbass eval --out` wrote.")] = REPORTS,
) -> None:
    """Draw report.html and flight.html again, and print the table of scores."""
    from cwbass.console import print_scores
    from cwbass.jsonfile import read_metrics
    from cwbass.steps.report import report

    path = report(reports)
    print_scores(read_metrics(reports / "metrics.json"), path)


@app.command()
def doctor(
    params: ParamsFile = PARAMS,
    s3: Annotated[Optional[str], typer.Option(help="Also write, read and delete an object below this s3:// URI.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, not a table.")] = False,
) -> None:
    """Say what this machine has, and what it lacks; exit code 3 where training could not run."""
    from cwbass.doctor import diagnose
    from cwbass.params import Params

    loaded = _load(Params, params, None) if params.is_file() else None
    found = diagnose(loaded, s3=s3)
    if as_json:
        _print(found.to_dict())
    else:
        from cwbass.console import print_diagnosis

        print_diagnosis(found)
    if found.errors:
        raise ParamsError(f"{counted(len(found.errors), 'thing')} would stop a run here; see above.")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="ONNX file to write.", dir_okay=False)] = Path("model.onnx"),
    weights: Annotated[str, typer.Option(help="auto, student or teacher.")] = "auto",
    store: Store = None,
) -> None:
    """Write the network as one ONNX file, checked against it at three sizes."""
    from cwbass.steps.export import export

    _print(export(checkpoint=_resolve(checkpoint, store), out=out, weights=weights).to_dict())


@registry_app.command("list")
def registry_list(params: ParamsFile = PARAMS, store: Store = None) -> None:
    """Models of the registry, with their aliases."""
    from cwbass.steps.registry import list_registry

    _print(list_registry(_store(store, params)))


@registry_app.command("show")
def registry_show(
    model: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION|@ALIAS]", help="A model, or one version of it.", autocompletion=models)
    ],
    params: ParamsFile = PARAMS,
    store: Store = None,
) -> None:
    """Versions and history of a model, or what is known of one version."""
    from cwbass.steps.registry import show

    _print(show(_store(store, params), model))


@registry_app.command("promote")
def registry_promote(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME@VERSION|@ALIAS", help="The version, by its number or another alias.", autocompletion=models),
    ],
    alias: Alias = "champion",
    reason: Reason = "by hand",
    dry_run: DryRun = False,
    params: ParamsFile = PARAMS,
    store: Store = None,
) -> None:
    """Point an alias at a version, after every file of it was checked."""
    from cwbass.steps.registry import promote_model

    _print(promote_model(_store(store, params), model, alias=alias, reason=reason, dry_run=dry_run))


@registry_app.command("rollback")
def registry_rollback(
    model: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    alias: Alias = "champion",
    reason: Reason = "by hand",
    dry_run: DryRun = False,
    params: ParamsFile = PARAMS,
    store: Store = None,
) -> None:
    """Point an alias back at the version before; once more goes one further."""
    from cwbass.steps.registry import rollback_model

    _print(rollback_model(_store(store, params), model, alias=alias, reason=reason, dry_run=dry_run))


@config_app.command("show")
def config_show(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say of each value whether it is given, or a default.")] = False,
) -> None:
    """Print every parameter as it will be used, as YAML."""
    from cwbass.params import Params, apply_overrides, dump_origins, dump_params, read_params

    loaded = _load(Params, params, overrides)
    if origin:
        given = {str(params): read_params(params), "--set": apply_overrides({}, overrides or ())}
        typer.echo(dump_origins(loaded, given), nl=False)
    else:
        typer.echo(dump_params(loaded), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of params.yaml, for editors."""
    from cwbass.params import json_schema

    _print(json_schema())


def _find_verb() -> None:
    """A verb that is none of ours may be a plugin's, which adds it to ``app``. Any other verb loads plugins where it needs them."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if words and words[0] not in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        from cwbass.plugins import load_plugins

        load_plugins()


def main() -> None:
    """Entry point: runs the command and turns our errors into one line and an exit code."""
    # The first process of a container gets no default action: without a handler SIGTERM would do nothing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with disk_failures():
            _find_verb()
            app()
    except CwbassError as error:
        who = f" (process {_rank()} of {os.environ['WORLD_SIZE']})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        if os.environ.get(FORMAT) == "json":
            said = {"levelname": "ERROR", "msg": f"{error}{who}", "exit_code": error.exit_code}
            typer.echo(JsonLines().format(logging.makeLogRecord(said)), err=True)
        else:
            typer.echo(f"error{who}: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
