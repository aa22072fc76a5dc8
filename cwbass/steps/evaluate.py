"""Step ``evaluate``: score checkpoints on the test split, once, and write the report.

Which checkpoint counts was decided on the selection slice, during training; the test split only
measures it. The other checkpoints are measured beside it, so that a reader sees what the choice
was worth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cwbass.config import EvalConfig, Section, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.base import DatasetSpec, Sample
from cwbass.data.manifest import Manifest
from cwbass.data.remote import local_dataset
from cwbass.errors import DataError, ParamsError, counted
from cwbass.evaluation.evaluate import OnImage
from cwbass.evaluation.evaluate import evaluate as score
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.metrics import EvalResult
from cwbass.evaluation.per_image import CONFUSIONS, PerImage
from cwbass.evaluation.probes import ProbeBook
from cwbass.evaluation.selection import ImageConfusions
from cwbass.evaluation.sweep import SWEEP, read_sweep
from cwbass.files import spare_params, write_whole
from cwbass.jsonfile import read_rows
from cwbass.progress import counting
from cwbass.pseudo_labels import threshold_map
from cwbass.reporting.gallery import GalleryItem
from cwbass.resolve import describe
from cwbass.steps.checkpoints import find_checkpoints, open_checkpoints, open_snapshots
from cwbass.steps.report import GALLERY, METRICS, SPEC, RunFiles, write_run_files
from cwbass.steps.train import LAST
from cwbass.steps.warmup import WARMUP
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint
from cwbass.training.device import place, scoring_device
from cwbass.training.flight import PROBES
from cwbass.training.history import TIMINGS
from cwbass.training.resume import RUN

logger = logging.getLogger(__name__)


class EvaluateParams(Section):
    """What evaluation depends on."""

    eval: EvalConfig = EvalConfig()


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Content of metrics.json, and where the report lies."""

    metrics: Mapping[str, Any]
    report: Path | None

    def to_dict(self) -> dict[str, Any]:
        """metrics.json, with the report's path."""
        return {**self.metrics, "report": None if self.report is None else str(self.report)}


@dataclass(frozen=True, slots=True)
class TestSet:
    """What is scored on."""

    samples: tuple[Sample, ...]
    root: Path
    spec: DatasetSpec
    split_hash: str | None  # None: not the test images of a split
    counts: Mapping[str, int]
    notes: tuple[str, ...]


