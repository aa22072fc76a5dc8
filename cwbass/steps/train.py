"""Step ``train``: semi-supervised training with a teacher, from the warm-up's checkpoint on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cwbass.errors import CheckpointError, ParamsError
from cwbass.methods import build_method
from cwbass.methods.cw_bass import CwBassConfig
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.params import AnyMethodConfig
from cwbass.steps.second_stage import FIRST_BEST, FIRST_LAST, SecondStage
from cwbass.steps.training import TrainReport, WarmupParams, start_run
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint, file_sha256, load_checkpoint
from cwbass.training.device import place
from cwbass.training.distributed import check_same
from cwbass.training.optim import build_optimizer
from cwbass.training.stage import Run, Stage, plan_steps
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
    telemetry: Telemetry = SILENT,
    world: World = ALONE,
) -> TrainReport:
    """Train ``params.method``; writes ``last.pt``, ``best.pt`` (with a selection slice) and ``history.jsonl``.

    With a second stage these are its last training's; those of the stages before lie beside them.

    Args:
        params: Sections the step depends on.
        manifest: File of ``cwbass split``.
        warmup: ``warmup.pt`` of ``cwbass warmup``.
        data_root: Folder of the dataset.
        out_dir: Where files are written, by the main process; all processes read it.
        telemetry: Told what happens.
        world: The processes that train together.

    Raises:
        ParamsError: A parameter or the device is wrong.
        CheckpointError: The warm-up is of another split or another model.
        DataError: The manifest or a file of the dataset is wrong.
    """
    run = start_run(params, manifest, data_root, telemetry, world)
    plan = plan_steps(run.train, run.manifest)
    start = load_checkpoint(warmup)
    _check_warmup(start, params, run.manifest.hash, plan.total, warmup)
    check_same(world, f"the SHA-256 of {warmup.name}", file_sha256(warmup))
    spec = run.manifest.spec

    def build() -> SegmentationNet:
        return build_model(params.model, spec.num_classes)

    method = build_method(
        params.method, build, num_classes=spec.num_classes, ignore_index=spec.ignore_index, class_weight=run.class_weight
    )
    method.start_from({name: start.network(name) for name in start.networks})
    place(method, run.device)
    optimizer = build_optimizer(
        method.student, params.train.optimizer, batch_size=params.train.batch_labeled * params.train.accumulate
    )
    if start.step:
        optimizer.load_state_dict(dict(start.optimizer))

    out_dir.mkdir(parents=True, exist_ok=True)
    stage = Stage(run, "train", method, params.method.name, optimizer, out_dir=out_dir, history=[], timings=[])
    schedule = plan.schedule(start.step, plan.total)
    if not (isinstance(params.method, CwBassConfig) and params.method.terms.second_stage.enabled):
        stage.train(schedule, checkpoint=LAST, best=BEST)
        return _report(run, [stage], plan.total, out_dir)
    second = SecondStage(run, params.model, params.method, schedule, steps=plan.total, out_dir=out_dir)
    stage.train(schedule, checkpoint=FIRST_LAST, best=FIRST_BEST, snapshots=second.snapshots)
    stages = [stage, *second.retrain(stage, last=LAST, best=BEST)]
    return _report(run, stages, plan.total + 2 * second.steps, out_dir)


def _report(run: Run, stages: Sequence[Stage], steps: int, out_dir: Path) -> TrainReport:
    """Names the files of the last stage, which are the run's."""
    written = {"last": str(out_dir / LAST)}
    if stages[-1].best:
        written["best"] = str(out_dir / BEST)
    reached = {stage.name: stage.best.get("miou") for stage in stages}
    return TrainReport("train", steps, run.manifest.hash, written, reached)


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
    if start.step >= total:
        raise ParamsError(
            f"train.steps is {total}, but {path} has already taken {start.step}; raise it or lower train.warmup_steps."
        )
