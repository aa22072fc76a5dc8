"""Methods by name. A new one is a file beside these and a line in ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cwbass.methods.base import Method, MethodConfig
from cwbass.methods.cw_bass import CwBass
from cwbass.methods.supervised import Supervised
from cwbass.models.base import SegmentationNet

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "cw_bass": CwBass,
}


def build_method(
    config: MethodConfig,
    build_model: Callable[[], SegmentationNet],
    *,
    num_classes: int,
    ignore_index: int,
    class_weight: Tensor | None = None,
) -> Method:
    """The method that ``config.name`` names; its config class has been checked by ``load_params``."""
    make: Any = METHODS[config.name]
    method: Method = make(config, build_model, num_classes=num_classes, ignore_index=ignore_index, class_weight=class_weight)
    return method
