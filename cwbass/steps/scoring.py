"""What step ``evaluate`` scores, on which images, and its table of scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cwbass.config import EvalConfig, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.base import DatasetSpec, Sample
from cwbass.data.manifest import Manifest
from cwbass.data.remote import local_dataset
from cwbass.errors import DataError, counted
from cwbass.evaluation.evaluate import OnImage, evaluate
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.metrics import EvalResult
from cwbass.progress import counting
from cwbass.registry.resolve import describe
from cwbass.steps.checkpoints import chosen_file, open_checkpoints, open_snapshots
from cwbass.training.checkpoint import Checkpoint
from cwbass.training.device import place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TestSet:
    """What is scored on."""

    samples: tuple[Sample, ...]
    root: Path
    spec: DatasetSpec
    split_hash: str | None  # None: not the test images of a split
    counts: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """The checkpoints of a path, by name; the first is the one that counts."""

    path: Path
    checkpoints: Mapping[str, Checkpoint]
    sha256: str  # of the checkpoint that counts
    prefix: str = ""  # of its rows in the table of scores

    @property
    def name(self) -> str:
        """Of the checkpoint that counts."""
        return next(iter(self.checkpoints))

    @property
    def chosen(self) -> Checkpoint:
        """The checkpoint that counts."""
        return self.checkpoints[self.name]

    def network(self, config: EvalConfig) -> str:
        """Name of the network that counts."""
        return self.chosen.network_name(config.weights)

    @property
    def trained_as_warmup(self) -> bool:
        """Whether its method is its run's for labelled images alone, as that of a supervised baseline is."""
        return self.chosen.method == self.chosen.run_params.warmup.name

    @property
    def folder(self) -> Path:
        """Where its other files lie."""
        return self.path if self.path.is_dir() else self.path.parent


def open_model(path: Path, prefix: str = "") -> Model:
    """The checkpoints of a file or folder.

    Raises:
        CheckpointError: There is none, or one is broken.
    """
    # Before it is read, not once it is scored: a training may write the next one meanwhile, which the scores are not of.
    sha256 = describe(chosen_file(path))[1]
    return Model(path, open_checkpoints(path), sha256, prefix)


class Scorer:
    """Scores networks on the test images; ``table`` has the main scores of those that are no snapshots, by name."""

    def __init__(self, data: TestSet, predictor: Predictor) -> None:
        self.data, self.predictor = data, predictor
        self.table: dict[str, dict[str, Any]] = {}

    def score_chosen(self, model: Model, on_image: OnImage) -> EvalResult:
        """All scores of the network that counts."""
        network = model.network(self.predictor.config)
        result = self._score(model.chosen, network, on_image, boundary=True)
        self.table[f"{model.prefix}{network} {model.name}"] = _headline(result)
        return result

    def score_others(self, *models: Model | None) -> None:
        """Let the table have every network of every checkpoint."""
        for model in filter(None, models):
            for name, checkpoint in model.checkpoints.items():
                for network in checkpoint.networks:
                    if (key := f"{model.prefix}{network} {name}") not in self.table:
                        self.table[key] = _headline(self._score(checkpoint, network))

    def score_snapshots(self, model: Model) -> list[dict[str, Any]]:
        """Main scores of the network that counts, as its run's snapshots have it."""
        network = model.network(self.predictor.config)
        snapshots = open_snapshots(model.path, model.chosen)
        return [{"step": each.step, **_headline(self._score(each, network))} for each in snapshots]

    def _score(
        self, checkpoint: Checkpoint, network: str, on_image: OnImage | None = None, *, boundary: bool = False
    ) -> EvalResult:
        net = place(checkpoint.network(network), self.predictor.device)
        with counting(f"{network} of {checkpoint.stage} at step {checkpoint.step}", len(self.data.samples)) as one_more:

            def seen(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
                if on_image is not None:
                    on_image(sample, image, mask, probs)
                one_more()

            return evaluate(
                net,
                self.data.samples,
                root=self.data.root,
                spec=self.data.spec,
                predictor=self.predictor,
                boundary=boundary,
                on_image=seen,
            )


def list_test_set(ours: Model, theirs: Model | None, manifest: Path | None, data_root: Path | None) -> TestSet:
    """The images that both are scored on, none of which they may have been trained on where there is a manifest."""
    if manifest is None:
        data = _whole_folder(ours.chosen, data_root)
    else:
        split = Manifest.read(manifest)
        root = data_root if data_root is not None else local_dataset(ours.chosen.run_params.data.root)
        _check_classes(ours.chosen, split.spec, str(manifest))
        ours.chosen.check_split(split.hash, ours.path, manifest, "test images")
        if theirs is not None:
            for each in theirs.checkpoints.values():
                each.check_split(split.hash, theirs.path, manifest, "test images")
        data = TestSet(split.test, root, split.spec, split.hash, split.counts, split.notes)
    return data if theirs is None else replace(data, notes=data.notes + _other_length(ours, theirs))


def _whole_folder(checkpoint: Checkpoint, data_root: Path | None) -> TestSet:
    """The test images of a dataset's own list, or else all that have masks."""
    if data_root is None:
        raise DataError("there is nothing to score on: give the split's manifest, or a folder with --data.")
    config = checkpoint.run_params.data.model_copy(update={"root": str(data_root)})
    listing = list_dataset(config, SplitConfig(), data_root)
    _check_classes(checkpoint, listing.spec, str(data_root))
    samples = listing.test or tuple(sample for sample in listing.train if sample.mask is not None)
    note = f"scored on {counted(len(samples), 'image')} of {data_root}, not on the split the model was trained with"
    logger.warning("%s: some of them may have been trained on", note)
    return TestSet(samples, data_root, listing.spec, None, {"test": len(samples)}, (note,))


def _check_classes(checkpoint: Checkpoint, spec: DatasetSpec, where: str) -> None:
    theirs = checkpoint.dataset.class_names
    if theirs != spec.class_names:
        raise DataError(
            f"{where} has classes {', '.join(spec.class_names)}; the checkpoint knows {', '.join(theirs)}. "
            "Scores need the same classes in the same order; see data.classes and data.merge."
        )


def _other_length(ours: Model, theirs: Model) -> tuple[str, ...]:
    """A note where a supervised baseline has not taken as many steps as the training: the gain is not the method's alone then."""
    one, other = ours.checkpoints.get("last"), theirs.checkpoints.get("last")
    if one is None or other is None or (one.stage, other.stage) != ("train", "baseline") or one.step == other.step:
        return ()
    note = f"The baseline has taken {other.step} steps and the training {one.step}: the gain is not the method's alone."
    logger.warning("%s If one of them was stopped, run the same command again.", note)
    return (note,)


def _headline(result: EvalResult) -> dict[str, Any]:
    return {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy, "ece": result.ece}
