"""What warm-up and semi-supervised training share: their parameters, the run and the report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cwbass import __version__
from cwbass.config import ModelConfig, Section, TrainConfig
from cwbass.data.manifest import Manifest
from cwbass.data.sizes import median_size, small_crop
from cwbass.errors import CheckpointError, DataError, ParamsError, WeightsError
from cwbass.files import file_sha256
from cwbass.losses import labeled_loss
from cwbass.methods import build_method
from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.models.trainable import check_trainable
from cwbass.models.weights import load_encoder_weights_
from cwbass.params import Params, TrainingSections, dump_params, load_params
from cwbass.plugins import load_plugins
from cwbass.steps.split import warn_of_changes
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.device import resolve_device, resolve_precision, set_kernels
from cwbass.training.distributed import check_same
from cwbass.training.enough import too_few_classes
from cwbass.training.identity import run_identity
from cwbass.training.loss_scale import LossScale
from cwbass.training.mirror import open_mirror
from cwbass.training.optim import scaled_rate
from cwbass.training.resume import RUN, Keeper, Resume
from cwbass.training.run import Run
from cwbass.training.seed import seed_everything
from cwbass.world import ALONE, World

logger = logging.getLogger(__name__)


class WarmupParams(TrainingSections):
    """What the warm-up depends on."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training stage leaves behind."""

    stage: str
    steps: int
    split_hash: str
    checkpoints: Mapping[str, str]  # name -> path
    selection_miou: Mapping[str, float | None]  # stage -> of the checkpoint that counts, on the selection slice
    incidents: int = 0  # times that the collapse guard acted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def start_run(
    step: str,
    params: Section,
    *,
    manifest: Path,
    data_root: Path,
    out_dir: Path,
    work_dir: Path | None,
    resume: Resume,
    results: Sequence[str] = (),
    inputs: Mapping[str, str] = MappingProxyType({}),
    telemetry: Telemetry = SILENT,
    world: World = ALONE,
) -> Run:
    """Read the split, find the device, say what will be trained on what, and look for a run to go on with.

    Args:
        step: ``warmup`` or ``train``.
        params: Sections of one step; those it lacks are at their defaults in the checkpoint.
        manifest: File of ``cwbass split``.
        data_root: Folder of the dataset.
        out_dir: Where results go.
        work_dir: Where states go; None is a folder in ``out_dir``.
        resume: What the caller wants of an earlier run's files.
        results: Names, or patterns of them, of what a run leaves in ``out_dir``.
        inputs: Name and SHA-256 of what else the step starts from.
        telemetry: Told what happens.
        world: The processes that train together.

    Raises:
        ParamsError: The device is not there, the folders hold another run, a batch cannot be divided among the processes, or
            these disagree on what is trained.
        DataError: The manifest is wrong, or its labelled images show fewer than two classes.
    """
    split = Manifest.read(manifest)
    full = load_params(params.model_dump(mode="json"), Params)
    params_text = dump_params(full)
    if world.main:
        warn_of_changes(manifest, full)
    train = full.train
    check_batches(train, world.size)
    check_same(world, "the version of cwbass", __version__)
    check_same(world, "the source of the plugins", " ".join(f"{plugin.sha256[:12]} {plugin.name}" for plugin in load_plugins()))
    check_same(world, "the split", split.hash)
    check_same(world, "the digest of the parameters", hashlib.sha256(params_text.encode()).hexdigest())
    device = resolve_device(train.device)
    dtype = resolve_precision(train.precision, device)
    _log_setting(split, train, device, dtype, world.size)
    _check_labels(split, train.batch_labeled)
    if world.main and (message := small_crop(median_size(split.labeled, data_root), full.augment)):
        logger.warning("%s", message)
    identity = run_identity(step, params, split.hash, **inputs)
    mirror = None if train.checkpoint_uri is None else open_mirror(train.checkpoint_uri, step, identity)
    keeper = Keeper(
        out_dir,
        work_dir,
        identity,
        save_minutes=train.save_minutes,
        resume=resume,
        results=results,
        mirror=mirror,
        telemetry=telemetry,
        world=world,
    )
    seed_everything(full.seed)
    set_kernels(device, deterministic=train.deterministic)
    telemetry.describe_run(data_version=split.hash, params=params_text, model=full.model.label)
    return Run(
        manifest=split,
        data_root=data_root,
        seed=full.seed,
        augment=full.augment,
        train=train,
        eval=full.eval,
        params_text=params_text,
        device=device,
        autocast_dtype=dtype,
        telemetry=telemetry,
        world=world,
        keeper=keeper,
        # Also where float32 stands in for float16: it changes no bit there.
        loss_scale=LossScale() if train.precision == "float16" else None,
    )


def own_networks(method: MethodConfig) -> dict[str, dict[str, Any]]:
    """Keys of ``model`` that each network of a method's own has otherwise, by dotted key of its section."""
    sections = {f"method.{name}": section for name, section in method if isinstance(section, Section)}
    return {
        name: each.model_dump() for name, each in sections.items() if {"encoder", "weights"} <= type(each).model_fields.keys()
    }


