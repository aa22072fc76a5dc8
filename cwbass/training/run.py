"""A run: what all its stages share, and the steps it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cwbass.config import AugmentConfig, EvalConfig, TrainConfig
from cwbass.data.base import Sample
from cwbass.data.cache import ImageSource, open_source
from cwbass.data.manifest import Manifest
from cwbass.errors import ParamsError, counted
from cwbass.evaluation.inference import Predictor
from cwbass.losses.supervised import HardPixels, balanced_class_weights
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.loop import Schedule
from cwbass.training.loss_scale import LossScale
from cwbass.training.resume import Keeper
from cwbass.world import ALONE, World

SNAPSHOT, SNAPSHOTS = "step-{:07d}.pt", "step-*.pt"


@dataclass(frozen=True, slots=True)
class Run:
    """What all stages of a run share."""

    manifest: Manifest
    data_root: Path
    seed: int
    augment: AugmentConfig
    train: TrainConfig
    eval: EvalConfig
    params_text: str  # resolved, for the checkpoint
    device: torch.device
    autocast_dtype: torch.dtype | None
    keeper: Keeper
    telemetry: Telemetry = SILENT
    world: World = ALONE
    loss_scale: LossScale | None = None  # of float16; goes on from stage to stage

    @property
    def predictor(self) -> Predictor:
        """How the run scores whole images."""
        return Predictor(self.eval, self.device, self.autocast_dtype)

    @property
    def labeled_pixels(self) -> list[int]:
        """Labelled pixels of each class, the selection slice's not among them. [C]."""
        return [sum(column) for column in zip(*(sample.pixels or () for sample in self.manifest.labeled), strict=True)]

    @property
    def labeled_share(self) -> list[float]:
        """Share of each class in the labelled pixels. [C]."""
        pixels = self.labeled_pixels
        return [count / max(1, sum(pixels)) for count in pixels]

    @property
    def class_weight(self) -> Tensor | None:
        """What a labelled pixel of each class counts, from the split's own labels; None counts all alike. [C] float."""
        if not self.train.class_balance:
            return None
        return balanced_class_weights(self.labeled_pixels, self.train.class_balance)

    @property
    def hard_pixels(self) -> HardPixels | None:
        """Which labelled pixels count; None counts all."""
        ohem = self.train.ohem
        return None if ohem.threshold == 1 else HardPixels(ohem.threshold, ohem.min_share)

    def open_images(self, samples: Sequence[Sample]) -> ImageSource:
        """Images of the dataset, from the cache, which one process of each machine makes. All processes must call it."""
        cache = None if self.train.cache is None else Path(self.train.cache)
        return self.world.once_per_machine(lambda: open_source(samples, self.data_root, self.manifest.spec, cache))


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The steps of a run, derived from its parameters and the number of images."""

    total: int  # optimiser steps, warm-up included
    epoch_steps: int  # between measurements
    pass_steps: int  # of one pass over the unlabelled images
    kept: int = 0  # snapshots, evenly spaced over all steps

    def schedule(self, start: int, stop: int) -> Schedule:
        """A stage of the run's one schedule, from ``start`` to ``stop``."""
        return Schedule(start, stop, self.total, self.epoch_steps, start, self.pass_steps)

    def snapshots(self, schedule: Schedule) -> dict[int, str]:
        """Steps of a stage after which its networks are kept, and the file for each."""
        steps = {self.total * (turn + 1) // self.kept for turn in range(self.kept)}
        return {step: SNAPSHOT.format(step) for step in sorted(steps) if schedule.stage_start < step <= schedule.stop}


def plan_steps(train: TrainConfig, manifest: Manifest) -> StepPlan:
    """How long the whole run is, and how often it is measured.

    A pass is over the unlabelled images, or over the labelled ones where there are none.

    Raises:
        ParamsError: ``train.epochs`` has no more steps than the warm-up alone.
    """
    images, batch = len(manifest.unlabeled), train.unlabeled_a_step
    if not images:
        images, batch = len(manifest.labeled), train.labeled_a_step
    pass_steps = math.ceil(images / batch)
    total = train.steps if train.steps is not None else (train.epochs or 1) * pass_steps
    if train.epochs is not None and train.warmup_steps >= total:  # of steps the parameters say it themselves
        raise ParamsError(
            f"train.warmup_steps is {train.warmup_steps}, but train.epochs counts the warm-up too and is {train.epochs}: "
            f"{counted(total, 'step')} of {counted(batch, 'image')}. Lower the one, or raise the other."
        )
    return StepPlan(total, train.epoch_steps or pass_steps, pass_steps, train.snapshots)
