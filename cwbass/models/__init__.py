"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable

from cwbass.config import ModelConfig
from cwbass.models.base import SegmentationNet
from cwbass.models.smp_net import ARCHITECTURES, SmpNet

# A network smp does not have is one file and one line here: {"my_net": MyNet}.
MODELS: dict[str, Callable[[ModelConfig, int], SegmentationNet]] = {name: SmpNet for name in ARCHITECTURES}


def build_model(config: ModelConfig, num_classes: int) -> SegmentationNet:
    """The network of ``config`` with random weights; ``SmpNet`` answers unknown names.

    Args:
        config: Architecture, encoder, normalisation.
        num_classes: C.
    """
    return MODELS.get(config.arch, SmpNet)(config, num_classes)
