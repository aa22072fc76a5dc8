"""What is recorded of pseudo-labels once an epoch: how many, how sure and how right, by class, and pictures of a few images.

Steps give sums over the unlabelled images; the selection slice, whose truth is known, is looked at between epochs while it is
scored anyway. Rows of the history hold the numbers (docs/flight_recorder.md lists them), ``probes.zip`` the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cwbass.data.base import DatasetSpec, Sample, read_image, read_mask
from cwbass.evaluation.code_maps import near_boundaries
from cwbass.evaluation.evaluate import eval_mode
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.probes import ProbeBook, choose_probes, draw_frame, draw_probe, frame_epochs
from cwbass.pixels import highest
from cwbass.training.loop import Schedule
from cwbass.world import World

PROBES = "probes.zip"
NEAR = 5  # pixels from a boundary, within which pseudo-labels are known to be worst
HISTOGRAM_BINS = 20
Keep = Callable[[Tensor, Tensor], Tensor]  # confidence and label, [B, H, W] each -> which may teach, [B, H, W] bool


def unlabeled_row(sums: Mapping[str, Any]) -> dict[str, Any]:
    """What an epoch's sums over unlabelled pixels say, for the history.

    Args:
        sums: ``seen``, ``kept`` and ``confidence`` by class, [K]; ``confidence_counts``, [K, N].
    """
    seen, kept, confidence, counts = (
        torch.tensor(sums[name], dtype=torch.float64) for name in ("seen", "kept", "confidence", "confidence_counts")
    )
    total = seen.sum().clamp(min=1)
    return {
        "retention": (kept.sum() / total).item(),
        "retention_per_class": shares(kept, seen),
        "mean_confidence": (confidence.sum() / total).item(),
        "pseudo_label_share": (kept / kept.sum().clamp(min=1)).tolist(),
        "seen_per_class": seen.long().tolist(),
        "kept_per_class": kept.long().tolist(),
        "confidence_histogram": counts.view(len(counts), HISTOGRAM_BINS, -1).sum(2).long().tolist(),
    }


class SliceRecord:
    """What the selection slice says of an epoch beside the scores.

    Args:
        spec: Classes and ignore value.
        device: Where counts are made.
        keep: What the method would let teach; None where its labels are not its networks' own.
    """

    def __init__(self, spec: DatasetSpec, device: torch.device, keep: Keep | None) -> None:
        self.spec, self.device, self.keep = spec, device, keep
        self._labels: dict[str, Tensor] = {}  # of the student, by sample
        self.labels = torch.zeros(2, 4, spec.num_classes, dtype=torch.int64, device=device)  # inside and near; see _count
        self.differing = torch.zeros(2, spec.num_classes, dtype=torch.int64, device=device)  # of all, and where they differ

    def student(self, sample: Sample, mask: Tensor, probs: Tensor) -> None:
        """Remember what the student says of an image, for :meth:`teacher`. mask [H, W] uint8, probs [C, H, W]."""
        self._labels[sample.id] = highest(probs)[1].to(torch.uint8)

    def teacher(self, sample: Sample, mask: Tensor, probs: Tensor) -> None:
        """Count what the network says whose labels teach; where it is the student itself, nothing differs. As above."""
        confidence, label = highest(probs)
        known = mask != self.spec.ignore_index
        if (other := self._labels.pop(sample.id, None)) is not None:
            self.differing += self._by_class(label, (other != label).long(), known, 2)
        if self.keep is not None:
            self._count(confidence, label, mask, known)

    def add_up(self, world: World) -> None:
        """Take in the counts of all processes."""
        self.labels, self.differing = world.total(self.labels), world.total(self.differing)

    def row(self) -> dict[str, Any]:
        """For the history; fractions in [0, 1], None where undefined."""
        found: dict[str, Any] = {}
        if self.keep is not None:
            inside, near = self.labels
            for name, counts in (("", inside + near), ("interior_", inside), ("boundary_", near)):
                dropped, (wrong, right) = counts[:2].sum(0), counts[2:]
                kept = wrong + right
                found[f"{name}precision"] = share(right.sum(), kept.sum())
                found[f"{name}precision_per_class"] = shares(right, kept)
                if name:  # of all pixels, the unlabelled images tell more
                    found[f"{name}retention_per_class"] = shares(kept, kept + dropped)
        if self.differing.any():
            same, differing = self.differing
            found["disagreement"] = share(differing.sum(), self.differing.sum())
            found["disagreement_per_class"] = shares(differing, same + differing)
        return found

    def _count(self, confidence: Tensor, label: Tensor, mask: Tensor, known: Tensor) -> None:
        """Wrong and right pixels that are dropped, then those that are kept: inside, then near boundaries."""
        assert self.keep is not None
        kept = self.keep(confidence[None], label[None])[0]
        near = near_boundaries(mask, NEAR, self.spec.ignore_index) != self.spec.ignore_index
        key = (near.long() * 2 + kept) * 2 + (label == mask)
        self.labels += self._by_class(label, key, known, 8).view_as(self.labels)

    def _by_class(self, label: Tensor, key: Tensor, known: Tensor, keys: int) -> Tensor:
        """Known pixels by key and label. [H, W] each -> [keys, K]."""
        classes = self.spec.num_classes
        index = (key * classes + label).where(known, keys * classes)
        return torch.bincount(index.flatten(), minlength=keys * classes + 1)[:-1].view(keys, classes)


class ProbeRecorder:
    """Draws what the network that makes labels says of a few images, epoch after epoch; for the main process.

    Args:
        unlabeled: To choose from.
        selection: Likewise, with masks.
        count: Images.
        root: Folder that the samples' paths are relative to.
        spec: Classes and palette.
        predictor: How to predict.
        schedule: Of the stage, from its beginning.
    """

    def __init__(
        self,
        unlabeled: Sequence[Sample],
        selection: Sequence[Sample],
        count: int,
        *,
        root: Path,
        spec: DatasetSpec,
        predictor: Predictor,
        schedule: Schedule,
    ) -> None:
        self.chosen = choose_probes(unlabeled, selection, count)
        self.root, self.spec, self.predictor = root, spec, predictor
        self.epochs = frame_epochs(schedule.epochs)
        self.book = ProbeBook()

    def go_on(self, path: Path, step: int) -> None:
        """Take up what was drawn in the first ``step`` steps."""
        if path.is_file():
            found = ProbeBook.read(path)
            self.book = ProbeBook(found.probes, {at: frames for at, frames in found.frames.items() if at <= step})

    def draw(self, net: nn.Module, keep: Keep, epoch: int, step: int) -> bytes | None:
        """The new content of ``probes.zip`` after an epoch; None where it stays as it is.

        Args:
            net: On the predictor's device; run in eval mode and left in its own.
            keep: What the method would let teach.
            epoch: Of the stage, from 0.
            step: Optimiser steps taken.
        """
        if not self.chosen or epoch not in self.epochs:
            return None
        pairs = [self._read(role, sample) for role, sample in self.chosen]
        if not self.book.probes:
            for (role, sample), (image, truth) in zip(self.chosen, pairs, strict=True):
                self.book.probes.append(draw_probe(role, sample.id, image, truth, self.spec))
        frames, ignore = [], self.spec.ignore_index
        with eval_mode(net):
            for image, truth in pairs:
                confidence, label = highest(self.predictor.probs(net, image))
                codes = label.to(torch.uint8)
                near = near_boundaries(codes, NEAR, ignore) != ignore
                maps = [each.cpu().numpy() for each in (codes, confidence, keep(confidence[None], label[None])[0], near)]
                frames.append(draw_frame(maps[0], maps[1], maps[2], maps[3], truth, self.spec))
        self.book.frames[step] = frames
        return self.book.serialize()

    def _read(self, role: str, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        # The mask of an unlabelled image, if there is one, is nobody's to look at.
        mask = None if role != "selection" or sample.mask is None else read_mask(self.root / sample.mask, self.spec)
        return read_image(self.root / sample.image), mask


def share(part: Tensor, whole: Tensor) -> float | None:
    """part / whole, None where whole is 0. [] each."""
    return (part.double() / whole).item() if whole > 0 else None


def shares(part: Tensor, whole: Tensor) -> list[float | None]:
    """Likewise, one by one. [K] each."""
    return [share(one, other) for one, other in zip(part.cpu(), whole.cpu(), strict=True)]
