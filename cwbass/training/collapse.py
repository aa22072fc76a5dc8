"""A guard against collapse: a teacher that teaches its own mistakes until little else is left.

Once an epoch it looks for four signs, each against the best that the stage has seen while it was healthy:

- ``miou``: the score on the selection slice has fallen far below, and by more than luck with so few images explains;
- ``precision``: more labels are kept while fewer of them are right, and the score has fallen too, by more than such luck;
- ``classes``: the teacher names far fewer classes than it did, and than the masks show: one that knows nothing yet names all alike;
- ``starved``: a class of the labelled images that had pseudo-labels has none any more; needs no labels either.

An epoch is healthy that shows none of the first three and is within one standard error of the best score, as a checkpoint must
be to count (:mod:`cwbass.evaluation.selection`). A sign must last: a single bad epoch is noise. Then the unlabelled loss gets
less weight, and unless a class is merely starved, the networks and the optimiser become those of the last healthy epoch. Steps
are counted on, so a run is as long as without, and goes on with images it has not just collapsed on. An epoch's row of the
history is all the guard looks at, so every process comes to the same decision, and what it remembers is a few numbers of the
saved state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from cwbass.config import GuardConfig
from cwbass.errors import counted
from cwbass.evaluation.student_t import errors_of_95_percent
from cwbass.headline import percent


@dataclass(frozen=True, slots=True)
class Incident:
    """What was seen, and what was done about it."""

    signs: tuple[str, ...]
    reasons: tuple[str, ...]  # a clause with its numbers for each
    unsup_scale: float  # of the unlabelled loss's own weight, from now on
    back_to: int | None  # step of the weights that training goes on with; None keeps those of now

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the history."""
        return {**asdict(self), "signs": list(self.signs), "reasons": list(self.reasons)}


@dataclass(slots=True)
class _Memory:
    """All that a guard knows; None is not measured yet."""

    unsup_scale: float = 1.0
    healthy_step: int = 0  # optimiser steps after the last epoch without a sign
    miou: float | None = None  # highest of a healthy epoch, and its standard error
    error: float = 0.0
    precision: float | None = None  # highest of a healthy epoch, and the retention there
    retention: float = 0.0
    variety: float | None = None  # highest effective number of classes of a healthy epoch
    had_labels: list[bool] = field(default_factory=list)  # by class, whether it has ever had its share of the pseudo-labels
    without: list[int] = field(default_factory=list)  # by class, epochs in a row without a pseudo-label
    streaks: dict[str, int] = field(default_factory=dict)  # sign -> epochs in a row


