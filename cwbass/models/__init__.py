"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from cwbass.config import ModelConfig
from cwbass.errors import ParamsError
from cwbass.models.base import SegmentationNet
from cwbass.plugins import load_plugins

# Networks that smp does not have: one file and one line here, {"my_net": MyNet}.
MODELS: dict[str, Callable[[ModelConfig, Sequence[str]], SegmentationNet]] = {}


def build_model(config: ModelConfig, class_names: Sequence[str]) -> SegmentationNet:
    """The network of ``config`` with random weights: one of ``MODELS``, or else smp's of that name.

    Args:
        config: Architecture, encoder, normalisation.
        class_names: Of the dataset, in the order of the logits. [C].

    Raises:
        ParamsError: The architecture or encoder is unknown, or an option does not fit it.
    """
    load_plugins()
    if (own := MODELS.get(config.arch)) is not None:
        return own(config, class_names)
    # smp and timm take seconds to load, and parameters are read without them
    from cwbass.models.smp_net import ARCHITECTURES, SmpNet

    if config.arch not in ARCHITECTURES:
        known = sorted((*ARCHITECTURES, *MODELS))
        near = difflib.get_close_matches(config.arch, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ParamsError(f"model.arch is {config.arch!r}; choose one of {', '.join(known)}.{hint}")
    return SmpNet(config, class_names)
