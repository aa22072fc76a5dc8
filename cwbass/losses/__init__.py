"""Pure tensor functions, one idea a file: tensors in, a tensor out.

The loss on labelled images is by name, for every method and the baseline; a new one is a file beside these and a line in
``LABELED_LOSSES``. An entry is called as ``supervised_cross_entropy`` is, with the same keywords, and gives what that
gives. What it takes beside them by keyword alone, ``train.loss.options`` may give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cwbass.config import LossConfig, keyword_options
from cwbass.errors import ParamsError
from cwbass.losses.supervised import supervised_cross_entropy
from cwbass.plugins import Registry

LabeledLoss = Callable[..., Tensor]

LABELED_LOSSES: Registry[LabeledLoss] = Registry({"cross_entropy": supervised_cross_entropy})

GIVEN = ("ignore_index", "class_weight", "hard", "world")  # by the method, to every entry


def labeled_loss(config: LossConfig) -> LabeledLoss:
    """The loss that ``config.name`` names, with its options.

    What is returned raises ParamsError where the entry gives something else than one number, or one without a gradient.
    """
    entry = LABELED_LOSSES[config.name]
    options = keyword_options(entry, config.options)

    def loss(logits: Tensor, mask: Tensor, **given: Any) -> Tensor:
        found = entry(logits, mask, **given, **options)
        if not isinstance(found, Tensor) or found.ndim or not found.is_floating_point():
            seen = f"shape {list(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise ParamsError(
                f"train.loss: {config.name} gives {seen}; a loss is one number, [] float. Mend it, or name another one."
            )
        if logits.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
            raise ParamsError(
                f"train.loss: {config.name} gives a number that has no gradient, and nothing would be learnt from labels. "
                "Make it of the logits, without argmax or detach, or name another one."
            )
        return found

    return loss
