"""Methods by name. A new one is a file beside these and a line in ``METHODS``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cwbass.methods.base import BuildModel, Method, MethodConfig
from cwbass.methods.corrmatch import CorrMatch
from cwbass.methods.cps import Cps
from cwbass.methods.cw_bass import CwBass
from cwbass.methods.dssn import Dssn
from cwbass.methods.fixmatch import FixMatch
from cwbass.methods.mean_teacher import MeanTeacher
from cwbass.methods.mgd import Mgd
from cwbass.methods.offline import OfflineCwBass
from cwbass.methods.st_plus_plus import OfflineStPlusPlus, StPlusPlus
from cwbass.methods.supervised import Supervised
from cwbass.methods.unimatch import UniMatch
from cwbass.methods.unimatch_v2 import UniMatchV2

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "cw_bass": CwBass,
    "mean_teacher": MeanTeacher,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "unimatch_v2": UniMatchV2,
    "cps": Cps,
    "corrmatch": CorrMatch,
    "dssn": Dssn,
    "st_plus_plus": StPlusPlus,
    "mgd": Mgd,
}

# What learns from labels made offline, where a method's config has a ``retraining``.
OFFLINE: dict[str, type[Method]] = {
    "cw_bass": OfflineCwBass,
    "st_plus_plus": OfflineStPlusPlus,
}


def build_method(
    config: MethodConfig,
    build_model: BuildModel,
    *,
    num_classes: int,
    ignore_index: int,
    class_weight: Tensor | None = None,
    offline: bool = False,
) -> Method:
    """The method that ``config.name`` names, or its second stage; its config class has been checked by ``load_params``."""
    make: Any = (OFFLINE if offline else METHODS)[config.name]
    method: Method = make(config, build_model, num_classes=num_classes, ignore_index=ignore_index, class_weight=class_weight)
    return method
