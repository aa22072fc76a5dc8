"""Step ``measure``: what a training step costs here, so that methods can be given equal wall time or equal passes."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cwbass.comparison.budget import Cost, MethodCost
from cwbass.data.offline import OfflineStream
from cwbass.evaluation.inference import Predictor
from cwbass.methods.base import Method, Retraining
from cwbass.models.base import SegmentationNet
from cwbass.steps.second_stage import offline_stream, unlabeled_ids
from cwbass.steps.train import TrainParams
from cwbass.steps.training import check_network, network_factory, new_method, start_run
from cwbass.training.device import place
from cwbass.training.optim import build_optimizer
from cwbass.training.resume import Resume
from cwbass.training.run import Run, plan_steps
from cwbass.training.second_stage import write_pseudo_labels
from cwbass.training.stage import Stage

TIMED = 5  # epochs of as many steps; the one before them is not counted
LABELLED = 4  # images labelled offline to see what one takes


@dataclass
class EncodedImages:
    """How many images have gone through encoders, with a gradient and without."""

    with_gradient: int = 0
    without: int = 0


def measure(params: TrainParams, *, manifest: Path, data_root: Path, timed: bool = True) -> MethodCost:
    """Take a few real steps of ``params.method``, batches included, and leave nothing behind.

    Images through encoders are counted at one step; seconds are the median over epochs of others. What is measured between epochs
    of a training, on the selection slice, is no part of a step and not counted. Of the labels of a second stage a few are
    made, and stand for all.

    Args:
        params: Sections of a training.
        manifest: File of ``cwbass split``.
        data_root: Folder of the dataset.
        timed: Whether to take the steps for the seconds, which are None otherwise.

    Raises:
        ParamsError: A parameter, the weights or the device is wrong.
        DataError: The manifest or a file of the dataset is.
    """
    with tempfile.TemporaryDirectory(prefix="cwbass-measure-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        alone = params.model_copy(update={"train": params.train.model_copy(update={"checkpoint_uri": None, "probes": 0})})
        run = start_run("train", alone, manifest=manifest, data_root=data_root, out_dir=folder, work_dir=None, resume=Resume())
        cost = _measure(replace(run, manifest=replace(run.manifest, selection=())), params, folder, timed)  # nothing is scored
        run.keeper.finish({})  # waits for what is being written
        return cost


def _measure(run: Run, params: TrainParams, folder: Path, timed: bool) -> MethodCost:
    class_names = run.manifest.spec.class_names
    build = network_factory(params.model, class_names, folder / "weights")
    method = new_method(run, params.method, build)
    check_network(method.student, params, class_names, unlabeled=method.needs_unlabeled)
    place(method, run.device)
    step = _step_cost(run, params, method, folder, timed)
    if (retraining := params.method.retraining) is None:
        return MethodCost(step)
    retrained = place(new_method(run, params.method, build, offline=True), run.device)
    net = copy.deepcopy(method.student)  # as from a checkpoint: whole images have many sizes, and each would be compiled
    labelling, offline = _label(run, retraining, net, folder, learner=retrained)
    return MethodCost(step, _step_cost(run, params, retrained, folder, timed, offline), labelling)


def _step_cost(
    run: Run, params: TrainParams, method: Method, folder: Path, timed: bool, offline: OfflineStream | None = None
) -> Cost:
    """Of a step of training."""
    plan = plan_steps(run.train, run.manifest)
    name = "measure" if offline is None else "measure-offline"
    on_gpu = run.device.type == "cuda"

    def take(run: Run, kind: str, steps: int, epoch_steps: int) -> list[dict[str, Any]]:
        """Some steps; returns the timings of their epochs."""
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(run.device)
        optimizer = build_optimizer(method.trainable(), params.train.optimizer, batch_size=run.train.labeled_a_step)
        stage = Stage(run, f"{name}-{kind}", method, params.method.name, optimizer, out_dir=folder, offline=offline)
        schedule = replace(plan.schedule(0, steps), total=max(steps, plan.total), epoch_steps=epoch_steps)
        stage.train(schedule, checkpoint="measured.pt", best=None)
        return stage.history.timings

    plain = replace(run, train=run.train.model_copy(update={"compile": False}))  # compiled code counts nothing
    with counting_encoders(method) as images:
        take(plain, "images", 1, 1)
    epochs = take(run, "time", TIMED * (TIMED + 1), TIMED)[1:] if timed else []
    return Cost(
        seconds=statistics.median(row["step_seconds"] for row in epochs) if epochs else None,
        passes=images.with_gradient,
        passes_no_grad=images.without,
        device_mb=torch.cuda.max_memory_allocated(run.device) / 1e6 if on_gpu else None,
    )


def _label(run: Run, config: Retraining, net: SegmentationNet, folder: Path, *, learner: Method) -> tuple[Cost, OfflineStream]:
    """What it takes to rank and label all unlabelled images, and some that are labelled, as ``learner`` sees them.

    Ranking predicts every image with three networks, as ``eval`` says; labelling, once, as the second stage says.
    """
    unlabeled = run.manifest.unlabeled
    source = run.open_images(unlabeled)
    chosen = range(min(LABELLED, len(unlabeled)))
    ids = unlabeled_ids(run, chosen)
    labels = folder / "labels"

    def label(predictor: Predictor) -> tuple[float, int]:
        """Seconds, and images through the encoder."""
        started = time.perf_counter()
        with counting_encoders(net) as images:
            write_pseudo_labels(net, source, chosen, ids, labels, spec=run.manifest.spec, predictor=predictor)
        return time.perf_counter() - started, images.without

    net.eval()
    ranking = label(run.predictor)
    labelling = label(replace(run.predictor, config=config.prediction(run.eval)))
    share = len(unlabeled) / len(chosen)
    seconds, passes = (share * (3 * rank + once) for rank, once in zip(ranking, labelling, strict=True))
    return Cost(seconds, passes=0, passes_no_grad=passes), offline_stream(run, source, chosen, labels, learner)


@contextmanager
def counting_encoders(module: nn.Module) -> Iterator[EncodedImages]:
    """Inside, every image that any network in ``module`` encodes is counted."""
    seen = EncodedImages()
    networks = [part for part in module.modules() if isinstance(part, SegmentationNet)]

    def count(net: SegmentationNet) -> None:
        encode = net.encode
        learns = any(parameter.requires_grad for parameter in net.parameters())

        def counted(image: Tensor) -> list[Tensor]:
            if torch.is_grad_enabled() and learns:
                seen.with_gradient += image.shape[0]
            else:
                seen.without += image.shape[0]
            return encode(image)

        net.__dict__["encode"] = counted  # in front of the class's own

    for net in networks:
        count(net)
    try:
        yield seen
    finally:
        for net in networks:
            del net.__dict__["encode"]
