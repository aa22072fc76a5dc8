"""Step ``train``: semi-supervised training with a teacher, from the warm-up's checkpoint on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwbass.errors import CheckpointError, ParamsError
from cwbass.files import file_sha256
from cwbass.methods import check_scored
from cwbass.methods.cw_bass import CwBassConfig
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.params import AnyMethodConfig, TrainingSections, flatten
from cwbass.steps.second_stage import FIRST_BEST, FIRST_LAST, SECOND_STAGE_FILES, SecondStage
from cwbass.steps.training import (
    TrainReport,
    WarmupParams,
    check_network,
    finish_run,
    finished_report,
    network_factory,
    new_method,
    own_networks,
    start_run,
    weights_inputs,
)
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint, load_checkpoint
from cwbass.training.device import place
from cwbass.training.distributed import check_same
from cwbass.training.flight import PROBES
from cwbass.training.identity import differences
from cwbass.training.optim import build_optimizer, load_moments_
from cwbass.training.resume import Resume
from cwbass.training.run import SNAPSHOTS, Run, plan_steps
from cwbass.training.stage import Stage
from cwbass.world import ALONE, World

logger = logging.getLogger(__name__)

LAST, BEST = "last.pt", "best.pt"


class TrainParams(WarmupParams):
    """What semi-supervised training depends on: the warm-up's sections, and the method."""

    method: AnyMethodConfig = CwBassConfig()


def train(
    params: TrainParams,
    *,
    manifest: Path,
    warmup: Path,
    data_root: Path,
    out_dir: Path,
    work_dir: Path | None = None,
    resume: Resume = Resume(),  # noqa: B008 - frozen
    telemetry: Telemetry = SILENT,
    world: World = ALONE,
) -> TrainReport:
    """Train ``params.method``; writes ``last.pt``, ``best.pt`` (with a selection slice) and ``history.jsonl``.

    With a second stage these are its last training's; those of the stages before lie beside them. A run that was
    stopped goes on where it was; one that is done is only reported.

    Args:
        params: Sections the step depends on.
        manifest: File of ``cwbass split``.
        warmup: ``warmup.pt`` of ``cwbass warmup``.
        data_root: Folder of the dataset.
        out_dir: Where files are written, by the main process; all processes read it.
        work_dir: Where the state of the run is kept until it is done; None is a folder in ``out_dir``.
        resume: What to do with an earlier run's files.
        telemetry: Told what happens.
        world: The processes that train together.

    Raises:
        ParamsError: A parameter or the device is wrong, the folders hold another run, or the warm-up was trained with
            another optimiser, class balance, choice of hard pixels, labelled loss or augmentation.
        CheckpointError: The warm-up is not done, or of another split or another model.
        DataError: The manifest or a file of the dataset is wrong.
        ServiceError: There is no room on the disk, or a loader process died.
        Interrupted: SIGTERM, SIGINT or SIGHUP came, and the state is saved.
    """
    check_scored(params.eval.weights, params.method.name)
    start, start_sha256 = load_checkpoint(warmup), file_sha256(warmup)
    check_same(world, f"the SHA-256 of {warmup.name}", start_sha256)
    weights = {name: keys["weights"] for name, keys in own_networks(params.method).items()}
    if params.method.retraining is not None:  # which begins where the warm-up began
        weights["model"] = params.model.weights
    run = start_run(
        "train",
        params,
        manifest=manifest,
        data_root=data_root,
        out_dir=out_dir,
        work_dir=work_dir,
        resume=resume,
        results=(LAST, BEST, PROBES, SNAPSHOTS, *SECOND_STAGE_FILES),
        inputs={"warmup_sha256": start_sha256, **weights_inputs(weights)},
        telemetry=telemetry,
        world=world,
    )
    if (done := finished_report(run, out_dir)) is not None:
        return done
    plan = plan_steps(run.train, run.manifest)
    _check_warmup(start, params, run.manifest.hash, plan.total, warmup)
    if run.keeper.state is None:  # what goes on from a state is compared with that one
        _check_same_recipe(start, params, warmup, resume.force)
    class_names = run.manifest.spec.class_names

    def build(*, key: str = "model", **other: Any) -> SegmentationNet:
        if not other:  # it gets the warm-up's weights
            return build_model(params.model, class_names)
        return network_factory(params.model, class_names, out_dir / "weights", world)(key=key, **other)

    method = new_method(run, params.method, build)
    method.start_from({name: start.network(name) for name in start.networks})
    check_network(method.student, params, class_names, unlabeled=method.needs_unlabeled)
    place(method, run.device)
    optimizer = build_optimizer(method.trainable(), params.train.optimizer, batch_size=params.train.labeled_a_step)
    if start.step:
        load_moments_(optimizer, start.optimizer)
    if run.loss_scale is not None and start.loss_scale:
        run.loss_scale.load(start.loss_scale)

    out_dir.mkdir(parents=True, exist_ok=True)
    stage = Stage(run, "train", method, params.method.name, optimizer, out_dir=out_dir)
    schedule = plan.schedule(start.step, plan.total)
    retraining = params.method.retraining
    second = (
        None
        if retraining is None
        else SecondStage(run, params.model, params.method, retraining, schedule, steps=plan.total, out_dir=out_dir)
    )
    run.keeper.begin()
    if second is None:
        stage.train(schedule, checkpoint=LAST, best=BEST, snapshots=plan.snapshots(schedule))
        return finish_run(run, _report(run, [stage], out_dir))
    stage.train(schedule, checkpoint=FIRST_LAST, best=FIRST_BEST, snapshots=second.snapshots)
    stages = [stage, *second.retrain(stage, last=LAST, best=BEST)]
    return finish_run(run, _report(run, stages, out_dir))


