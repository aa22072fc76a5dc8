"""A sweep over thresholds: how precise labels would be and how many would be left, and a threshold for each class with its reason.

The rule is that of ``threshold.rule: auto`` (:func:`cwbass.pseudo_labels.thresholds_for_precision`). Where that one leans on the
other classes as far as a class has few pixels, a suggestion says so instead: it has ``pixels`` behind it, or is that of all classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cwbass.errors import DataError
from cwbass.headline import percent
from cwbass.jsonfile import finite_or_none
from cwbass.pseudo_labels import at_or_above, precision_curve, retained, thresholds_for_precision
from cwbass.types import Reliability

SCHEMA = 1
SWEEP = "sweep.json"  # beside the warm-up, and of a folder of reports


@dataclass(frozen=True, slots=True)
class SweepRule:
    """What is asked of a threshold; the defaults are those of ``method.cwbass.threshold``."""

    target: float = 0.9  # precision of the labels that are kept
    low: float = 0.3  # lowest threshold that is suggested
    high: float = 0.95  # highest; that of a class which reaches the target nowhere
    pixels: int = 500  # that a precision is measured on, at least


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A threshold, and what it would do on the slice; fractions in [0, 1]."""

    threshold: float
    precision: float | None  # of the labels that are kept; None where none is
    retention: float | None  # share of the labels that is kept; None where the class is never named
    pixels: int  # that are kept
    reason: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a network's labels on the selection slice say about thresholds."""

    class_names: tuple[str, ...]
    reliability: Reliability
    source: Mapping[str, Any]  # which network was measured on what: plain JSON values
    rule: SweepRule = SweepRule()

    @property
    def thresholds(self) -> list[float]:
        """Those of the curves. [N]."""
        bins = self.reliability.total.shape[1]
        return [n / bins for n in range(bins)]

    def curves(self) -> tuple[list[list[float | None]], list[list[float]]]:
        """Precision and retention of each class at each threshold, as measured. [K][N] each; None where nothing is kept."""
        kept = at_or_above(self.reliability.total)
        precision = at_or_above(self.reliability.correct) / kept
        retention = kept / self.reliability.total.sum(1, keepdim=True).clamp(min=1)
        return [[finite_or_none(value) for value in row] for row in precision.tolist()], retention.tolist()

    def overall(self) -> Suggestion:
        """One threshold for all classes."""
        return self._suggest(
            Reliability(self.reliability.correct.sum(0, keepdim=True), self.reliability.total.sum(0, keepdim=True))
        )

    def classes(self) -> dict[str, Suggestion]:
        """A threshold for each class."""
        found, everyone = {}, self.overall().threshold
        for index, name in enumerate(self.class_names):
            own = Reliability(self.reliability.correct[index : index + 1], self.reliability.total[index : index + 1])
            if (pixels := int(own.total.sum())) >= self.rule.pixels:
                found[name] = self._suggest(own)
            else:
                said = f"{pixels:,} pixels are too few to judge" if pixels else "never named on the slice"
                found[name] = _measured(own, everyone, f"{said}: the threshold of all classes")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        precision, retention = self.curves()
        return {
            "schema": SCHEMA,
            **self.source,
            "rule": asdict(self.rule),
            "overall": asdict(self.overall()),
            "classes": {name: asdict(suggestion) for name, suggestion in self.classes().items()},
            "thresholds": self.thresholds,
            "precision": dict(zip(self.class_names, precision, strict=True)),
            "retention": dict(zip(self.class_names, retention, strict=True)),
            "counts": {name: getattr(self.reliability, name).long().tolist() for name in ("correct", "total")},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sweep:
        """Inverse of :meth:`to_dict`, from the counts: curves and suggestions follow from them.

        Raises:
            ValueError, KeyError, TypeError: The values are no sweep of this version.
        """
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}")
        names = tuple(str(name) for name in values["classes"])
        correct, total = (torch.tensor(values["counts"][name], dtype=torch.float64) for name in ("correct", "total"))
        if correct.shape != total.shape or total.dim() != 2 or len(total) != len(names):
            raise ValueError(f"counts are not those of {len(names)} classes")
        given = {"schema", "rule", "overall", "classes", "thresholds", "precision", "retention", "counts"}
        source = {key: value for key, value in values.items() if key not in given}
        return cls(names, Reliability(correct, total), source, SweepRule(**values["rule"]))

    def _suggest(self, counts: Reliability) -> Suggestion:
        """The rule's threshold for labels of one kind, and why. counts [1, N]."""
        rule, target = self.rule, f"{percent(self.rule.target)}%"
        judged = _without_tail(counts, rule.pixels)
        tau = thresholds_for_precision(judged, target=rule.target, low=rule.low, high=rule.high, prior=0.0).item()
        curve = precision_curve(judged, prior=0.0)[0].nan_to_num(0.0)
        reached = curve >= rule.target
        first = int(reached.to(torch.uint8).argmax()) / len(curve)
        if not bool(reached.any()):
            best = f"at best {percent(curve.max().item())}% at {int(curve.argmax()) / len(curve):.2f}"
            reason = f"never reaches {target}, {best}: the highest threshold asked for"
        elif first > tau:
            reason = f"reaches {target} at {first:.2f} only: the highest threshold asked for"
        elif first < tau:
            reason = f"reaches {target} at {first:.2f} already: the lowest threshold asked for"
        else:
            reason = f"the lowest threshold whose precision reaches {target}"
        return _measured(counts, tau, reason)


def read_sweep(path: Path) -> Sweep:
    """Read a ``sweep.json``.

    Raises:
        DataError: The file is missing, damaged, or of another version.
    """
    try:
        return Sweep.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file. `cwbass warmup` writes it, where there is a selection slice; "
            "`cwbass thresholds --checkpoint FILE --manifest FILE` measures any checkpoint of a split that has one."
        ) from error
    except Exception as error:  # a value of another kind, deep in a table, raises whatever it happens to cause
        raise DataError(f"{path} holds no sweep over thresholds ({error!r}). Run `cwbass warmup` again.") from error


def _measured(counts: Reliability, tau: float, reason: str) -> Suggestion:
    """What a threshold does to labels of one kind. counts [1, N]."""
    correct, kept = (each.item() for each in retained(counts, torch.tensor(tau, dtype=torch.float64)))
    total = counts.total.sum().item()
    return Suggestion(round(tau, 4), correct / kept if kept else None, kept / total if total else None, int(kept), reason)


def _without_tail(counts: Reliability, pixels: int) -> Reliability:
    """The counts with the surest pixels in the highest bin that has so many at or above it: no precision of fewer. [1, N]."""
    last = max(0, int((at_or_above(counts.total)[0] >= pixels).sum()) - 1)
    cut = [torch.cat((each[:, :last], each[:, last:].sum(1, keepdim=True), torch.zeros_like(each[:, last + 1 :])), 1)
           for each in (counts.correct, counts.total)]  # fmt: skip
    return Reliability(*cut)
