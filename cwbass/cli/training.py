"""Verbs that train, here or on a cluster, or say what a step of it costs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwbass.cli.common import dataset_folder, load, print_json
from cwbass.cli.options import MANIFEST, PARAMS, TRAIN_DIR, WARMUP, WARMUP_DIR, DataRoot, Overrides, ParamsFile
from cwbass.errors import ParamsError

if TYPE_CHECKING:
    from cwbass.steps.training import TrainReport, WarmupParams
    from cwbass.telemetry import Telemetry

Manifest = Annotated[Path, typer.Option("--manifest", help="Split, written by `cwbass split`.", dir_okay=False)]
WarmupFile = Annotated[Path, typer.Option("--warmup", help="Checkpoint to start from, written by `cwbass warmup`.")]
CheckpointFolder = Annotated[Path, typer.Option("--out", help="Folder for checkpoints.")]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Also write what is printed to this file.", dir_okay=False)]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65535, help="Serve Prometheus metrics on this port; 0 takes a free one."),
]
MetricsLinger = Annotated[
    float | None, typer.Option("--metrics-linger", min=0, help="Seconds to go on serving metrics when training is done.")
]
MetricsTextfile = Annotated[
    Path | None, typer.Option("--metrics-textfile", help="File for the last metrics, in place of metrics.prom in --out.")
]
Pushgateway = Annotated[str | None, typer.Option("--pushgateway", metavar="URL", help="Pushgateway that is told the outcome.")]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Folder for the state of the run until it is done; default: OUT/state.", file_okay=False),
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew: what an earlier run left in the folders is deleted.")]
ResumeForce = Annotated[
    list[str] | None,
    typer.Option("--resume-force", metavar="KEY", help="Go on although this parameter, or section, differs. As often as needed."),
]
KeepState = Annotated[
    bool,
    typer.Option("--keep-state", help="Leave the last state behind: the same command then gives its results without training."),
]


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
    from cwbass.telemetry import observe_here
    from cwbass.training.resume import Resume

    loaded = load(WarmupParams, params, overrides, data)
    resume = Resume(restart, tuple(resume_force or ()), keep_state)
    step = partial(warmup, loaded, manifest=manifest, work_dir=work, resume=resume)
    observe = partial(
        observe_here, "warmup", port=metrics_port, linger=metrics_linger, textfile=metrics_textfile, pushgateway=pushgateway
    )
    _run(step, observe, loaded, nodes=1, data=data, out=out, report_file=report_file)


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
    from cwbass.telemetry import observe_here
    from cwbass.training.resume import Resume

    loaded = load(TrainParams, params, overrides, data)
    resume = Resume(restart, tuple(resume_force or ()), keep_state)
    step = partial(train, loaded, manifest=manifest, warmup=warmup, work_dir=work, resume=resume)
    observe = partial(
        observe_here, "train", port=metrics_port, linger=metrics_linger, textfile=metrics_textfile, pushgateway=pushgateway
    )
    _run(step, observe, loaded, nodes=loaded.train.nodes, data=data, out=out, report_file=report_file)


def launch(
    image: Annotated[str, typer.Option(envvar="CWBASS_IMAGE", help="Image of the job's pods.")],
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: DataRoot = None,
    manifest: Manifest = MANIFEST,
    warmup: WarmupFile = WARMUP,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, on the work volume.")] = TRAIN_DIR,
    namespace: Annotated[str | None, typer.Option(help="Namespace of the job; default: that of this pod, else cwbass.")] = None,
    runtime: Annotated[str, typer.Option(help="TrainingRuntime that the job names.")] = "cwbass-torch",
    work: Annotated[Path, typer.Option(help="Where the work volume is mounted.", file_okay=False)] = Path("/workspace"),
    cpu: Annotated[str, typer.Option(help="CPUs of each machine.")] = "4",
    memory: Annotated[str, typer.Option(help="Memory of each machine.")] = "16Gi",
    accelerator: Annotated[str, typer.Option(help="Resource that each process gets one of; empty trains on CPUs.")] = (
        "nvidia.com/gpu"
    ),
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds that the job may take; default: no limit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the TrainJob, and start none. A dataset at a URL is copied.")
    ] = False,
) -> None:
    """Train on train.nodes machines: start a Kubeflow TrainJob on a cluster, and follow it to its end."""
    from cwbass.steps.launch import Cluster, TrainTask, launch, planned_job
    from cwbass.steps.train import TrainParams
    from cwbass.train_jobs import own_namespace

    loaded = load(TrainParams, params, overrides, data)
    cluster = Cluster(image, namespace or own_namespace(), runtime, work, cpu, memory, accelerator or None, timeout=timeout)
    root = dataset_folder(data or loaded.data.root)
    task = TrainTask(params=loaded, manifest=manifest, warmup=warmup, data_root=root, out_dir=out)
    print_json(planned_job(task, cluster=cluster) if dry_run else launch(task, cluster=cluster).to_dict())


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

    loaded = load(TrainParams, params, overrides)
    print_json(measure(loaded, manifest=manifest, data_root=dataset_folder(data or loaded.data.root), timed=timed).to_dict())


def _run(
    step: Callable[..., TrainReport],
    observe: Callable[..., AbstractContextManager[Telemetry]],
    params: WarmupParams,
    *,
    nodes: int,
    data: str | None,
    out: Path,
    report_file: Path | None,
) -> None:
    """Take a step of training in as many processes as there shall be, tell metrics of it, and print its report."""
    from cwbass.telemetry import observe_failure
    from cwbass.training.distributed import joined

    with observe_failure(partial(observe, out_dir=out)):
        root = dataset_folder(data or params.data.root)  # before there are several processes, which would all copy it
    _spread(params.train.processes, nodes)
    with observe(out_dir=out) as telemetry, joined(params.train.device, os.environ) as world:
        report = step(data_root=root, out_dir=out, telemetry=telemetry, world=world)
    if world.main:
        print_json(report.to_dict(), report_file)


def _spread(processes: int, nodes: int) -> None:
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
