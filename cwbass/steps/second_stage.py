"""The second stage of ``train``: the best network labels images offline, and training starts anew on them.

After ST++ (arXiv:2106.05095), with the loss of the method that asks for it (``methods.OFFLINE``). The images whose
predictions were steady throughout the first stage are labelled first; the network retrained on them labels the rest, and
the last training takes all. Both trainings start from the run's initial weights.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cwbass.config import ModelConfig
from cwbass.data.cache import ImageSource
from cwbass.data.offline import CONFIDENCE, LABEL, OfflineStream, PseudoLabels
from cwbass.data.streams import tag_table
from cwbass.errors import ParamsError, counted
from cwbass.evaluation.evaluate import evaluate
from cwbass.methods.base import FIRST_STAGE_STEPS, Method, MethodConfig, Retraining
from cwbass.models.base import SegmentationNet
from cwbass.steps.training import network_factory, new_method
from cwbass.training.checkpoint import Checkpoint, load_checkpoint
from cwbass.training.device import place
from cwbass.training.enough import too_few_to_rank
from cwbass.training.history import write_rows
from cwbass.training.loop import Schedule
from cwbass.training.optim import build_optimizer
from cwbass.training.run import Run
from cwbass.training.second_stage import measure_reliability, rank_by_reliability, write_pseudo_labels
from cwbass.training.seed import seed_everything
from cwbass.training.stage import Stage
from cwbass.types import Reliability

logger = logging.getLogger(__name__)

FIRST_LAST, FIRST_BEST = "first_stage_last.pt", "first_stage_best.pt"
RELIABLE_LAST, RELIABLE_BEST = "retrain_reliable_last.pt", "retrain_reliable_best.pt"
FIRST_SNAPSHOTS = ("snapshot_1.pt", "snapshot_2.pt")  # after a third and two thirds of the first stage
PSEUDO_LABELS, RELIABILITY = "pseudo_labels", "reliability.jsonl"
# What it leaves beside its last training's checkpoints; patterns below the output folder.
SECOND_STAGE_FILES = (
    *(FIRST_LAST, FIRST_BEST, *FIRST_SNAPSHOTS, RELIABLE_LAST, RELIABLE_BEST, RELIABILITY),
    *(f"{PSEUDO_LABELS}/{kind}/**/*.png" for kind in (LABEL, CONFIDENCE)),
)


@dataclass(frozen=True, slots=True)
class Labelling:
    """Images that one network has labelled."""

    chosen: tuple[int, ...]  # of the unlabelled images
    reliability: Reliability | None  # of the network, on the selection slice; None where there is none


class SecondStage:
    """What the second stage needs, checked before the first one spends any time.

    Args:
        run: What all stages share.
        model: Architecture and starting weights.
        method: The method's section.
        config: Its ``retraining``.
        first: Schedule of the first stage.
        steps: Optimiser steps of each training, where the method names none.
        out_dir: Where files go.

    Raises:
        ParamsError: The first stage is too short to tell reliable images by, or there are too few
            unlabelled images.
        WeightsError: The starting weights cannot be had.
    """

    def __init__(
        self,
        run: Run,
        model: ModelConfig,
        method: MethodConfig,
        config: Retraining,
        first: Schedule,
        *,
        steps: int,
        out_dir: Path,
    ) -> None:
        self.run, self.method, self.config, self.out_dir = run, method, config, out_dir
        self.steps = config.steps or steps
        self.key = config.key
        length = first.stop - first.stage_start
        if length < FIRST_STAGE_STEPS:
            raise ParamsError(
                f"{self.key} compares snapshots after a third and two thirds of the first stage, which has {counted(length, 'step')} "
                f"after the warm-up. Raise train.steps, or {self.config.instead}."
            )
        if message := too_few_to_rank(run.manifest, config):
            raise ParamsError(message)
        self.snapshots = {first.stage_start + third * length // 3: name for third, name in enumerate(FIRST_SNAPSHOTS, start=1)}
        seed_everything(run.seed)  # as the warm-up did: the same weights
        self.initial = network_factory(model, run.manifest.spec.class_names, out_dir / "weights", run.world)()
        self.folder = out_dir / PSEUDO_LABELS

    def retrain(self, first: Stage, *, last: str, best: str) -> list[Stage]:
        """Label and train twice; writes ``last`` and ``best`` of the second training.

        Args:
            first: The first stage, done, with its checkpoints under ``FIRST_LAST`` and ``FIRST_BEST``.
            last: File in ``out_dir`` for the newest state.
            best: File for the state that scores best on the selection slice.

        Raises:
            ParamsError: The network did not change during the first stage.
        """
        source = self.run.open_images(self.run.manifest.unlabeled)
        order = self._rank(source)
        count = min(max(1, round(self.config.reliable * len(order))), len(order) - 1)

        teacher = FIRST_BEST if first.best else FIRST_LAST
        done = [self._label(teacher, source, order[:count])]
        middle = self._train("retrain_reliable", source, done, first, last=RELIABLE_LAST, best=RELIABLE_BEST)
        done.append(self._label(RELIABLE_BEST if middle.best else RELIABLE_LAST, source, order[count:]))
        final = self._train("retrain_all", source, done, middle, last=last, best=best)
        return [middle, final]

    def _rank(self, source: ImageSource) -> list[int]:
        """Indices of the unlabelled images, most reliable first."""
        last = load_checkpoint(self.out_dir / FIRST_LAST)
        earlier = [snapshot for snapshot in self._read_snapshots() if snapshot.step < last.step]
        if not earlier:
            raise ParamsError(
                f"train.early_stop ended the first stage after {counted(last.step, 'step')}, before its first snapshot at "
                f"{min(self.snapshots)}: reliable images cannot be told. "
                f"Raise train.early_stop, or {self.config.instead}."
            )
        final = last.network()
        before = [snapshot.network() for snapshot in earlier]
        for snapshot, net in zip(earlier, before, strict=True):
            if _same_weights(net, final):
                raise ParamsError(
                    f"the {last.networks[-1]} is the same after steps {snapshot.step} and {last.step}, so every image would be "
                    f"perfectly reliable. Check train.optimizer.lr and the ema.decay of a method that has one, or {self.config.instead}."
                )
        found = measure_reliability(
            [place(net, self.run.device) for net in before],
            place(final, self.run.device),
            source,
            num_classes=self.run.manifest.spec.num_classes,
            predictor=self.run.predictor,
            world=self.run.world,
        )
        order = rank_by_reliability(found)
        ids = [sample.id for sample in self.run.manifest.unlabeled]
        if self.run.world.main:
            write_rows(self.out_dir / RELIABILITY, [{"id": ids[index], "reliability": found[index]} for index in order])
        logger.info(
            "reliability of %d unlabelled images over steps %s and %d: %.3f to %.3f, median %.3f",
            len(found),
            ", ".join(str(snapshot.step) for snapshot in earlier),
            last.step,
            found[order[-1]],
            found[order[0]],
            found[order[len(order) // 2]],
        )
        return order

    def _read_snapshots(self) -> list[Checkpoint]:
        """Those of this run: an earlier run in the same folder may have left its own at other steps."""
        paths = [self.out_dir / name for name in self.snapshots.values()]
        return [snapshot for snapshot in map(load_checkpoint, filter(Path.is_file, paths)) if snapshot.step in self.snapshots]

    def _label(self, checkpoint: str, source: ImageSource, chosen: Sequence[int]) -> Labelling:
        """Let a checkpoint's preferred network label the chosen images."""
        run, spec, selection = self.run, self.run.manifest.spec, self.run.manifest.selection
        net = place(load_checkpoint(self.out_dir / checkpoint).network(), run.device)
        predictor = replace(run.predictor, config=self.config.prediction(run.eval))
        ids = unlabeled_ids(run, chosen)
        confidence = write_pseudo_labels(net, source, chosen, ids, self.folder, spec=spec, predictor=predictor, world=run.world)
        logger.info("%s labelled %s with a mean confidence of %.3f", checkpoint, counted(len(chosen), "image"), confidence)
        if not selection:
            return Labelling(tuple(chosen), None)
        scores = evaluate(net, selection, root=run.data_root, spec=spec, predictor=predictor, boundary=False, world=run.world)
        return Labelling(tuple(chosen), scores.reliability)

    def _train(self, name: str, source: ImageSource, done: Sequence[Labelling], before: Stage, *, last: str, best: str) -> Stage:
        """Train from the initial weights on all images that are labelled by now."""
        run = self.run
        method = new_method(run, self.method, lambda **other: copy.deepcopy(self.initial), offline=True)
        method.calibrate_labels(_pooled(done))
        place(method, run.device)
        optimizer = build_optimizer(method.trainable(), run.train.optimizer, batch_size=run.train.labeled_a_step)
        chosen = sorted(index for labelling in done for index in labelling.chosen)
        stream = offline_stream(run, source, chosen, self.folder, method)
        stage = Stage(
            run, name, method, self.method.name, optimizer, out_dir=self.out_dir, history=before.history, offline=stream
        )
        pass_steps = math.ceil(len(chosen) / run.train.unlabeled_a_step)
        epoch_steps = run.train.epoch_steps or pass_steps
        schedule = Schedule(0, self.steps, self.steps, epoch_steps, stage_start=0, pass_steps=pass_steps)
        stage.train(schedule, checkpoint=last, best=best)
        return stage


