"""Step ``check``: look at every file before a run depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cwbass.config import ModelConfig, Section
from cwbass.data import list_dataset
from cwbass.data.check import CheckReport, Finding, check_dataset, inspect_masks
from cwbass.data.manifest import Manifest
from cwbass.data.splits import draw_split, find_candidates
from cwbass.errors import CwbassError, DataError
from cwbass.memory import collector_paused
from cwbass.methods import METHODS
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.models.weights import load_encoder_weights_
from cwbass.params import Params
from cwbass.s3 import find_object
from cwbass.steps.split import SplitParams
from cwbass.steps.training import check_network


def check_model(params: Params, *, data_root: Path) -> tuple[Finding, ...]:
    """Build the networks, see that the run's can be trained on the crops it will get, and look at the weights they start from.

    Nothing is fetched: of ``s3://`` it is seen whether the object is there, of ``imagenet`` nothing.

    Returns:
        One error for each file of weights that cannot be used.

    Raises:
        DataError: The files cannot even be listed: a folder, the class list or a list file is wrong.
        ParamsError: A network cannot be built, or not be trained; the message names the keys.
    """
    class_names = list_dataset(params.data, params.split, data_root).spec.class_names
    net = build_model(params.model, class_names)
    check_network(net, params, class_names, unlabeled=METHODS[params.method.name].needs_unlabeled)
    found = list(_check_weights("model", params.model, net))
    for name, other in params.method:
        if isinstance(other, Section) and {"encoder", "weights"} <= type(other).model_fields.keys():
            config = params.model.model_copy(update=other.model_dump())
            found += _check_weights(f"method.{name}", config, build_model(config, class_names))
    return tuple(found)


def _check_weights(key: str, config: ModelConfig, net: SegmentationNet) -> Iterator[Finding]:
    weights = config.weights
    if weights is None or weights == "imagenet":
        return
    try:
        if weights.startswith("s3://"):
            find_object(weights)
        else:
            load_encoder_weights_(net, weights, encoder=config.encoder, cache_dir=Path())
    except CwbassError as error:
        name, message = f"{key}.weights", str(error).replace("model.weights", f"{key}.weights")
        yield Finding("error", "weights", None, message if message.startswith(name) else f"{name}: {message}")


@collector_paused()
def check(params: SplitParams, *, data_root: Path) -> CheckReport:
    """Draw the split in memory and check the files it would use; nothing is written.

    If the split cannot be drawn, the report says why, and all masks that it might have used are
    checked.

    Raises:
        DataError: The files cannot even be listed: a folder, the class list or a list file is wrong.
        ParamsError: The parameters do not fit the dataset.
    """
    listing = list_dataset(params.data, params.split, data_root)
    candidates = find_candidates(listing, params.split, data_root)
    seen = inspect_masks(candidates.named + candidates.masked, data_root, listing.spec)
    manifest: Manifest | None = None
    failure: tuple[Finding, ...] = ()
    try:
        manifest = draw_split(listing, params.split, root=data_root, seed=params.seed, seen=seen)
    except DataError as error:
        failure = (Finding("error", "no_split", None, f"the split cannot be drawn: {error}"),)
        listing = replace(listing, train=candidates.named + candidates.masked + candidates.bare)
    report = check_dataset(listing, manifest, data_root, seen)
    return replace(report, findings=failure + report.findings)
