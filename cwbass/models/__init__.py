"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable

from cwbass.config import ModelConfig
from cwbass.models.base import SegmentationNet

# Networks that smp does not have: one file and one line here, {"my_net": MyNet}.
MODELS: dict[str, Callable[[ModelConfig, int], SegmentationNet]] = {}


def build_model(config: ModelConfig, num_classes: int) -> SegmentationNet:
    """The network of ``config`` with random weights: one of ``MODELS``, or else smp's of that name.

    Args:
        config: Architecture, encoder, normalisation.
        num_classes: C.

    Raises:
        ParamsError: The architecture or encoder is unknown, or an option does not fit it.
    """
    from cwbass.models.smp_net import SmpNet  # smp and timm take seconds to load, and parameters are read without them

    return MODELS.get(config.arch, SmpNet)(config, num_classes)
