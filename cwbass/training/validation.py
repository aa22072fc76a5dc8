"""What is measured between the epochs of a stage: scores on the selection slice, and pictures of a few images."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cwbass.data.base import Sample
from cwbass.evaluation.evaluate import evaluate
from cwbass.evaluation.metrics import EvalResult
from cwbass.evaluation.selection import ImageConfusions
from cwbass.files import unlink_with_digest, write_digest, write_whole
from cwbass.jsonfile import finite_or_none
from cwbass.methods.base import Method
from cwbass.training.flight import PROBES, Keep, ProbeRecorder, SliceRecord
from cwbass.training.loop import EpochRecord, Schedule
from cwbass.training.run import Run


class Validation:
    """Looks at a stage's networks between its epochs, and lets the method learn from what it sees.

    Args:
        run: What all stages share.
        method: What is trained, on the run's device.
        schedule: Of the stage, from its beginning.
        out_dir: Where ``probes.zip`` goes.
        offline: Whether the labels that teach were made before, and not by the method's networks.
        compiled: Whether these are compiled.
    """

    def __init__(self, run: Run, method: Method, schedule: Schedule, out_dir: Path, *, offline: bool, compiled: bool) -> None:
        self.run, self.method, self.offline, self.compiled = run, method, offline, compiled
        self.predictor = run.predictor.network_alone
        names, wanted = list(method.networks()), run.eval.weights
        self.scored = wanted if wanted in names else names[-1]  # by it checkpoints are chosen; the last one makes the labels
        self.probes_file = out_dir / PROBES
        self.probes = self._new_probes(schedule)

    def begin(self) -> tuple[float | None, float]:
        """Look before the first step; returns the scored network's mIoU on the selection slice, if there is one, and its standard error."""
        if self.probes is not None:
            unlink_with_digest(self.probes_file)  # of an earlier run in the same folder
        if not self.run.manifest.selection:
            self.method.calibrate(None)
            return None, math.inf
        preferred = list(self.method.networks())[-1]
        score, error = self._score(preferred)
        self.method.calibrate(score.reliability)
        if self.scored != preferred:
            score, error = self._score(self.scored)
        return score.miou, error

    def go_on(self, step: int) -> None:
        """Take up what was drawn in the first ``step`` steps."""
        if self.probes is not None:
            self.probes.go_on(self.probes_file, step)

    def row(self, record: EpochRecord) -> dict[str, Any]:
        """Look after an epoch; returns what the selection slice says of it, for the history."""
        keep = self._keep(record)
        if keep is not None:
            self._draw_probes(keep, record)
        if not self.run.manifest.selection:
            self.method.calibrate(None)
            return {}
        watch = SliceRecord(self.run.manifest.spec, self.run.device, keep)
        *others, preferred = self.method.networks()
        scores = {name: self._score(name, watch.student) for name in others}
        scores[preferred] = self._score(preferred, watch.teacher)
        watch.add_up(self.run.world)
        (scored, error), labels = scores[self.scored], scores[preferred][0]
        row: dict[str, Any] = {"selection_miou": scored.miou, "selection_error": error}
        row.update({f"selection_miou_{name}": score.miou for name, (score, _) in scores.items()})
        row["selection_iou_per_class"] = [finite_or_none(value) for value in labels.iou]
        for name in others:
            row["student_gap_per_class"] = [
                finite_or_none(own - teachers) for own, teachers in zip(scores[name][0].iou, labels.iou, strict=True)
            ]
        row.update(watch.row())
        self.method.calibrate(labels.reliability)
        return row

    def _score(self, name: str, watch: Callable[[Sample, Tensor, Tensor], None] | None = None) -> tuple[EvalResult, float]:
        """Scores of a network on the selection slice, and the standard error of its mIoU.

        ``watch`` gets each sample, its mask [H, W] and the probabilities [C, H, W].
        """
        run = self.run
        spec = run.manifest.spec
        images = ImageConfusions(spec.ignore_index)

        def on_image(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
            images.add(probs, mask)
            if watch is not None:
                watch(sample, torch.tensor(mask, device=run.device), probs)

        with self._whole_images():
            result = evaluate(
                self.method.networks()[name],
                run.manifest.selection,
                root=run.data_root,
                spec=spec,
                predictor=self.predictor,
                boundary=False,
                on_image=on_image,
                world=run.world,
            )
        images.add_up(run.world)
        return result, images.standard_error()

    def _whole_images(self) -> AbstractContextManager[Any]:
        """Whole images have many sizes, and each would be compiled."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _keep(self, record: EpochRecord) -> Keep | None:
        """Which labels of the network that makes them teach, at the epoch's mean threshold; None where it makes no labels."""
        if "seen" not in record.sums or self.offline:
            return None
        tau = record.means.get("threshold")
        threshold = None if tau is None else torch.tensor(tau, device=self.run.device)
        return lambda confidence, label: self.method.keeps(confidence, label, threshold)

    def _new_probes(self, schedule: Schedule) -> ProbeRecorder | None:
        """For the main process of a stage whose networks make the labels."""
        run = self.run
        if not run.world.main or not run.train.probes or not self.method.needs_unlabeled or self.offline:
            return None
        chosen = run.manifest.unlabeled, run.manifest.selection, run.train.probes
        return ProbeRecorder(*chosen, root=run.data_root, spec=run.manifest.spec, predictor=self.predictor, schedule=schedule)

    def _draw_probes(self, keep: Keep, record: EpochRecord) -> None:
        """Let ``probes.zip`` have a frame of this epoch, and the states from now on hold it."""
        if self.probes is None:
            return
        net = list(self.method.networks().values())[-1]
        with self._whole_images():
            drawn = self.probes.draw(net, keep, record.epoch, record.step)
        if drawn is not None:
            digest = write_whole(self.probes_file, drawn)
            write_digest(self.probes_file, digest)
            self.run.keeper.keep(self.probes_file, digest)
