"""Step ``check``: look at every file before a run depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cwbass.data import list_dataset
from cwbass.data.check import CheckReport, Finding, check_dataset, inspect_masks
from cwbass.data.manifest import Manifest
from cwbass.data.splits import draw_split, find_candidates
from cwbass.errors import DataError
from cwbass.memory import collector_paused
from cwbass.methods import METHODS
from cwbass.models import build_model
from cwbass.params import Params
from cwbass.steps.split import SplitParams
from cwbass.steps.training import check_network


def check_model(params: Params, *, data_root: Path) -> None:
    """Build the network and see that it can be trained on the crops that both streams will give it.

    Raises:
        DataError: The files cannot even be listed: a folder, the class list or a list file is wrong.
        ParamsError: It cannot be built, or not be trained; the message names the keys.
    """
    class_names = list_dataset(params.data, params.split, data_root).spec.class_names
    net = build_model(params.model, class_names)
    check_network(net, params, class_names, unlabeled=METHODS[params.method.name].needs_unlabeled)


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
