"""Step ``warmup``: supervised training, from which the semi-supervised branch and the baseline start.

One schedule covers the whole run. Its first ``train.warmup_steps`` steps end in ``warmup.pt``;
with ``train.baseline`` the same network goes on, supervised, for all the rest, so that the
baseline has had as many optimiser steps as the method it is compared with.
"""

from __future__ import annotations

from pathlib import Path

from cwbass.evaluation.sweep import SWEEP
from cwbass.steps.thresholds import write_sweep
from cwbass.steps.training import (
    TrainReport,
    WarmupParams,
    check_network,
    finish_run,
    finished_report,
    network_factory,
    new_method,
    start_run,
    weights_inputs,
)
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import load_checkpoint, save_checkpoint
from cwbass.training.device import place
from cwbass.training.history import HISTORY, write_rows
from cwbass.training.optim import build_optimizer
from cwbass.training.resume import Resume
from cwbass.training.run import SNAPSHOTS, plan_steps
from cwbass.training.stage import Stage
from cwbass.world import ALONE, World

WARMUP, BASELINE_LAST, BASELINE_BEST = "warmup.pt", "baseline_last.pt", "baseline_best.pt"


def warmup(
    params: WarmupParams,
    *,
    manifest: Path,
    data_root: Path,
    out_dir: Path,
    work_dir: Path | None = None,
    resume: Resume = Resume(),  # noqa: B008 - frozen
    telemetry: Telemetry = SILENT,
    world: World = ALONE,
) -> TrainReport:
    """Train supervised; writes ``warmup.pt``, ``baseline_last.pt``, ``baseline_best.pt``, ``sweep.json`` and ``history.jsonl``.

    A run that was stopped goes on where it was; one that is done is only reported.

    Args:
        params: Sections the step depends on.
        manifest: File of ``cwbass split``.
        data_root: Folder of the dataset.
        out_dir: Where files are written, by the main process.
        work_dir: Where the state of the run is kept until it is done; None is a folder in ``out_dir``.
        resume: What to do with an earlier run's files.
        telemetry: Told what happens.
        world: The processes that train together.

    Raises:
        ParamsError: A parameter, the weights or the device is wrong, or the folders hold another run.
        DataError: The manifest or a file of the dataset is.
        ServiceError: There is no room on the disk, or a loader process died.
        Interrupted: SIGTERM, SIGINT or SIGHUP came, and the state is saved.
    """
    run = start_run(
        "warmup",
        params,
        manifest=manifest,
        data_root=data_root,
        out_dir=out_dir,
        work_dir=work_dir,
        resume=resume,
        results=(WARMUP, BASELINE_LAST, BASELINE_BEST, SWEEP, SNAPSHOTS),
        inputs=weights_inputs({"model": params.model.weights}),
        telemetry=telemetry,
        world=world,
    )
    if (done := finished_report(run, out_dir)) is not None:
        return done
    plan = plan_steps(run.train, run.manifest)
    class_names = run.manifest.spec.class_names
    build = network_factory(params.model, class_names, out_dir / "weights", world)
    method = new_method(run, params.warmup, build)
    check_network(method.student, params, class_names, unlabeled=False)
    place(method, run.device)
    optimizer = build_optimizer(method.trainable(), params.train.optimizer, batch_size=params.train.labeled_a_step)

    out_dir.mkdir(parents=True, exist_ok=True)
    steps = params.train.warmup_steps
    first = Stage(run, "warmup", method, params.warmup.name, optimizer, out_dir=out_dir)
    run.keeper.begin()
    if steps:
        schedule = plan.schedule(0, steps)
        first.train(schedule, checkpoint=WARMUP, best=None, snapshots=plan.snapshots(schedule))
        write_sweep(run, out_dir / WARMUP)
    elif world.main:
        write_rows(out_dir / HISTORY, [])
        save_checkpoint(first.checkpoint(0, 0), out_dir / WARMUP)
    written = {"warmup": str(out_dir / WARMUP)}
    reached = {"warmup": first.best.get("miou")}
    if params.train.baseline:
        second = Stage(run, "baseline", method, params.warmup.name, optimizer, out_dir=out_dir, history=first.history)
        start = load_checkpoint(out_dir / WARMUP).step if steps else 0  # fewer than steps where train.early_stop ended it
        schedule = plan.schedule(start, plan.total)
        second.train(schedule, checkpoint=BASELINE_LAST, best=BASELINE_BEST, snapshots=plan.snapshots(schedule))
        written["baseline_last"] = str(out_dir / BASELINE_LAST)
        if second.best:
            written["baseline_best"] = str(out_dir / BASELINE_BEST)
        reached["baseline"] = second.best.get("miou")
    taken = max((row["step"] for row in first.history.epochs), default=0)
    return finish_run(run, TrainReport("warmup", taken, run.manifest.hash, written, reached))
