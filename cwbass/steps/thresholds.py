"""A sweep over thresholds on the selection slice: written after the warm-up, read by the report and by ``cwbass thresholds``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cwbass.data.manifest import Manifest
from cwbass.data.remote import local_dataset
from cwbass.errors import CheckpointError, DataError
from cwbass.evaluation.evaluate import evaluate
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.sweep import SWEEP, Sweep, read_sweep
from cwbass.files import file_sha256, write_whole
from cwbass.training.checkpoint import load_checkpoint
from cwbass.training.device import place, scoring_device
from cwbass.training.run import Run
from cwbass.world import ALONE, World


def write_sweep(run: Run, checkpoint: Path) -> None:
    """Measure a checkpoint's network on the run's selection slice, and write ``sweep.json`` beside it; nothing without a slice.

    Every process of the run calls it. What it writes follows from the checkpoint, so a run that goes on writes the same again.
    """
    if not run.manifest.selection:
        return
    sweep = _measure(checkpoint, run.manifest, run.data_root, run.predictor, run.world)
    if run.world.main:
        write_whole(checkpoint.parent / SWEEP, f"{json.dumps(sweep.to_dict())}\n".encode())


def thresholds(
    checkpoint: Path,
    *,
    manifest: Path | None = None,
    data_root: Path | None = None,
    target: float | None = None,
    device: str = "auto",
) -> Sweep:
    """The sweep that was written beside a checkpoint; or, with a manifest, one that is measured now.

    Args:
        checkpoint: A file.
        manifest: Split whose selection slice is looked at; None reads ``sweep.json`` and opens no image.
        data_root: Folder of the dataset; None takes the checkpoint's.
        target: Precision asked of kept labels; None leaves it as it is.
        device: auto, cpu or cuda.

    Raises:
        CheckpointError: The sweep beside it is of another checkpoint, or the checkpoint of another split.
        DataError: There is no sweep, or no selection slice.
    """
    saved = load_checkpoint(checkpoint)
    if manifest is None:
        sweep = read_sweep(checkpoint.parent / SWEEP)
        if sweep.source.get("checkpoint_sha256") != file_sha256(checkpoint):
            raise CheckpointError(
                f"{checkpoint.parent / SWEEP} is of another checkpoint than {checkpoint.name}. Measure this one: pass --manifest."
            )
    else:
        split = Manifest.read(manifest)
        saved.check_split(split.hash, checkpoint, manifest, "selection slice")
        if not split.selection:
            raise DataError(f"{manifest} has no selection slice to measure thresholds on. Raise split.selection and split again.")
        params = saved.run_params
        predictor = Predictor(params.eval, *scoring_device(device, params.train.precision))
        root = local_dataset(params.data.root) if data_root is None else data_root
        sweep = _measure(checkpoint, split, root, predictor)
    return sweep if target is None else replace(sweep, rule=replace(sweep.rule, target=target))


def _measure(checkpoint: Path, split: Manifest, root: Path, predictor: Predictor, world: World = ALONE) -> Sweep:
    saved = load_checkpoint(checkpoint)
    found = evaluate(
        place(saved.network(), predictor.device),
        split.selection,
        root=root,
        spec=split.spec,
        predictor=predictor.network_alone,
        boundary=False,
        world=world,
    )
    source = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_sha256(checkpoint),
        "network": saved.networks[-1],
        "step": saved.step,
        "split_hash": split.hash,
        "images": found.images,
    }
    return Sweep(split.spec.class_names, found.reliability, source)