def weights_inputs(weights: Mapping[str, str | None]) -> dict[str, str]:
    """SHA-256 of those ``weights`` that are local files, by section: a run from other weights is another run."""
    files = {name: Path(file) for name, file in weights.items() if file is not None and Path(file).is_file()}
    return {f"{name}.weights_sha256": file_sha256(path) for name, path in files.items()}


def finished_report(run: Run, out_dir: Path) -> TrainReport | None:
    """The report of a run that is done already; None where there is something left to do.

    Raises:
        CheckpointError: The run is done, and its report is not one of this version.
    """
    if run.keeper.report is None:
        return None
    try:
        report = TrainReport(**run.keeper.report)
    except TypeError as error:
        raise CheckpointError(
            f"{out_dir / RUN} is damaged, or another version wrote it ({error}). Use that version, or begin anew with --restart."
        ) from error
    logger.info("%s holds this very run, finished: nothing to do (--restart trains again)", out_dir)
    return replace(report, checkpoints={name: str(out_dir / file) for name, file in report.checkpoints.items()})


def finish_run(run: Run, report: TrainReport) -> TrainReport:
    """Mark the run as done, for :func:`finished_report`."""
    names = {name: Path(path).name for name, path in report.checkpoints.items()}
    run.keeper.finish({**report.to_dict(), "checkpoints": names})
    return report


def _log_setting(split: Manifest, train: TrainConfig, device: torch.device, dtype: torch.dtype | None, processes: int) -> None:
    """Say what will be trained, on which split and device, in which batches."""
    batch, reference = train.labeled_a_step, train.optimizer.reference_batch
    logger.info(
        "split %s: %s; %s in %s%s; batch %d labelled + %d unlabelled; lr %g%s",
        split.hash[:12],
        ", ".join(f"{count} {role}" for role, count in split.counts.items()),
        device,
        str(dtype or "float32").removeprefix("torch."),
        f", {processes} processes" if processes > 1 else "",
        batch,
        train.unlabeled_a_step,
        scaled_rate(train.optimizer, batch),
        f" (scaled by {batch}/{reference})" if reference else "",
    )
    for note in split.notes:
        logger.warning("%s", note)


def _check_labels(split: Manifest, batch: int) -> None:
    """Refuse labels that nothing can be learned from; say what is unusual.

    Raises:
        DataError: The labelled images show fewer than two classes.
    """
    if (message := too_few_classes(split)) is not None:
        raise DataError(message)
    if len(split.labeled) < batch:
        logger.info(
            "%d labelled images are fewer than train.batch_labeled (%d): a batch holds some of them more than once, in other views",
            len(split.labeled),
            batch,
        )


def check_batches(train: TrainConfig, processes: int) -> None:
    """Raise a ParamsError unless the batches can be divided evenly among the processes."""
    for name in ("batch_labeled", "batch_unlabeled"):
        count = getattr(train, name)
        if count % processes:
            raise ParamsError(
                f"train.{name} is {count}, the images of a step over all processes, and cannot be divided evenly among "
                f"{processes} processes. Use a multiple of {processes}, or another number of processes."
            )


def check_network(net: SegmentationNet, params: TrainingSections, class_names: Sequence[str], *, unlabeled: bool) -> None:
    """Raise a ParamsError unless the network can be trained on the crops it will get.

    Args:
        net: As built.
        params: Model, crop size and batches.
        class_names: Of the dataset. [C].
        unlabeled: Whether it is trained on unlabelled batches too.
    """
    train = params.train
    batch = min(train.batch_labeled, train.batch_unlabeled) if unlabeled else train.batch_labeled
    check_trainable(net, params.model, class_names, crop_size=params.augment.crop_size, batch=batch)


def new_method(run: Run, config: MethodConfig, build: BuildModel, *, offline: bool = False) -> Method:
    """The method of a section, for the classes of a run and what their labelled pixels count.

    Args:
        run: Has the split.
        config: The method's section.
        build: Builds its networks.
        offline: Whether it learns from labels made before.
    """
    spec = run.manifest.spec
    return build_method(
        config,
        build,
        num_classes=spec.num_classes,
        class_names=spec.class_names,
        ignore_index=spec.ignore_index,
        class_weight=run.class_weight,
        hard=run.hard_pixels,
        labeled_loss=labeled_loss(run.train.loss),
        num_labeled=len(run.manifest.labeled),
        num_unlabeled=len(run.manifest.unlabeled),
        offline=offline,
    )


def network_factory(config: ModelConfig, class_names: Sequence[str], cache: Path, world: World = ALONE) -> BuildModel:
    """What builds the network of ``config`` with its starting weights, which one process of each machine fetches.

    Args:
        config: Architecture, encoder and weights; a call may change its keys.
        class_names: Of the dataset. [C].
        cache: Folder for weights from S3.
        world: All processes; all must call what this gives.

    Raises:
        ParamsError: When called: the network cannot be built.
        WeightsError: When called: the weights cannot be had, or do not fit; the message names the key.
    """

    def build(*, key: str = "model", **other: Any) -> SegmentationNet:
        own = config.model_copy(update=other)
        net = build_model(own, class_names)
        net.read_files_()
        if (weights := own.weights) is not None:
            try:
                world.once_per_machine(lambda: load_encoder_weights_(net, weights, encoder=own.encoder, cache_dir=cache))
            except WeightsError as error:
                raise WeightsError(f"{key}.weights: {error}") from error
        return net

    return build
