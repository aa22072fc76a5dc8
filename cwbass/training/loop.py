"""The training loop, for every method.

It fetches, asks the method for a loss, steps, and keeps sums on the device; it knows no
concrete method, no file and no metric. What happens between epochs is the caller's
``on_epoch``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cwbass.errors import CwbassError
from cwbass.methods.base import Method
from cwbass.optimizers import RateFactor
from cwbass.training.loss_scale import LossScale
from cwbass.training.optim import set_learning_rate_
from cwbass.training.seed import seed_everything
from cwbass.training.undo import BufferCopy
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch
from cwbass.world import ALONE, World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which steps of the whole run this stage takes."""

    start: int  # first step
    stop: int  # one past the last
    total: int  # of the run, warm-up included: what the learning rate falls over
    epoch_steps: int  # steps between two calls of on_epoch
    stage_start: int  # step at which the stage began; before ``start`` when a run is continued
    pass_steps: int = 1  # steps of a pass over the unlabelled images

    @property
    def epochs(self) -> int:
        """Epochs of the stage, the last of which may be shorter."""
        return math.ceil((self.stop - self.stage_start) / self.epoch_steps)

    def epoch_of(self, step: int) -> int:
        """Epoch of the stage that a step belongs to, from 0."""
        return (step - self.stage_start) // self.epoch_steps

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with this step."""
        return (step + 1 - self.stage_start) % self.epoch_steps == 0 or step + 1 == self.stop


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What an epoch of training looked like, on the CPU."""

    epoch: int
    step: int  # steps taken when it ended
    means: dict[str, list[float] | float]
    sums: dict[str, list[float] | float]
    learning_rate: float
    step_seconds: float
    seconds: float
    data_wait: float  # share of the time in which the loop waited for a batch
    nonfinite: int  # steps skipped
    images: int
    overflows: int = 0  # steps skipped in search of the loss scale


class Meter:
    """Sums of what the steps of an epoch report; stays on the device until it is read.

    A meter that is saved in the middle of an epoch and loaded again gives the record of the whole epoch.
    """

    def __init__(self) -> None:
        self.nonfinite_in_a_row = 0  # epochs do not matter to it
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.means: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.steps = self.batches = self.nonfinite = self.overflows = self.images = 0
        self.wait_seconds = 0.0
        self.started = time.perf_counter()

    def add(self, means: dict[str, Tensor], sums: dict[str, Tensor], images: int) -> None:
        """Take in what a batch reports.

        Args:
            means: Of :class:`cwbass.types.StepOutput`. [] each, but for a threshold of each class, [K].
            sums: Likewise. [], [N] or [K, N] each.
            images: In the batch, labelled and unlabelled, of this process.
        """
        for own, new in ((self.means, means), (self.sums, sums)):
            for name, value in new.items():
                own[name] = own[name] + value if name in own else _wide(value)
        self.batches += 1
        self.images += images

    def state(self) -> dict[str, Any]:
        """Everything of the epoch under way, on the CPU."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        tensors = {kind: {name: value.cpu() for name, value in getattr(self, kind).items()} for kind in ("means", "sums")}
        return {**counts, **tensors, "seconds": time.perf_counter() - self.started}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on with what :meth:`state` gave."""
        for name in _COUNTS:
            setattr(self, name, state.get(name, 0))
        self.means, self.sums = ({name: value.to(device) for name, value in state[kind].items()} for kind in ("means", "sums"))
        self.started = time.perf_counter() - state["seconds"]

    def record(self, epoch: int, step: int, learning_rate: float, world: World) -> EpochRecord:
        """The epoch, of all processes together; all must call it.

        Args:
            epoch: Of the stage, from 0.
            step: Optimiser steps taken when it ended.
            learning_rate: Of the last step, the highest of all groups.
            world: The processes that train together.
        """
        seconds = time.perf_counter() - self.started
        batches = max(1, self.batches) * world.size
        return EpochRecord(
            epoch=epoch,
            step=step,
            means={name: (world.total(value.double()) / batches).tolist() for name, value in self.means.items()},
            sums={name: world.total(value.double()).tolist() for name, value in self.sums.items()},
            learning_rate=learning_rate,
            step_seconds=seconds / max(1, self.steps + self.nonfinite + self.overflows),
            seconds=seconds,
            data_wait=self.wait_seconds / max(seconds, 1e-9),
            nonfinite=self.nonfinite,
            images=self.images * world.size,
            overflows=self.overflows,
        )


def _wide(value: Tensor) -> Tensor:
    """A copy in which hundreds of steps can be added up: half precision would stop counting."""
    return value.float() if value.element_size() < 4 and value.is_floating_point() else value.clone()


_COUNTS = ("steps", "batches", "nonfinite", "overflows", "images", "nonfinite_in_a_row", "wait_seconds")