def _report(run: Run, stages: Sequence[Stage], out_dir: Path) -> TrainReport:
    """Names the files of the last stage, which are the run's; counts the steps of all."""
    written = {"last": str(out_dir / LAST)}
    if stages[-1].best:
        written["best"] = str(out_dir / BEST)
    reached = {stage.name: stage.best.get("miou") for stage in stages}
    history = stages[-1].history.epochs
    steps = sum({row["stage"]: row["step"] for row in history}.values())  # of each stage its last: early stop may have ended it
    incidents = sum("incident" in row for row in history)
    return TrainReport("train", steps, run.manifest.hash, written, reached, incidents)


def _check_warmup(start: Checkpoint, params: TrainParams, split_hash: str, total: int, path: Path) -> None:
    if start.split_hash != split_hash:
        raise CheckpointError(
            f"{path} was trained on split {start.split_hash[:12]}, the manifest is {split_hash[:12]}. Run `cwbass warmup` again."
        )
    theirs = start.run_params
    for key in ("arch", "encoder", "options", "mean", "std"):
        if getattr(theirs.model, key) != getattr(params.model, key):
            raise CheckpointError(
                f"{path} holds model.{key} {getattr(theirs.model, key)!r}, params have {getattr(params.model, key)!r}. "
                "Run `cwbass warmup` again."
            )
    planned = theirs.train.warmup_steps
    if start.stage == "warmup" and start.step < planned and theirs.train.early_stop is None:
        raise CheckpointError(
            f"{path} is of a warm-up that was stopped after {start.step} of its {planned} steps. Run `cwbass warmup` again: it goes on."
        )
    if start.step >= total:
        raise ParamsError(
            f"train.steps is {total}, but {path} has already taken {start.step}; raise it or lower train.warmup_steps."
        )


def _check_same_recipe(start: Checkpoint, params: TrainParams, path: Path, force: Sequence[str]) -> None:
    """Refuse a warm-up of another optimiser, balance, loss or augmentation: the baseline would no longer be comparable."""
    if start.step and (lines := differences(_recipe(start.run_params), _recipe(params), force)):
        raise ParamsError(
            "\n".join([f"{path} was trained otherwise than this run trains:", *lines])
            + "\nRun `cwbass warmup` again, which trains the baseline with them too; or take the warm-up's values; "
            "or go on all the same with --resume-force KEY."
        )
    if lines := differences(_length(start.run_params), _length(params)):
        logger.warning("%s and the baseline beside it have another length or batch than this run:\n%s", path, "\n".join(lines))


def _length(params: TrainingSections) -> dict[str, Any]:
    """What makes runs longer or shorter, in steps and in images. Dotted keys."""
    keys = {"steps", "epochs", "batch_labeled", "accumulate"}
    return flatten(params.model_dump(mode="json", include={"train": keys}))


def _recipe(params: TrainingSections) -> dict[str, Any]:
    """What the one schedule over warm-up and training, and a fair baseline, ask to be the same in both. Dotted keys."""
    return flatten(
        params.model_dump(mode="json", include={"augment": True, "train": {"optimizer", "class_balance", "ohem", "loss"}})
    )
