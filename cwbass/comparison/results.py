"""What the cells of a comparison left behind; numbers that cannot be set side by side are refused."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cwbass.comparison.plan import PLAN, Cell, Plan
from cwbass.comparison.run import REPORTS, RESOURCES, SNAPSHOT_SCORES, resources
from cwbass.comparison.variants import SUPERVISED
from cwbass.errors import DataError
from cwbass.evaluation.per_image import CONFUSIONS, PerImage
from cwbass.jsonfile import read_object, read_rows
from cwbass.params import Params, TrainingSections, load_params, read_params
from cwbass.training.history import HISTORY, TIMINGS
from cwbass.training.identity import decisive, differences
from cwbass.training.resume import RUN

_AGAIN = "Delete its folder: the cell is run again."
_SCORES = ("miou", "per_class", "weights", "checkpoints", "snapshots", "split", "split_hash", "protocol")
CHANGED_MASK = "Delete all `reports` and `snapshots.jsonl` of the comparison, and run it again, which trains nothing."
OWN_TEST_IMAGES = "Where each seed draws its own test images, name them in split.test_list."


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One cell that is done."""

    cell: Cell
    folder: Path
    metrics: Mapping[str, Any]
    images: PerImage
    code: str  # version of the package that trained it
    step_seconds: float  # of the method's own steps, batches included: median over epochs
    train_seconds: float  # of all steps, the warm-up's among them; what is done between epochs is not counted
    peak_mb: float | None  # most memory of the training process, 10^6 bytes; None where its parent was killed
    guarded: Sequence[int] = ()  # steps at which the collapse guard acted

    @property
    def miou(self) -> float:
        """Of the checkpoint that counts."""
        return float(self.metrics["miou"])

    def of_checkpoint(self, name: str) -> float | None:
        """mIoU of ``selected`` or ``last``, by the network that counts."""
        found = self.metrics["checkpoints"]
        row = found.get(f"{self.metrics['weights']} {name}")
        return None if row is None else float(row["miou"])

    @property
    def oracle(self) -> float:
        """The best mIoU on the test images among all states that were kept. Nobody may choose by it."""
        kept = [self.of_checkpoint("selected"), self.of_checkpoint("last"), *(row["miou"] for row in self.metrics["snapshots"])]
        return max(float(score) for score in kept if score is not None)

    @property
    def curve(self) -> dict[int, float]:
        """mIoU on the test images by step, of the snapshots."""
        return {int(row["step"]): float(row["miou"]) for row in self.metrics["snapshots"]}

    @property
    def labeled(self) -> int:
        """Images with labels, those of the selection slice among them."""
        counts = self.metrics["split"]["counts"]
        return int(counts["labeled"] + counts["selection"])


def read_results(plan: Plan) -> list[Result]:
    """All cells that are done, in the order of the plan.

    Raises:
        DataError: Two of them cannot be set side by side, or one is not of this plan; the message names both.
    """
    results = [_read(plan, cell) for cell in plan.cells() if (plan.folder(cell) / REPORTS / CONFUSIONS).is_file()]
    if not results:
        raise DataError(f"{plan.out} holds no finished cell. Run `cwbass compare` without --table first.")
    for one, other in pairwise(results):
        _check_comparable(one, other)
    for one, other in _neighbours(results, lambda cell: cell.group):
        _same("split", (one, one.metrics["split_hash"]), (other, other.metrics["split_hash"]))
    for one, other in _neighbours(results, lambda cell: cell.labels):
        _same(
            "number of labelled images", (one, one.labeled), (other, other.labeled), "The dataset or a list changed between them."
        )
    return results


def _neighbours(results: Sequence[Result], key: Callable[[Cell], str]) -> Iterator[tuple[Result, Result]]:
    """Each result, and the one after it among those of the same key."""
    for name in dict.fromkeys(key(result.cell) for result in results):
        yield from pairwise(result for result in results if key(result.cell) == name)


