"""What warm-up and semi-supervised training share: their parameters, the run and the report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cwbass import __version__
from cwbass.config import AugmentConfig, DataConfig, EvalConfig, ModelConfig, Section, SplitConfig, TrainConfig
from cwbass.data.manifest import Manifest
from cwbass.errors import ParamsError
from cwbass.methods.supervised import SupervisedConfig
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.models.weights import load_encoder_weights_
from cwbass.params import Params, dump_params, load_params
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.device import resolve_device, resolve_precision
from cwbass.training.distributed import check_same
from cwbass.training.seed import seed_everything
from cwbass.training.stage import Run
from cwbass.world import ALONE, World

logger = logging.getLogger(__name__)


class WarmupParams(Section):
    """What the warm-up depends on."""

    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    warmup: SupervisedConfig = SupervisedConfig()
    train: TrainConfig = TrainConfig(steps=1000)
    eval: EvalConfig = EvalConfig()


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training stage leaves behind."""

    stage: str
    steps: int
    split_hash: str
    checkpoints: Mapping[str, str]  # name -> path
    selection_miou: Mapping[str, float | None]  # stage -> of the checkpoint that counts, on the selection slice

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "stage": self.stage,
            "steps": self.steps,
            "split_hash": self.split_hash,
            "checkpoints": dict(self.checkpoints),
            "selection_miou": dict(self.selection_miou),
        }


def start_run(params: Section, manifest: Path, data_root: Path, telemetry: Telemetry = SILENT, world: World = ALONE) -> Run:
    """Read the split, find the device, and say what will be trained on what.

    Args:
        params: Sections of one step; those it lacks are at their defaults in the checkpoint.
        manifest: File of ``cwbass split``.
        data_root: Folder of the dataset.
        telemetry: Told what happens.
        world: The processes that train together.

    Raises:
        ParamsError: A batch cannot be divided among the processes, or these disagree on what is trained.
    """
    split = Manifest.read(manifest)
    full = load_params(params.model_dump(mode="json"), Params)
    train = full.train
    check_batches(train, world)
    check_same(world, "the version of cwbass", __version__)
    check_same(world, "the split", split.hash)
    check_same(world, "the digest of the parameters", hashlib.sha256(dump_params(full).encode()).hexdigest())
    device = resolve_device(train.device)
    dtype = resolve_precision(train.precision, device)
    batch = train.batch_labeled * train.accumulate
    reference = train.optimizer.reference_batch
    logger.info(
        "split %s: %s; %s in %s%s; batch %d labelled + %d unlabelled; lr %g%s",
        split.hash[:12],
        ", ".join(f"{count} {role}" for role, count in split.counts.items()),
        device,
        "bfloat16" if dtype else "float32",
        f", {world.size} processes" if world.size > 1 else "",
        batch,
        train.batch_unlabeled * train.accumulate,
        train.optimizer.lr * (batch / reference if reference else 1),
        f" (scaled by {batch}/{reference})" if reference else "",
    )
    for note in split.notes:
        logger.warning("%s", note)
    seed_everything(full.seed)
    params_text = dump_params(full)
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
    )


def check_batches(train: TrainConfig, world: World) -> None:
    """Raise a ParamsError unless the batches can be divided evenly among the processes."""
    for name in ("batch_labeled", "batch_unlabeled"):
        count = getattr(train, name)
        if count % world.size:
            raise ParamsError(
                f"train.{name} is {count}, the images of a step over all processes, and cannot be divided evenly among "
                f"{world.size} processes. Use a multiple of {world.size}, or another number of processes."
            )


def network_factory(config: ModelConfig, num_classes: int, cache: Path, world: World = ALONE) -> Callable[[], SegmentationNet]:
    """Builds the network of ``config`` with its starting weights, which one process of each machine fetches."""

    def build() -> SegmentationNet:
        net = build_model(config, num_classes)
        if (weights := config.weights) is not None:
            world.once_per_machine(lambda: load_encoder_weights_(net, weights, encoder=config.encoder, cache_dir=cache))
        return net

    return build
