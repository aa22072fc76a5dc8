"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from cwbass.config import ModelConfig
from cwbass.errors import ParamsError
from cwbass.models.base import SegmentationNet
from cwbass.plugins import Registry, load_plugins

# Networks that smp does not have: one file and one line here, {"my_net": MyNet}.
MODELS: Registry[Callable[[ModelConfig, Sequence[str]], SegmentationNet]] = Registry()


def build_model(config: ModelConfig, class_names: Sequence[str]) -> SegmentationNet:
    """The network of ``config`` with random weights: one of ``MODELS``, or else smp's of that name.

    Args:
        config: Architecture, encoder, normalisation.
        class_names: Of the dataset, in the order of the logits. [C].

    Raises:
        ParamsError: The architecture or encoder is unknown, or an option does not fit it; or both smp and a plugin have that name.
    """
    load_plugins()
    # smp and timm take seconds to load, and parameters are read without them
    from cwbass.models.smp_net import ARCHITECTURES, SmpNet

    if (own := MODELS.get(config.arch)) is not None:
        if config.arch in ARCHITECTURES:
            raise ParamsError(
                f"model.arch is {config.arch!r}, a network of segmentation-models-pytorch that {own.__module__} registers too. "
                "Register that one under another name, and name it in model.arch."
            )
        return own(config, class_names)
    if config.arch not in ARCHITECTURES:
        known = sorted((*ARCHITECTURES, *MODELS))
        near = difflib.get_close_matches(config.arch, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ParamsError(f"model.arch is {config.arch!r}; choose one of {', '.join(known)}.{hint}")
    return SmpNet(config, class_names)