def _read(plan: Plan, cell: Cell) -> Result:
    folder, warmup = plan.folder(cell), plan.warmup_folder(cell)
    trained, stage = (warmup, "warmup") if cell.variant == SUPERVISED else (folder, "train")
    reports = folder / REPORTS
    _check_params(plan, cell, reports / "params.yaml")
    # a warm-up of no steps, from which no baseline went on, has no epochs
    before = _timings(warmup, warmup=True) if plan.length(cell.variant).warmup else []
    after = _timings(trained, warmup=False)
    if not after:
        raise DataError(f"{trained / TIMINGS} has no epoch of {cell.variant}. {_AGAIN}")
    return Result(
        cell=cell,
        folder=folder,
        metrics=_metrics(reports / "metrics.json", trained / SNAPSHOT_SCORES),
        images=PerImage.read(reports / CONFUSIONS),
        code=_code(_object(trained / RUN, "run")["run"]),
        step_seconds=statistics.median(row["step_seconds"] for row in after),
        train_seconds=sum(row["seconds"] for row in before + after),
        peak_mb=resources(trained / RESOURCES).get(stage, {}).get("peak_mb"),
        guarded=[int(row["step"]) for row in _rows(trained / HISTORY, "step") if row.get("incident") is not None],
    )


def _metrics(path: Path, snapshots: Path) -> dict[str, Any]:
    """Scores of a cell; those of its states as they were before the states were deleted, where it was scored again since."""
    found = _object(path, *_SCORES)
    if found["miou"] is None:
        raise DataError(f"{path} has no mIoU: no pixel of the test images is labelled. Mend their masks. {CHANGED_MASK}")
    if not found["snapshots"] and snapshots.is_file():
        found["snapshots"] = _rows(snapshots, "step", "miou")
    return found


def _code(run: Mapping[str, Any]) -> str:
    """Version of the package, and of each plugin."""
    plugins = [f"{key.removeprefix('plugin.')}+{value}" for key, value in run.items() if key.startswith("plugin.")]
    return " ".join([str(run["code"]), *plugins])


def _timings(folder: Path, *, warmup: bool) -> list[dict[str, Any]]:
    """Epochs of the warm-up, or of what came after it."""
    rows = _rows(folder / TIMINGS, "stage", "seconds", "step_seconds")
    return [row for row in rows if (row["stage"] == "warmup") == warmup]


def _object(path: Path, *keys: str) -> dict[str, Any]:
    return read_object(path, writer="cwbass compare", mend=_AGAIN, keys=keys)


def _rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    return read_rows(path, writer="cwbass compare", mend=_AGAIN, keys=keys)


def _check_params(plan: Plan, cell: Cell, path: Path) -> None:
    """What was scored must have been trained as the plan says: folders can be copied."""
    baseline = cell.variant == SUPERVISED
    planned = plan.warmup_params(cell) if baseline else plan.cell_params(cell)
    sections = {*TrainingSections.model_fields} if baseline else {*TrainingSections.model_fields, "method"}
    if lines := differences(_claims(load_params(read_params(path), Params), sections), _claims(planned, sections)):
        raise DataError("\n".join([f"{path} and {plan.out / PLAN} cannot stand side by side; there, and in the plan:", *lines]))


def _claims(params: Params, sections: set[str]) -> dict[str, Any]:
    return decisive(params.model_dump(mode="json", include=sections))


def _check_comparable(one: Result, other: Result) -> None:
    _same("protocol", (one, one.metrics["protocol"]), (other, other.metrics["protocol"]))
    _same("list of classes", (one, ", ".join(one.images.class_names)), (other, ", ".join(other.images.class_names)))
    _same("number of test images", (one, len(one.images.ids)), (other, len(other.images.ids)))
    for ours, theirs in zip(one.images.ids, other.images.ids, strict=True):
        _same("test image", (one, ours), (other, theirs))
    pixels, others = (each.images.matrices.sum(-1) for each in (one, other))  # [N, C] of the truth, whatever was predicted
    for image, index in np.argwhere(pixels != others)[:1]:
        name = one.images.class_names[index]
        ours, theirs = (f"{each[image, index]} pixels of {name}" for each in (pixels, others))
        _same(f"mask of test image {one.images.ids[image]}", (one, ours), (other, theirs), CHANGED_MASK)


def _same(what: str, one: tuple[Result, object], other: tuple[Result, object], mend: str = OWN_TEST_IMAGES) -> None:
    if one[1] != other[1]:
        raise DataError(
            f"{one[0].folder} has another {what} than {other[0].folder}: {one[1]} there, {other[1]} here. Their numbers cannot stand "
            f"side by side. {mend}"
        )