def fit(
    method: Method,
    labeled: Iterable[LabeledBatch],
    unlabeled: Iterable[UnlabeledBatch] | None,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    rate_factor: RateFactor,
    seed: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    on_epoch: Callable[[EpochRecord], bool],
    on_step: Callable[[int], None] = lambda step: None,
    on_skip: Callable[[int], None] = lambda step: None,
    meter: Meter | None = None,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    max_nonfinite: int = 10,
    loss_scale: LossScale | None = None,
    world: World = ALONE,
) -> None:
    """Take the steps ``schedule.start`` to ``schedule.stop``.

    Args:
        method: Gives the loss of a batch.
        labeled: At least one batch for every step and accumulation, starting at the first.
        unlabeled: Likewise; None for a method that needs none.
        optimizer: From :func:`cwbass.training.optim.build_optimizer`.
        schedule: Which steps.
        rate_factor: The learning-rate schedule.
        seed: The run's seed.
        device: Where batches go.
        autocast_dtype: torch.bfloat16 or torch.float16, or None for float32.
        on_epoch: Called with each epoch's record; returns whether to go on.
        on_step: Called after each step, and after ``on_epoch`` where it ended one, with the number of steps taken.
            What it raises stops training between two steps.
        on_skip: Called with each step that was not finite.
        meter: Of the epoch that ``schedule.start`` continues; None begins one.
        accumulate: Batches whose mean gradient makes one step.
        max_grad_norm: Gradient norm is clipped to this; None does not clip.
        max_nonfinite: Stop with an error after this many non-finite steps in a row.
        loss_scale: For float16; changed as training goes on. A step whose gradient overflows while there is a lower scale
            to try is skipped, and is no non-finite step.
        world: The processes that train together; each gets its part of every batch.

    Raises:
        CwbassError: Too many steps in a row had a loss or gradient that is not finite.
    """
    labeled_batches = iter(labeled)
    unlabeled_batches = None if unlabeled is None else iter(unlabeled)
    trainable = method.trainable()
    parameters = [p for p in trainable.parameters() if p.requires_grad]
    trainable.train()
    meter = meter or Meter()
    loss_scale = loss_scale or LossScale.off()
    before = BufferCopy(method)

    def go_back(part: Tensor) -> None:
        """Whatever is done to a loss before its backward pass is done here, for all parts alike."""
        # Logits of minus infinity make an infinite loss whose gradient may be finite: times NaN it is not. Of others, times 1.
        whole = part.detach() - part.detach() + 1
        loss_scale.scale(part * whole / accumulate).backward()  # type: ignore[no-untyped-call]

    def settle(part: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):  # the method is inside one, and backward passes do not belong there
            go_back(part)
        return part.detach()

    for step in range(schedule.start, schedule.stop):
        generator = seed_everything(seed, step=step + 1, rank=world.rank)
        progress = Progress(
            step=step,
            total_steps=schedule.total,
            start_step=schedule.stage_start,
            epoch=schedule.epoch_of(step),
            generator=generator,
            pass_steps=schedule.pass_steps,
            world=world,
            settle=settle,
        )
        learning_rate = set_learning_rate_(optimizer, rate_factor(step, schedule.total))
        optimizer.zero_grad(set_to_none=True)
        before.keep()

        losses: list[Tensor] = []
        reports: list[tuple[dict[str, Tensor], dict[str, Tensor], int]] = []
        for _ in range(accumulate):
            waiting = time.perf_counter()
            batch_x = next(labeled_batches)
            batch_u = None if unlabeled_batches is None else next(unlabeled_batches)
            meter.wait_seconds += time.perf_counter() - waiting
            batch_x = batch_x.to(device)
            batch_u = None if batch_u is None else batch_u.to(device)
            with torch.autocast(device.type, autocast_dtype) if autocast_dtype else nullcontext():
                output = method(batch_x, batch_u, progress)
            go_back(output.loss)
            losses.append(output.loss.detach())
            images = batch_x.image.shape[0] + (0 if batch_u is None else batch_u.weak.shape[0])
            reports.append((dict(output.means), dict(output.sums), images))

        world.average_gradients_(parameters)
        loss_scale.unscale_(parameters)
        # A loss that is not finite leaves a norm that is not finite: one check, one wait for the device.
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        if torch.isfinite(norm):
            optimizer.step()
            loss_scale.step_taken()
            method.after_optimizer_step(progress)
            meter.nonfinite_in_a_row = 0
            meter.steps += 1
            reports[0][0]["grad_norm"] = norm.detach() * accumulate  # one a step, averaged over batches
            for report in reports:  # only of steps taken: one NaN would make the epoch's mean NaN
                meter.add(*report)
        else:
            before.restore_()
            if loss_scale.step_overflowed(world.total(torch.stack(losses))):
                meter.overflows += 1
                logger.info("step %d: its gradient overflows; skipped, the loss scale is %g now", step, loss_scale.value)
            else:
                meter.nonfinite_in_a_row += 1
                meter.nonfinite += 1
                logger.warning("step %d: loss or gradient is not finite; the step is skipped", step)
                on_skip(step)
            if meter.nonfinite_in_a_row >= max_nonfinite:
                raise CwbassError(
                    f"{meter.nonfinite_in_a_row} steps in a row (the last is {step}) had a loss or gradient that is not finite. "
                    "Lower train.optimizer.lr, set train.optimizer.max_grad_norm, or use train.precision: float32."
                )
        go_on = True
        if schedule.ends_epoch(step):
            go_on = on_epoch(meter.record(schedule.epoch_of(step), step + 1, learning_rate, world))
            trainable.train()
            meter.reset()
        on_step(step + 1)
        if not go_on:
            return
