"""Step ``evaluate``: score checkpoints on the test split, once, and write the report.

Which checkpoint counts was decided on the selection slice, during training; the test split only
measures it. The other checkpoints are measured beside it, so that a reader sees what the choice
was worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cwbass.config import EvalConfig, Section
from cwbass.data.base import Sample, spread
from cwbass.errors import ParamsError
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.metrics import EvalResult
from cwbass.evaluation.per_image import CONFUSIONS, PerImage
from cwbass.evaluation.probes import ProbeBook
from cwbass.evaluation.selection import confusion_of
from cwbass.evaluation.statistics import draw_images, images_that_count, mean_over_classes, overlaps, percentiles, resampled_iou
from cwbass.evaluation.sweep import SWEEP, read_sweep
from cwbass.files import spare_params, write_whole
from cwbass.jsonfile import read_rows
from cwbass.pixels import highest
from cwbass.pseudo_labels import threshold_map
from cwbass.reporting.gallery import GalleryItem
from cwbass.steps.report import GALLERY, METRICS, SPEC, RunFiles, write_run_files
from cwbass.steps.scoring import Model, Scorer, TestSet, list_test_set, open_model
from cwbass.steps.train import LAST
from cwbass.steps.warmup import WARMUP
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint
from cwbass.training.device import scoring_device
from cwbass.training.flight import PROBES
from cwbass.training.history import TIMINGS
from cwbass.training.resume import RUN


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
        manifest: The split; None scores the test images that ``data_root`` names, else all with masks.
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
    ours = open_model(checkpoint)
    theirs = None if baseline is None else open_model(baseline, prefix="baseline ")
    chosen = ours.chosen
    config = chosen.run_params.eval if params is None else params.eval
    data = list_test_set(ours, theirs, manifest, data_root)
    scorer = Scorer(data, Predictor(config, *scoring_device(device, chosen.run_params.train.precision)))
    gallery = _Gallery(data, config.gallery)
    matrices: list[NDArray[np.int64]] = []  # of each image, [C, C], where they are asked for
    counts, baseline_counts = [], []  # of each image, [2, C]

    def on_image(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        gallery.take(sample, image, mask, probs)
        if per_image or theirs is not None:
            confusion = confusion_of(probs, mask, data.spec.ignore_index)
            counts.append(overlaps(confusion))
            matrices.extend([confusion] if per_image else ())

    def on_baseline(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        gallery.take_baseline(sample, probs)
        baseline_counts.append(overlaps(confusion_of(probs, mask, data.spec.ignore_index)))

    metrics = _metrics(scorer.score_chosen(ours, on_image), ours, data, config)
    if theirs is not None:
        _add_baseline(metrics, scorer.score_chosen(theirs, on_baseline), theirs, data.spec.class_names)
        add_intervals(metrics, np.stack(counts), np.stack(baseline_counts))
    if out_dir is not None:  # the report shows them
        scorer.score_others(ours, theirs)
        metrics["snapshots"] = scorer.score_snapshots(ours)
    metrics["checkpoints"] = dict(sorted(scorer.table.items()))
    telemetry.describe_run(
        data_version=data.split_hash or chosen.split_hash, params=chosen.params, model=chosen.run_params.model.label
    )
    if manifest is not None:
        telemetry.scored(metrics)
    if out_dir is None:
        return EvalReport(metrics, None)
    (out_dir / CONFUSIONS).unlink(missing_ok=True)  # those of earlier scores
    report = write_run_files(_run_files(metrics, ours, theirs, gallery, sweep), out_dir)
    if per_image:
        ids = tuple(sample.id for sample in data.samples)
        images = PerImage(ids, data.spec.class_names, np.stack(matrices))
        write_whole(out_dir / CONFUSIONS, images.serialize())  # the last file: a comparison takes it for the end
    return EvalReport(metrics, report)


def describe_protocol(config: EvalConfig) -> str:
    """A short name under which numbers may be compared: how images were cut, scaled and mirrored, and what came after."""
    cut = "whole" if config.protocol == "whole" else f"slide:{config.window}/{config.stride}"
    scales = ",".join(f"{scale:g}" for scale in config.scales)
    options = ",".join(f"{name}={value}" for name, value in sorted(config.postprocess_options.items()))
    after = "" if config.postprocess is None else f" {config.postprocess}({options})"
    return f"{cut} scale:{scales}{' flip' if config.flip else ''}{after}"


class _Gallery:
    """Keeps a few test images, evenly spread over the split, with what the networks made of them."""

    def __init__(self, data: TestSet, wanted: int) -> None:
        self.ids = {sample.id for sample in spread(data.samples, wanted)}
        self.spec = data.spec
        self.seen: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor]] = {}
        self.baseline: dict[str, NDArray[np.uint8]] = {}

    def take(self, sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        if sample.id in self.ids:
            self.seen[sample.id] = (image, mask, probs.cpu())

    def take_baseline(self, sample: Sample, probs: Tensor) -> None:
        if sample.id in self.ids:
            self.baseline[sample.id] = highest(probs)[1].cpu().numpy().astype(np.uint8)

    def items(self, threshold: Tensor | None) -> list[GalleryItem]:
        """With a threshold, what the network would have kept as pseudo-labels is shown too."""
        items = []
        for name, (image, mask, probs) in self.seen.items():
            confidence, label = highest(probs)
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


def _metrics(result: EvalResult, model: Model, data: TestSet, config: EvalConfig) -> dict[str, Any]:
    """metrics.json of a model that is alone, but for the table of scores."""
    chosen = model.chosen
    return {
        **result.to_dict(data.spec.class_names),
        **dict.fromkeys(("baseline_miou", "baseline_method", "miou_gain")),
        "split_hash": data.split_hash,
        "protocol": describe_protocol(config),
        "seed": chosen.seed,
        "method": chosen.method,
        "weights": model.network(config),
        "checkpoint": model.name,
        "checkpoint_sha256": model.sha256,
        "steps": chosen.step,
        "split": {"counts": dict(data.counts), "notes": list(data.notes)},
    }


def _add_baseline(metrics: dict[str, Any], result: EvalResult, baseline: Model, class_names: Sequence[str]) -> None:
    metrics |= {f"baseline_{key}": score for key, score in result.scores().items()}
    metrics["miou_gain"] = metrics["miou"] - metrics["baseline_miou"]
    theirs = result.to_dict(class_names)["per_class"]
    for name, row in metrics["per_class"].items():
        row["baseline_iou"] = theirs[name]["iou"]
        row["baseline_boundary_iou"] = theirs[name]["boundary_iou"]
    metrics["baseline_method"] = baseline.chosen.method
    if baseline.trained_as_warmup and baseline.chosen.method != "supervised":  # a supervised method of somebody's own
        metrics["baseline_supervised"] = True


def add_intervals(metrics: dict[str, Any], ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> None:
    """How sure the gains are, as far as test images go: 95 % of a paired bootstrap of these two networks.

    Args:
        metrics: With the baseline's scores.
        ours: Overlaps of each image. [N, 2, C].
        theirs: Likewise.
    """
    draws = draw_images(len(ours))
    iou, other = resampled_iou(ours, draws), resampled_iou(theirs, draws)
    gains = mean_over_classes(iou) - mean_over_classes(other)
    metrics["miou_gain_interval"] = percentiles(gains) if len(ours) > 1 else None
    for row, gain, images in zip(metrics["per_class"].values(), (iou - other).T, images_that_count(ours, theirs), strict=True):
        row["iou_gain_interval"] = percentiles(gain) if images > 1 else None


def _run_files(metrics: Mapping[str, Any], ours: Model, theirs: Model | None, gallery: _Gallery, sweep: Path | None) -> RunFiles:
    """All that the report shows; what is not in the checkpoints lies beside them."""
    probes = _beside(PROBES, ours)
    swept = sweep or _beside(SWEEP, theirs, ours)
    return RunFiles(
        metrics=metrics,
        history=_history(theirs if theirs is not None and theirs.trained_as_warmup else None, ours),
        gallery=gallery.items(_last_threshold(ours.chosen)),
        spec=gallery.spec,
        params_text=ours.chosen.params,
        probes=None if probes is None else ProbeBook.read(probes),
        sweep=None if swept is None else read_sweep(swept),
    )


def _history(*stages: Model | None) -> list[dict[str, Any]]:
    """Rows of all stages of one run, with their timings where these lie beside the checkpoints."""
    rows: list[dict[str, Any]] = []
    for model in filter(None, stages):
        timings = model.folder / TIMINGS
        mend = "Delete it: the report does without the times."
        keys = ("stage", "step")
        timed = read_rows(timings, writer="cwbass train", mend=mend, keys=keys) if timings.is_file() else []
        times = {(row["stage"], row["step"]): row for row in timed}
        longest = max((each.history for each in model.checkpoints.values()), key=len)
        rows += [{**row, **times.get((row["stage"], row["step"]), {})} for row in longest]
    return rows


def _beside(name: str, *models: Model | None) -> Path | None:
    """The first file of this name in the folder of a model, if there is one."""
    return next(filter(Path.is_file, (model.folder / name for model in filter(None, models))), None)


def _last_threshold(checkpoint: Checkpoint) -> Tensor | None:
    """That of the checkpoint's own stage: a retraining has none, and its history begins with the rows of the stages before."""
    own = (row.get("threshold") for row in checkpoint.history if row["stage"] == checkpoint.stage)
    found = [threshold for threshold in own if threshold is not None]
    return torch.tensor(found[-1], dtype=torch.float32) if found else None