def unlabeled_ids(run: Run, chosen: Sequence[int]) -> list[str]:
    """Ids of some of the unlabelled images."""
    return [run.manifest.unlabeled[index].id for index in chosen]


def offline_stream(run: Run, source: ImageSource, chosen: Sequence[int], folder: Path, method: Method) -> OfflineStream:
    """Some of the unlabelled images with the labels that were made for them, in the views that a method asks for."""
    spec = run.manifest.spec
    tags = tag_table(run.manifest.unlabeled, spec.num_classes)
    return OfflineStream(
        PseudoLabels(source, chosen, unlabeled_ids(run, chosen), folder),
        run.augment,
        ignore_index=spec.ignore_index,
        seed=run.seed,
        strong_views=method.strong_views,
        tags=None if tags is None else tags[list(chosen)],
        places=method.wants_places,
    )


def _pooled(labellings: Sequence[Labelling]) -> Reliability | None:
    """Reliability of labels of several networks together, each with its share of the images."""
    images = sum(len(labelling.chosen) for labelling in labellings)
    correct, total = [], []
    for labelling in labellings:
        if labelling.reliability is None:
            return None
        share = len(labelling.chosen) / images
        correct.append(labelling.reliability.correct * share)
        total.append(labelling.reliability.total * share)
    return Reliability(correct=torch.stack(correct).sum(0), total=torch.stack(total).sum(0))


def _same_weights(one: SegmentationNet, other: SegmentationNet) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