class CollapseGuard:
    """Judges the epochs of a semi-supervised stage.

    Args:
        config: When a sign is one.
        class_names: Of the dataset, by index.
        labeled: Labelled pixels of each class, by index.
        images: In the selection slice.
    """

    def __init__(self, config: GuardConfig, class_names: Sequence[str], labeled: Sequence[int], images: int) -> None:
        self.config, self.class_names = config, class_names
        self.labeled = [pixels > 0 for pixels in labeled]
        self.shown = effective_classes(labeled)
        self.errors = errors_of_95_percent(images)
        self._memory = _Memory(had_labels=[False] * len(class_names), without=[0] * len(class_names))

    @property
    def unsup_scale(self) -> float:
        """What is left of the unlabelled loss's weight, in (0, 1]."""
        return self._memory.unsup_scale

    @property
    def healthy_step(self) -> int:
        """Optimiser steps after which the weights were last healthy."""
        return self._memory.healthy_step

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes to go on from here: plain values."""
        return asdict(self._memory)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state` gave."""
        self._memory = _Memory(**state)

    def start(self, step: int, miou: float | None, error: float) -> None:
        """The stage begins.

        Args:
            step: Optimiser steps taken.
            miou: Score of the network it begins with on the selection slice, in [0, 1]; None without a slice.
            error: Its standard error.
        """
        memory = self._memory
        memory.healthy_step, memory.miou, memory.error = step, miou, error

    def judge(self, row: Mapping[str, Any], seen: Sequence[float]) -> Incident | None:
        """What to do after an epoch; mostly nothing.

        Args:
            row: Of the history, as :class:`cwbass.training.stage.Stage` measures it.
            seen: Unlabelled pixels of the epoch by the class that the teacher named. [K].

        Returns:
            What happened. The caller gives the unlabelled loss the scale it names, and goes back where it says so.
        """
        memory, config = self._memory, self.config
        variety = effective_classes(seen)
        signs = {
            "miou": self._score_fell(row),
            "precision": self._precision_fell(row),
            "classes": self._classes_went(variety),
        }
        starved = self._starved(row)
        memory.streaks = {name: memory.streaks.get(name, 0) + 1 for name, reason in signs.items() if reason is not None}
        if not memory.streaks and self._within_one_error(row):
            self._remember(row, variety)
        lasting = {name: reason for name, reason in signs.items() if memory.streaks.get(name, 0) >= config.patience}
        back_to = memory.healthy_step if lasting else None
        if starved:
            lasting["starved"] = f"no pseudo-label was kept for {counted(config.starved_epochs, 'epoch')} of {', '.join(starved)}"
        if not lasting:
            return None
        memory.unsup_scale *= config.factor
        memory.streaks = {}
        return Incident(tuple(lasting), tuple(map(str, lasting.values())), memory.unsup_scale, back_to)

    def _score_fell(self, row: Mapping[str, Any]) -> str | None:
        best, miou = self._memory.miou, row.get("selection_miou")
        if best is None or miou is None:
            return None
        if best - miou > max(self.config.miou_fall * best, self._luck(row)):  # never of a slice without a labelled pixel: NaN
            return f"mIoU on the selection slice fell from {percent(best)}% to {percent(miou)}%"
        return None

    def _precision_fell(self, row: Mapping[str, Any]) -> str | None:
        best, before, retention = self._memory.miou, self._memory.precision, self._memory.retention
        precision = row.get("precision")
        if best is None or before is None or precision is None:
            return None
        fell = before - precision > self.config.precision_fall and row["retention"] >= retention
        if not fell or best - row["selection_miou"] <= self._luck(row):
            return None
        return (
            f"precision of the pseudo-labels fell from {percent(before)}% to {percent(precision)}% while retention rose "
            f"from {percent(retention)}% to {percent(row['retention'])}%"
        )

    def _within_one_error(self, row: Mapping[str, Any]) -> bool:
        best, miou = self._memory.miou, row.get("selection_miou")
        return best is None or miou is None or bool(miou >= best - self._memory.error)

    def _luck(self, row: Mapping[str, Any]) -> float:
        """How far the score may fall by luck, with as few images as there are."""
        return self.errors * max(self._memory.error, float(row["selection_error"]))

    def _classes_went(self, variety: float | None) -> str | None:
        before = self._memory.variety
        if before is None or variety is None or variety >= self.config.variety * min(before, self.shown or before):
            return None
        return f"the teacher names as many classes as {variety:.1f} equally frequent ones, and {before:.1f} before"

    def _starved(self, row: Mapping[str, Any]) -> list[str]:
        """Labelled classes that have lost their pseudo-labels, each once until it has some again."""
        memory, shares = self._memory, row.get("pseudo_label_share") or ()
        if not any(shares):  # a threshold that keeps nothing at all starves no class in particular
            return []
        found = []
        for index, share in enumerate(shares):
            memory.without[index] = 0 if share else memory.without[index] + 1
            memory.had_labels[index] |= self.labeled[index] and share >= self.config.starved_share
            if memory.had_labels[index] and memory.without[index] >= self.config.starved_epochs:
                memory.had_labels[index] = False
                found.append(self.class_names[index])
        return found

    def _remember(self, row: Mapping[str, Any], variety: float | None) -> None:
        """A healthy epoch: later ones are compared with the best of its numbers."""
        memory, miou, precision = self._memory, row.get("selection_miou"), row.get("precision")
        memory.healthy_step = row["step"]
        if miou is not None and (memory.miou is None or miou > memory.miou):
            memory.miou, memory.error = miou, float(row["selection_error"])
        if precision is not None and (memory.precision is None or precision > memory.precision):
            memory.precision, memory.retention = precision, row["retention"]
        if variety is not None:
            memory.variety = max(memory.variety or 0.0, variety)


def effective_classes(counts: Sequence[float]) -> float | None:
    """How many equally frequent classes would be as varied as these counts: the exponential of their entropy.

    Args:
        counts: Pixels by class. [K].

    Returns:
        In [1, K]; None where nothing was counted.

    Source:
        Hill, "Diversity and Evenness", Ecology 54 (1973): the number of order 1.
    """
    pixels = torch.tensor(counts, dtype=torch.float64)
    total = pixels.sum()
    if total <= 0:
        return None
    return float(torch.special.entr(pixels / total).sum().exp())
