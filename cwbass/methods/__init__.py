"""Methods by name. A new one is a file beside these and a line in ``METHODS``."""

from __future__ import annotations

from typing import Any

from cwbass.errors import ParamsError
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
from cwbass.plugins import Registry

METHODS: Registry[type[Method]] = Registry(
    {
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
)

# What learns from labels made offline, where a method's config has a ``retraining``.
OFFLINE: Registry[type[Method]] = Registry({"cw_bass": OfflineCwBass, "st_plus_plus": OfflineStPlusPlus})


def supervised_methods() -> dict[str, type[Method]]:
    """Those that a warm-up, and the baseline that goes on from it, may train with: they ask for no unlabelled images."""
    return {name: method for name, method in METHODS.items() if not method.needs_unlabeled and name not in OFFLINE}


def check_scored(wanted: str, method: str) -> None:
    """Raise a ParamsError unless the method of this name ships the network that ``eval.weights`` asks for."""
    if wanted not in ("auto", *(ships := METHODS[method].ships)):
        raise ParamsError(f"eval.weights is {wanted}, but {method} has no {wanted}: set {' or '.join(ships)}, or auto.")


def build_method(config: MethodConfig, build_model: BuildModel, *, offline: bool = False, **data: Any) -> Method:
    """The method that ``config.name`` names, or its second stage; its config class has been checked by ``load_params``.

    Args:
        config: The method's section.
        build_model: Makes a network.
        offline: Whether it learns from labels made before.
        data: What ``Method`` takes by keyword.
    """
    return (OFFLINE if offline else METHODS)[config.name](config, build_model, **data)
