"""Pure tensor functions, one idea a file: tensors in, a tensor out.

The loss on labelled images is by name, for every method and the baseline; a new one is a file beside these and a line in
``LABELED_LOSSES``. An entry is called as ``supervised_cross_entropy`` is, with the same keywords, and gives what that
gives. What it takes beside them by keyword alone, ``train.loss.options`` may give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from cwbass.config import LossConfig, keyword_options
from cwbass.losses.supervised import supervised_cross_entropy
from cwbass.plugins import Registry

LabeledLoss = Callable[..., Tensor]

LABELED_LOSSES: Registry[LabeledLoss] = Registry({"cross_entropy": supervised_cross_entropy})

_GIVEN = ("ignore_index", "class_weight", "hard", "world")  # by the method, to every entry


def labeled_loss(config: LossConfig) -> LabeledLoss:
    """The loss that ``config.name`` names, with its options."""
    entry = LABELED_LOSSES[config.name]
    return partial(entry, **keyword_options(entry, config.options))


def foreign_options(config: LossConfig) -> list[str]:
    """Options that the loss does not take, or that are not for parameters to give."""
    taken = keyword_options(LABELED_LOSSES[config.name], config.options)
    return [name for name in config.options if name not in taken or name in _GIVEN]
