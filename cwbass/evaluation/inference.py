"""Probabilities of an image: whole or by sliding window, averaged over scales and mirror images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import EvalConfig
from cwbass.errors import ParamsError, one_line
from cwbass.evaluation import postprocessed
from cwbass.pseudo_labels import probabilities

_WINDOWS_AT_ONCE = 4
_FLOOR = 0.01  # least weight of a window's pixel, so that the frame of the image is covered too


@dataclass(frozen=True, slots=True)
class Predictor:
    """How images are predicted, where and in which precision, by any network.

    Args:
        config: Protocol, scales, flip, and the step after the probabilities.
        device: Where the networks are.
        autocast_dtype: Lower precision of their matrix products; None is float32.
    """

    config: EvalConfig
    device: torch.device
    autocast_dtype: torch.dtype | None

    @property
    def network_alone(self) -> Predictor:
        """One pass of the network: no mirror image, no step after the probabilities, and of several scales the middle one.

        Labels made while training have no more, nor may what measures them.
        """
        scales = self.config.scales
        middle = math.prod(scales) ** (1 / len(scales))
        nearest = min(scales, key=lambda scale: (round(abs(math.log(scale / middle)), 9), -scale))
        plain = {"flip": False, "scales": [nearest], "postprocess": None, "postprocess_options": {}}
        return replace(self, config=self.config.model_copy(update=plain))

    def probs(self, net: nn.Module, image: NDArray[np.uint8]) -> Tensor:
        """:func:`predict_probs` of a decoded image, and what ``config.postprocess`` makes of them.

        Args:
            net: On ``device``, in eval mode.
            image: RGB. [H, W, 3] uint8.

        Returns:
            [C, H, W] float32 on ``device``.

        Raises:
            ParamsError: The GPU's memory does not suffice for the image.
        """
        try:
            # A permuted [1, H, W, 3] tensor already lies in memory as channels_last.
            batch = torch.tensor(image, device=self.device)[None].permute(0, 3, 1, 2)
            with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                probs = predict_probs(net, batch, self.config)[0]
            with torch.inference_mode():
                return postprocessed(probs, batch[0], self.config)
        except torch.OutOfMemoryError as error:
            height, width = image.shape[:2]
            raise ParamsError(
                f"the GPU's memory does not suffice for an image of {width}x{height} ({one_line(error, 200)}). Set eval.protocol: "
                "slide, with an eval.window that fits, lower eval.scales, or use the CPU."
            ) from error


@torch.inference_mode()
def predict_probs(net: nn.Module, image: Tensor, config: EvalConfig) -> Tensor:
    """Class probabilities at the image's own size.

    Args:
        net: Images in [0, 255] to logits of the same height and width, in eval mode.
        image: One image of any size. [1, 3, H, W] uint8.
        config: Protocol, window and stride (pixels of the scaled image), scales, flip.

    Returns:
        Mean over all views; each pixel sums to 1. [1, C, H, W] float32; channels_last where the logits are and classes are many.
    """
    size = (image.shape[2], image.shape[3])
    total: Tensor | None = None
    for scale in config.scales:
        scaled = _resize(image, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), antialias=True)
        for mirror in (False, True) if config.flip else (False,):
            view = _probs(net, scaled.flip(-1), config, size).flip(-1) if mirror else _probs(net, scaled, config, size)
            total = view if total is None else total.add_(view)
    assert total is not None, "there is a scale"
    views = len(config.scales) * (2 if config.flip else 1)
    return total if views == 1 else total.div_(views)


def _probs(net: nn.Module, view: Tensor, config: EvalConfig, size: tuple[int, int]) -> Tensor:
    """Probabilities of one view, at the size of the original. [1, C, H, W] float32."""
    logits = net(view).float() if config.protocol == "whole" else _slide(net, view, config.window, config.stride)
    return probabilities(_resize(logits, size, antialias=False))


def _slide(net: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Logits of overlapping windows, blended. [1, 3, H, W] -> [1, C, H, W] float32.

    Windows stay inside the image: the last of a row is moved back, and an image smaller than the
    window is one window. A pixel counts most in the middle of a window, where the network sees
    most of what is around it.
    """
    rows, columns = image.shape[2:]
    height, width = min(window, rows), min(window, columns)
    weight = torch.outer(_hann(height), _hann(width)).to(image.device)  # [h, w]
    corners = [(y, x) for y in _starts(rows, height, stride) for x in _starts(columns, width, stride)]
    total, weights = image.new_zeros(()), weight.new_zeros(rows, columns)
    for first in range(0, len(corners), _WINDOWS_AT_ONCE):
        batch = corners[first : first + _WINDOWS_AT_ONCE]
        logits = net(torch.cat([image[..., y : y + height, x : x + width] for y, x in batch])).float()  # [B, C, h, w]
        if first == 0:
            total = logits.new_zeros(1, logits.shape[1], rows, columns)
        for (y, x), one in zip(batch, logits, strict=True):
            total[0, :, y : y + height, x : x + width] += one * weight
            weights[y : y + height, x : x + width] += weight
    return total / weights


def _starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover ``length`` pixels; the last one ends at the edge."""
    return [*range(0, length - window, stride), length - window]


def _hann(length: int) -> Tensor:
    """A smooth weight, symmetric, 1 in the middle and never below the floor. [length] float32."""
    phase = (torch.arange(length) + 0.5) * (math.pi / length)
    return phase.sin().square().clamp(min=_FLOOR)


def _resize(x: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    if (x.shape[2], x.shape[3]) == size:
        return x
    return F.interpolate(x.float(), size, mode="bilinear", align_corners=False, antialias=antialias)
