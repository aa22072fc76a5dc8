"""One pass over a dataset: read, predict, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cwbass.data.base import DatasetSpec, Sample, check_same_size, read_image, read_mask
from cwbass.data.parallel import map_ahead
from cwbass.errors import DataError
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.metrics import EvalResult, Scores
from cwbass.world import ALONE, World

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # image [H, W, 3], mask [H, W]
OnImage = Callable[[Sample, NDArray[np.uint8], NDArray[np.uint8], Tensor], None]  # the last are probabilities, [C, H, W]

_READERS = 2
_READ_AHEAD = 4


def read_pair(sample: Sample, root: Path, spec: DatasetSpec) -> Pair:
    """Decode the image and the mask of a sample.

    Raises:
        DataError: One of the two is missing or broken.
    """
    if sample.mask is None:
        raise DataError(f"{sample.id}: has no mask, so it cannot be scored; leave it out of the list.")
    return read_image(root / sample.image), read_mask(root / sample.mask, spec)


def evaluate(
    net: nn.Module,
    samples: Sequence[Sample],
    *,
    root: Path,
    spec: DatasetSpec,
    predictor: Predictor,
    boundary: bool = True,
    on_image: OnImage | None = None,
    read: Callable[[Sample, Path, DatasetSpec], Pair] = read_pair,
    world: World = ALONE,
) -> EvalResult:
    """Score a network on every sample, each exactly once.

    Args:
        net: Images in [0, 255] to logits, on the predictor's device; run in eval mode and left as it was found.
        samples: What to score, in this order.
        root: Folder the samples' paths are relative to.
        spec: Classes, and what mask values mean.
        predictor: How to predict, and where counts are made.
        boundary: Whether to count boundary scores.
        on_image: Called with sample, image [H, W, 3], mask [H, W] and probabilities [C, H, W] on that device.
        read: Decodes a sample; called from other threads, ahead of the network.
        world: Processes that score together: each takes every n-th sample, and all get the same result.

    Raises:
        DataError: There are no samples, one cannot be read, or its image and mask differ in size.
    """
    if not samples:
        raise DataError("there are no images to score; check the split, or the list it was made from.")
    scores = Scores(spec.num_classes, spec.ignore_index, boundary=boundary, device=predictor.device)
    with eval_mode(net):
        own = samples[world.rank :: world.size]
        pairs = map_ahead(lambda sample: read(sample, root, spec), own, threads=_READERS, ahead=_READ_AHEAD)
        for sample, (image, mask) in zip(own, pairs, strict=True):
            check_same_size(sample, image.shape[:2], mask)
            probs = predictor.probs(net, image)
            scores.update(probs, torch.tensor(mask, device=predictor.device))
            if on_image is not None:
                on_image(sample, image, mask, probs)
    scores.add_up(world)
    return scores.result()


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in its own mode (some may be frozen in eval)."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
