"""Feature maps between encoder and decoder: batches of them, and channels that are left out.

Which channels is drawn for the whole batch of all processes, from the step's own generator: several
processes then drop what one would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cwbass.types import Progress, sent

Features = list[Tensor]


def join_features(*batches: Features) -> Features:
    """One batch of several; each is what ``SegmentationNet.encode`` gives."""
    return [torch.cat(maps) for maps in zip(*batches, strict=True)]


def rows_of(features: Features, start: int, stop: int | None = None) -> Features:
    """Some images of a batch."""
    return [each[start:stop] for each in features]


def drop_channels(features: Features, *, rate: float, progress: Progress) -> Features:
    """Each channel of each map of each image is left out with a probability; the others grow to make up for it.

    Args:
        features: Of this process's images. [B, C, h, w] each; what is no map (a token, an empty size) stays as it is.
        rate: Probability, in [0, 1).
        progress: Generator and processes.

    Source:
        Feature perturbation of UniMatch, arXiv:2208.09910: Dropout2d of 0.5 on what the decoder is given.
    """
    return [_scale(each, (_draw(each, progress) >= rate) / (1 - rate), progress) for each in features]


def complementary_channels(first: Features, second: Features, *, share: float, progress: Progress) -> tuple[Features, Features]:
    """Two views of the same images get halves of the channels that make up the whole.

    A channel is doubled in one view and left out of the other, by the toss of a coin; ``share`` of the images,
    drawn anew each time, keep all channels in both views.

    Args:
        first: One view's. [B, C, h, w] each, of this process.
        second: The other's, of the same shapes.
        share: In [0, 1]; rounded down to whole images of the whole batch.
        progress: Generator and processes.

    Source:
        Complementary dropout of UniMatch V2, arXiv:2410.10777: m in {0, 2} ** C and 2 - m.
    """
    batch = first[-1].shape[0] * progress.world.size
    whole = torch.randperm(batch, generator=progress.generator)[: int(batch * share)]
    one, other = [], []
    for a, b in zip(first, second, strict=True):
        factor = (_draw(a, progress) >= 0.5) * 2.0
        if len(factor):
            factor[whole] = 1.0
        one.append(_scale(a, factor, progress))
        other.append(_scale(b, 2.0 - factor, progress))
    return one, other


def deepest(features: Features) -> Tensor:
    """The last map. [B, C, h, w]."""
    return [each for each in features if each.dim() == 4][-1]


def _is_map(each: Tensor) -> bool:
    return each.dim() == 4 and each.numel() > 0


def _draw(each: Tensor, progress: Progress) -> Tensor:
    """A number in [0, 1) for each channel of each image of the whole batch; for what is no map, none. [B, C] on the CPU."""
    batch = each.shape[0] * progress.world.size if _is_map(each) else 0
    return torch.rand(batch, each.shape[1], generator=progress.generator)


def _scale(each: Tensor, factor: Tensor, progress: Progress) -> Tensor:
    if not _is_map(each):
        return each
    return each * sent(progress.world.own(factor), each).to(each.dtype)[:, :, None, None]