def evaluate(
    params: EvaluateParams | None,
    *,
    checkpoint: Path,
    baseline: Path | None = None,
    sweep: Path | None = None,
    manifest: Path | None = None,
    data_root: Path | None = None,
    out_dir: Path | None = None,
    device: str = "auto",
    per_image: bool = False,
    telemetry: Telemetry = SILENT,
) -> EvalReport:
    """Score a checkpoint, and a baseline beside it, on the test split.

    Args:
        params: How to predict; None takes what the checkpoint was trained with.
        checkpoint: A file, the folder of a registered version, or a training folder (of the baseline: the warm-up's): its
            selected checkpoint counts where there is one, else the last, and all are listed, snapshots too.
        baseline: Likewise, of the supervised baseline, or of any other model; None compares with nothing.
        sweep: ``sweep.json`` of the warm-up, for the report; None takes the one beside the baseline or the checkpoint.
        manifest: The split; None scores all images with masks below ``data_root``.
        data_root: Folder of the dataset; None takes the checkpoint's.
        out_dir: Where metrics.json, the report and the plots go; None writes nothing.
        device: auto, cpu or cuda.
        per_image: Whether ``out_dir`` gets the confusion matrix of every image, to resample images from.
        telemetry: Told the scores, where they are those of a split's test images.

    Raises:
        CheckpointError: A checkpoint is broken, or belongs to another split than the manifest.
        DataError: The data or the sweep cannot be read, or the data has other classes than the checkpoint.
        ParamsError: ``out_dir`` holds files of others that would be written over.
    """
    if out_dir is not None:
        spare_params(out_dir, METRICS, SPEC, GALLERY)
        if any((out_dir / name).exists() for name in (RUN, LAST, WARMUP)):
            raise ParamsError(f"{out_dir} holds a training, whose history would be written over. Give another folder with --out.")
    ours = open_checkpoints(checkpoint)
    theirs = {} if baseline is None else open_checkpoints(baseline)
    chosen_name, chosen = next(iter(ours.items()))
    config = chosen.run_params.eval if params is None else params.eval
    data = _test_set(chosen, manifest, data_root)
    if manifest is not None and data.split_hash is not None:
        for path, each in ((checkpoint, chosen), *((baseline, each) for each in theirs.values())):
            each.check_split(data.split_hash, path, manifest, "test images")
    notes = data.notes + _other_length(ours, theirs)
    scorer = _Scorer(data, Predictor(config, *scoring_device(device, chosen.run_params.train.precision)))

    gallery = _Gallery(data, config.gallery)
    weights = chosen.network_name(config.weights)
    confusions = ImageConfusions(data.spec.num_classes, data.spec.ignore_index)

    def on_image(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        gallery.take(sample, image, mask, probs)
        if per_image:
            confusions.add(probs, mask)

    result = scorer.score(chosen, weights, on_image)
    table = {f"{weights} {chosen_name}": _headline(result)}
    metrics: dict[str, Any] = {
        **result.to_dict(data.spec.class_names),
        **dict.fromkeys(("baseline_miou", "baseline_method", "miou_gain")),  # where there is no baseline
        "split_hash": data.split_hash,
        "protocol": describe_protocol(config),
        "seed": chosen.seed,
        "method": chosen.method,
        "weights": weights,
        "checkpoint": chosen_name,
        "checkpoint_sha256": describe(find_checkpoints(checkpoint)[chosen_name])[1],
        "steps": chosen.step,
        "split": {"counts": dict(data.counts), "notes": list(notes)},
    }
    if theirs:
        base_name, base = next(iter(theirs.items()))
        base_weights = base.network_name(config.weights)
        base_result = scorer.score(base, base_weights, gallery.take_baseline)
        table[f"baseline {base_weights} {base_name}"] = _headline(base_result)
        _add_baseline(metrics, base_result, data.spec.class_names)
        metrics["baseline_method"] = base.method
        if base.method == base.run_params.warmup.name != "supervised":  # a supervised method of somebody's own
            metrics["baseline_supervised"] = True
    if out_dir is not None:
        _score_others(scorer, table, {"": ours, "baseline ": theirs})
        metrics["snapshots"] = [
            {"step": each.step, **_headline(scorer.score(each, weights, boundary=False))}
            for each in open_snapshots(checkpoint, chosen)
        ]
    metrics["checkpoints"] = dict(sorted(table.items()))
    telemetry.describe_run(
        data_version=data.split_hash or chosen.split_hash, params=chosen.params, model=chosen.run_params.model.label
    )
    if manifest is not None:
        telemetry.scored(metrics)
    if out_dir is None:
        return EvalReport(metrics, None)
    supervised = (baseline, theirs) if theirs and base.method == base.run_params.warmup.name else (None, {})
    files = RunFiles(
        metrics=metrics,
        history=_history(supervised, (checkpoint, ours)),
        gallery=gallery.items(_last_threshold(chosen)),
        spec=data.spec,
        params_text=chosen.params,
        probes=ProbeBook.read(drawn) if (drawn := _beside(PROBES, checkpoint)) else None,
        sweep=read_sweep(swept) if (swept := sweep or _beside(SWEEP, baseline, checkpoint)) else None,
    )
    report = write_run_files(files, out_dir)
    if per_image:
        ids = tuple(sample.id for sample in data.samples)
        images = PerImage(ids, data.spec.class_names, np.stack(confusions.matrices))
        write_whole(out_dir / CONFUSIONS, images.serialize())  # the last file: a comparison takes it for the end
    return EvalReport(metrics, report)


def describe_protocol(config: EvalConfig) -> str:
    """A short name under which numbers may be compared: how images were cut, scaled and mirrored, and what came after."""
    cut = "whole" if config.protocol == "whole" else f"slide:{config.window}/{config.stride}"
    scales = ",".join(f"{scale:g}" for scale in config.scales)
    options = ",".join(f"{name}={value}" for name, value in sorted(config.postprocess_options.items()))
    after = "" if config.postprocess is None else f" {config.postprocess}({options})"
    return f"{cut} scale:{scales}{' flip' if config.flip else ''}{after}"


class _Scorer:
    def __init__(self, data: TestSet, predictor: Predictor) -> None:
        self.data, self.predictor = data, predictor

    def score(
        self, checkpoint: Checkpoint, network: str, on_image: OnImage | None = None, *, boundary: bool = True
    ) -> EvalResult:
        net = place(checkpoint.network(network), self.predictor.device)
        with counting(f"{network} of {checkpoint.stage} at step {checkpoint.step}", len(self.data.samples)) as one_more:

            def seen(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
                if on_image is not None:
                    on_image(sample, image, mask, probs)
                one_more()

            return score(
                net,
                self.data.samples,
                root=self.data.root,
                spec=self.data.spec,
                predictor=self.predictor,
                boundary=boundary,
                on_image=seen,
            )


class _Gallery:
    """Keeps a few test images, evenly spread over the split, with what the networks made of them."""

    def __init__(self, data: TestSet, wanted: int) -> None:
        count = len(data.samples)
        self.ids = {data.samples[i * count // wanted].id for i in range(min(wanted, count))} if wanted else set()
        self.spec = data.spec
        self.seen: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor]] = {}
        self.baseline: dict[str, NDArray[np.uint8]] = {}

    def take(self, sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        if sample.id in self.ids:
            self.seen[sample.id] = (image, mask, probs.cpu())

    def take_baseline(self, sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        if sample.id in self.ids:
            self.baseline[sample.id] = probs.argmax(0).cpu().numpy().astype(np.uint8)

    def items(self, threshold: Tensor | None) -> list[GalleryItem]:
        """With a threshold, what the network would have kept as pseudo-labels is shown too."""
        items = []
        for name, (image, mask, probs) in self.seen.items():
            confidence, label = probs.max(0)
            pseudo = None
            if threshold is not None:
                kept = confidence > threshold_map(threshold, label)
                pseudo = torch.where(kept, label, self.spec.ignore_index).numpy().astype(np.uint8)
            items.append(
                GalleryItem(
                    title=name,
                    image=image,
                    truth=mask,
                    prediction=label.numpy().astype(np.uint8),
                    baseline=self.baseline.get(name),
                    pseudo_label=pseudo,
                    confidence=confidence.numpy(),
                )
            )
        return items


def _test_set(checkpoint: Checkpoint, manifest: Path | None, data_root: Path | None) -> TestSet:
    if manifest is not None:
        split = Manifest.read(manifest)
        root = data_root if data_root is not None else local_dataset(checkpoint.run_params.data.root)
        _check_classes(checkpoint, split.spec, str(manifest))
        return TestSet(split.test, root, split.spec, split.hash, split.counts, split.notes)
    if data_root is None:
        raise DataError("there is nothing to score on: give the split's manifest, or a folder with --data.")
    config = checkpoint.run_params.data.model_copy(update={"root": str(data_root)})
    listing = list_dataset(config, SplitConfig(), data_root)
    _check_classes(checkpoint, listing.spec, str(data_root))
    samples = listing.test or tuple(sample for sample in listing.train if sample.mask is not None)
    note = f"scored on {counted(len(samples), 'image')} of {data_root}, not on the split the model was trained with"
    logger.warning("%s: some of them may have been trained on", note)
    return TestSet(samples, data_root, listing.spec, None, {"test": len(samples)}, (note,))


def _score_others(scorer: _Scorer, table: dict[str, Any], groups: Mapping[str, Mapping[str, Checkpoint]]) -> None:
    """Add every network of every checkpoint to the table, as far as it is not there; groups are by prefix of their names."""
    for prefix, checkpoints in groups.items():
        for name, checkpoint in checkpoints.items():
            for network in checkpoint.networks:
                if (key := f"{prefix}{network} {name}") not in table:
                    table[key] = _headline(scorer.score(checkpoint, network, boundary=False))


def _check_classes(checkpoint: Checkpoint, spec: DatasetSpec, where: str) -> None:
    theirs = checkpoint.dataset.class_names
    if theirs != spec.class_names:
        raise DataError(
            f"{where} has classes {', '.join(spec.class_names)}; the checkpoint knows {', '.join(theirs)}. "
            "Scores need the same classes in the same order; see data.classes and data.merge."
        )


def _other_length(ours: Mapping[str, Checkpoint], theirs: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """A note where a supervised baseline has not taken as many steps as the training: the gain is not the method's alone then."""
    one, other = ours.get("last"), theirs.get("last")
    if one is None or other is None or (one.stage, other.stage) != ("train", "baseline") or one.step == other.step:
        return ()
    note = f"The baseline has taken {other.step} steps and the training {one.step}: the gain is not the method's alone."
    logger.warning("%s If one of them was stopped, run the same command again.", note)
    return (note,)


def _headline(result: EvalResult) -> dict[str, Any]:
    return {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy, "ece": result.ece}


def _add_baseline(metrics: dict[str, Any], baseline: EvalResult, class_names: Sequence[str]) -> None:
    metrics |= {f"baseline_{key}": score for key, score in baseline.scores().items()}
    metrics["miou_gain"] = metrics["miou"] - metrics["baseline_miou"]
    theirs = baseline.to_dict(class_names)["per_class"]
    for name, row in metrics["per_class"].items():
        row["baseline_iou"] = theirs[name]["iou"]
        row["baseline_boundary_iou"] = theirs[name]["boundary_iou"]


def _history(*groups: tuple[Path | None, Mapping[str, Checkpoint]]) -> list[dict[str, Any]]:
    """Rows of all stages of one run, with their timings where these lie beside the checkpoints."""
    rows: list[dict[str, Any]] = []
    for path, checkpoints in groups:
        if path is None or not checkpoints:
            continue
        timings = (path if path.is_dir() else path.parent) / TIMINGS
        mend = "Delete it: the report does without the times."
        timed = read_rows(timings, writer="cwbass train", mend=mend) if timings.is_file() else []
        times = {(row["stage"], row["step"]): row for row in timed}
        longest = max((each.history for each in checkpoints.values()), key=len)
        rows += [{**row, **times.get((row["stage"], row["step"]), {})} for row in longest]
    return rows


def _beside(name: str, *paths: Path | None) -> Path | None:
    """The first file of this name in the folder of a checkpoint, if there is one."""
    files = [(path if path.is_dir() else path.parent) / name for path in paths if path is not None]
    return next(filter(Path.is_file, files), None)


def _last_threshold(checkpoint: Checkpoint) -> Tensor | None:
    rows: Sequence[Mapping[str, Any]] = [row for row in checkpoint.history if row.get("threshold") is not None]
    return torch.tensor(rows[-1]["threshold"], dtype=torch.float32) if rows else None
