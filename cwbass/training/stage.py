"""One stage of training: data in, the loop, what is measured between epochs, checkpoints out."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cwbass.data.offline import OfflineStream
from cwbass.data.streams import loader_failures
from cwbass.errors import DataError, ParamsError, counted, one_line
from cwbass.evaluation.selection import LatestWithinOneError
from cwbass.files import file_sha256, place_link, write_digest
from cwbass.methods.base import Method
from cwbass.models.norm import synchronize_norms_
from cwbass.optimizers import rate_factor
from cwbass.training.batches import images_of, open_loaders
from cwbass.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cwbass.training.collapse import CollapseGuard, Incident
from cwbass.training.device import compile_networks_, gpu_memory
from cwbass.training.enough import no_unlabeled
from cwbass.training.flight import unlabeled_row
from cwbass.training.history import History, timing_row
from cwbass.training.loop import EpochRecord, Meter, Schedule, fit
from cwbass.training.optim import load_moments_
from cwbass.training.progress import ProgressLine
from cwbass.training.resume import State
from cwbass.training.run import Run
from cwbass.training.validation import Validation

logger = logging.getLogger(__name__)

HEALTHY = "healthy.pt"  # what the collapse guard goes back to; gone when the stage is done


class Stage:
    """A stage while it runs: its history and its best model so far.

    Args:
        run: What all stages share.
        name: ``warmup``, ``baseline``, ``train``, or a retraining of the second stage.
        method: What is trained, on the run's device.
        method_name: Its name in METHODS.
        optimizer: Of what the method trains.
        out_dir: Where checkpoints and history go.
        history: Of the stages before; this stage's rows are appended. None begins one.
        offline: Unlabelled crops with labels made before; None takes the run's unlabelled images.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        method: Method,
        method_name: str,
        optimizer: torch.optim.Optimizer,
        *,
        out_dir: Path,
        history: History | None = None,
        offline: OfflineStream | None = None,
    ) -> None:
        self.run, self.name, self.method, self.method_name = run, name, method, method_name
        self.optimizer, self.out_dir, self.offline = optimizer, out_dir, offline
        self.history = History() if history is None else history
        synchronize_norms_(method, run.world)
        self.compiled = run.train.compile and compile_networks_(method)
        self.best: dict[str, Any] = {}  # of the checkpoint that counts: miou on the slice, step
        self.selection = LatestWithinOneError()
        self.meter = Meter()
        self.stopped = False  # by early stop
        self.guard = self._new_guard()

    def train(self, schedule: Schedule, *, checkpoint: str, best: str | None, snapshots: Mapping[int, str] | None = None) -> None:
        """Take the steps of ``schedule``; those that an earlier process has taken are not taken again.

        Args:
            schedule: Which steps.
            checkpoint: File in ``out_dir`` for the newest state, written after every epoch.
            best: File for the state that counts by the selection slice: the latest within one standard error of
                the best; None keeps none.
            snapshots: Steps after which the networks are kept, and the file for each.

        Raises:
            DataError: The method learns from unlabelled images, and there are none; or a file of the dataset is wrong.
            ParamsError: A saved state does not fit, or the GPU's memory does not suffice.
            ServiceError: There is no room on the disk, or a loader process died.
            Interrupted: A signal came; the state is saved.
            CwbassError: Too many steps in a row were not finite, or another process is gone.
        """
        run, telemetry = self.run, self.run.telemetry
        if self.method.needs_unlabeled and (message := no_unlabeled(run.manifest, self.method_name)):
            raise DataError(message)
        world, keeper = run.world, run.keeper
        if self.name in keeper.finished:
            self.best = dict(keeper.finished[self.name])
            return
        if run.train.early_stop is not None and not run.manifest.selection and world.main:
            logger.warning("%s: no selection slice says when train.early_stop should stop it; all steps are taken", self.name)
        validation = Validation(
            run, self.method, schedule, self.out_dir, offline=self.offline is not None, compiled=self.compiled
        )
        schedule = self._begin(schedule, checkpoint, validation)
        labeled, unlabeled = open_loaders(run, self.method, schedule, self.offline)
        line = ProgressLine(self.name, schedule) if world.main else None
        self._start_telemetry(schedule)
        ended: dict[int, Checkpoint] = {}  # step -> of the epoch that ended with it

        def reached(taken: int) -> Checkpoint:
            return ended.get(taken) or self.checkpoint(taken, schedule.epoch_of(taken))

        def on_epoch(record: EpochRecord) -> bool:
            telemetry.step_done()  # before what is measured now: that is no part of the step
            row, timing = self._row(record, validation), timing_row(self.name, record)
            ended.clear()
            ended[record.step] = self._end_epoch(record, row, timing, checkpoint, best)
            if line is not None:
                line.epoch({**row, **timing})
            telemetry.epoch_done(record, row, self._learning_rates(record.learning_rate))
            patience = run.train.early_stop
            if patience is not None and self.selection.epochs_without_gain >= patience:
                logger.info("%s: no better mIoU on the selection slice for %s; stopped", self.name, counted(patience, "epoch"))
                self.stopped = True
            return not self.stopped

        def on_step(taken: int) -> None:
            if taken not in ended:
                telemetry.step_done()
            if line is not None:
                line.step(taken)
            if snapshots and taken in snapshots:
                snapshot = replace(reached(taken), optimizer={})
                keeper.keep(self.out_dir / snapshots[taken], self._save(snapshot, snapshots[taken]))
            keeper.after_step(lambda: self._state(reached(taken)), epoch_ended=taken in ended)

        def on_skip(step: int) -> None:
            telemetry.step_skipped(step)
            images = images_of(run, self.method, step, self.offline)
            logger.warning("the images of step %d: %s", step, json.dumps(images))
            self.history.skipped.append({"stage": self.name, "step": step, **images})
            self._write_history()

        with keeper.listening(), loader_failures(), gpu_memory():
            fit(
                self.method,
                telemetry.watch(labeled, "labeled", run.train.batch_labeled),
                None if unlabeled is None else telemetry.watch(unlabeled, "unlabeled", run.train.batch_unlabeled),
                optimizer=self.optimizer,
                schedule=schedule,
                rate_factor=rate_factor(run.train.optimizer),
                seed=run.seed,
                device=run.device,
                autocast_dtype=run.autocast_dtype,
                on_epoch=on_epoch,
                on_step=on_step,
                on_skip=on_skip,
                meter=self.meter,
                accumulate=run.train.accumulate,
                max_grad_norm=run.train.optimizer.max_grad_norm,
                max_nonfinite=run.train.max_nonfinite,
                loss_scale=run.loss_scale,
                world=world,
            )
        if world.main:
            keeper.keep(self.out_dir / checkpoint, file_sha256(self.out_dir / checkpoint))
        keeper.drop(self.out_dir / HEALTHY)
        keeper.finish_stage(self.name, self.best)
        world.barrier()  # what the main process wrote is there for all

    def _end_epoch(
        self, record: EpochRecord, row: dict[str, Any], timing: dict[str, Any], checkpoint: str, best: str | None
    ) -> Checkpoint:
        """Judge an epoch by its row, and write down what it leaves behind; returns the stage's state."""
        incident = self._judge(row, record)
        self.history.epochs.append(row)
        self.history.timings.append(timing)
        self._write_history()
        counts = incident is None and self._counts(row)
        state = self.checkpoint(record.step, record.epoch + 1)
        digest = self._save(state, checkpoint)
        if self.guard is not None and self.guard.healthy_step == record.step:
            self._hold(checkpoint, digest)
        if counts and best is not None:
            self.run.keeper.keep(self.out_dir / best, self._save(state, best))
        return state

    def _save(self, state: Checkpoint, name: str) -> str:
        """Write a checkpoint, if this is the main process; returns its SHA-256."""
        if not self.run.world.main:
            return ""
        with self.run.telemetry.saving(self.out_dir / name):
            return save_checkpoint(state, self.out_dir / name)

    def _begin(self, schedule: Schedule, checkpoint: str, validation: Validation) -> Schedule:
        """Become what an earlier process saved, if it did; returns the steps that are left."""
        if (state := self.run.keeper.enter(self.name)) is None:
            self._start_guard(schedule.start, *validation.begin())
            return schedule
        saved = state.checkpoint
        try:
            self.method.load_state_dict(dict(saved.method_state))
            load_moments_(self.optimizer, saved.optimizer)
            if self.run.loss_scale is not None and saved.loss_scale:
                self.run.loss_scale.load(saved.loss_scale)
        except (RuntimeError, ValueError) as error:
            raise ParamsError(
                f"the saved state of {self.name} does not fit this model ({one_line(error, 200)}). "
                "Take back what --resume-force let through, or begin anew with --restart."
            ) from error
        self.history.epochs[:], self.history.timings[:], self.history.skipped[:] = saved.history, state.timings, state.skipped
        self.best, self.stopped = dict(saved.best), state.stopped
        self.selection.load(state.selection)
        if self.guard is not None and state.guard:
            self.guard.load(state.guard)
            self.method.unsup_scale = self.guard.unsup_scale
        else:
            self._start_guard(state.step, None, math.inf)  # it was switched on in between
        self._write_history()
        validation.go_on(state.step)
        if len(state.meters) == self.run.world.size:
            self.meter.load(state.meters[self.run.world.rank], self.run.device)
        if state.device != self.run.device.type:
            logger.warning("on %s now, on %s before: results may differ in rounding", self.run.device.type, state.device)
        if schedule.ends_epoch(state.step - 1) and self.run.world.main:
            save_checkpoint(saved, self.out_dir / checkpoint)
        return replace(schedule, start=schedule.stop if self.stopped else state.step)

    def _state(self, checkpoint: Checkpoint) -> State:
        keeper = self.run.keeper
        return State(
            checkpoint=checkpoint,
            selection=self.selection.state(),
            timings=self.history.timings,
            skipped=self.history.skipped,
            finished=keeper.finished,
            stopped=self.stopped,
            meters=self.run.world.collect(self.meter.state()),
            device=self.run.device.type,
            guard={} if self.guard is None else self.guard.state(),
        )

    def _write_history(self) -> None:
        if self.run.world.main:
            self.history.write(self.out_dir)

    def _start_telemetry(self, schedule: Schedule) -> None:
        names = self.run.manifest.spec.class_names
        self.run.telemetry.start_phase(
            self.name,
            epochs=schedule.epochs,
            class_names=names,
            labeled_classes=[name for name, pixels in zip(names, self.run.labeled_pixels, strict=True) if pixels],
            device=self.run.device,
        )

    def _learning_rates(self, highest: float) -> dict[str, float]:
        factor = self.run.train.optimizer.encoder_lr_factor
        decoder = highest / max(1.0, factor)
        return {"decoder": decoder, "encoder": decoder * factor}

    def _new_guard(self) -> CollapseGuard | None:
        """For a stage in which a teacher learns from its pupil; labels that were made before cannot collapse."""
        config, manifest = self.run.train.guard, self.run.manifest
        if not config.enabled or not self.method.needs_unlabeled or self.offline is not None:
            return None
        return CollapseGuard(config, manifest.spec.class_names, self.run.labeled_pixels, images=len(manifest.selection))

    def _start_guard(self, step: int, miou: float | None, error: float) -> None:
        """What the stage begins with counts as healthy."""
        if self.guard is not None:
            self.guard.start(step, miou, error)
            self.run.keeper.keep(self.out_dir / HEALTHY, self._save(self.checkpoint(step, 0), HEALTHY))

    def _judge(self, row: dict[str, Any], record: EpochRecord) -> Incident | None:
        """Ask the collapse guard, do what it says, and add it to the row."""
        if self.guard is None:
            return None
        said = self.guard.judge(row, record.sums.get("seen", ()))  # type: ignore[arg-type]
        incident, memory = self.run.world.collect((said, self.guard.state()))[0]  # of the main process, for all
        self.guard.load(memory)
        if incident is None:
            return None
        self.method.unsup_scale = incident.unsup_scale
        if incident.back_to is not None:
            healthy = load_checkpoint(self.out_dir / HEALTHY)
            self.method.load_state_dict(dict(healthy.method_state))
            load_moments_(self.optimizer, healthy.optimizer)
        row["incident"] = incident.to_dict()
        self.run.telemetry.collapsed(incident.signs)
        logger.warning(
            "%s, step %d: %s. The unlabelled loss has %.3g of its weight now%s.",
            self.name,
            record.step,
            "; ".join(incident.reasons),
            incident.unsup_scale,
            "" if incident.back_to is None else f", and the weights are those of step {incident.back_to}",
        )
        return incident

    def _hold(self, checkpoint: str, digest: str) -> None:
        """Let a checkpoint that was just written be the one that the guard goes back to."""
        if self.run.world.main:
            place_link(self.out_dir / checkpoint, self.out_dir / HEALTHY, replace=True)
            write_digest(self.out_dir / HEALTHY, digest)
            self.run.keeper.keep(self.out_dir / HEALTHY, digest)

    def _row(self, record: EpochRecord, validation: Validation) -> dict[str, Any]:
        """A row of the history: what the epoch was, and what is measured after it."""
        row: dict[str, Any] = {
            "stage": self.name,
            "epoch": record.epoch,
            "step": record.step,
            "lr": record.learning_rate,
            "nonfinite": record.nonfinite,
            **record.means,
        }
        if self.run.loss_scale is not None:
            row.update(loss_scale=self.run.loss_scale.value, overflows=record.overflows)
        if "seen" in record.sums:
            row.update(unlabeled_row(record.sums), labeled_share=self.run.labeled_share)
        return {**row, **validation.row(record)}

    def _counts(self, row: Mapping[str, Any]) -> bool:
        """Whether this epoch's checkpoint is the one that counts, by the selection slice."""
        miou = row.get("selection_miou")
        if miou is None or not self.selection.counts(miou, row["selection_error"]):
            return False
        self.best = {"miou": miou, "step": row["step"]}
        return True

    def checkpoint(self, step: int, epoch: int) -> Checkpoint:
        """The stage's state after ``step`` steps and ``epoch`` epochs."""
        run = self.run
        return Checkpoint(
            method=self.method_name,
            method_state=self.method.state_dict(),
            networks=tuple(self.method.networks()),
            params=run.params_text,
            spec=run.manifest.spec.to_dict(),
            split_hash=run.manifest.hash,
            seed=run.seed,
            step=step,
            epoch=epoch,
            stage=self.name,
            optimizer=self.optimizer.state_dict(),
            best=self.best,
            history=self.history.epochs,
            loss_scale={} if run.loss_scale is None else run.loss_scale.state(),
        )
