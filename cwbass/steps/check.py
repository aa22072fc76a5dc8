"""Step ``check``: look at every file before a run depends on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cwbass.config import AugmentConfig, ModelConfig, SplitConfig
from cwbass.data import Listing, list_dataset
from cwbass.data.check import CheckReport, check_dataset, inspect_masks
from cwbass.data.findings import Finding
from cwbass.data.manifest import Manifest
from cwbass.data.splits import draw_split, find_candidates, no_selection
from cwbass.errors import CwbassError, DataError, ParamsError, counted
from cwbass.memory import collector_paused
from cwbass.methods import METHODS, check_scored
from cwbass.methods.base import MethodConfig
from cwbass.models import MODELS, build_model
from cwbass.models.base import SegmentationNet
from cwbass.models.weights import load_encoder_weights_
from cwbass.params import Params, SplitSections
from cwbass.steps.training import check_batches, check_network, own_networks
from cwbass.storage.s3 import find_object
from cwbass.training.enough import no_unlabeled, too_few_classes, too_few_to_rank

logger = logging.getLogger(__name__)

FEW_TEST = 10  # test images: the bootstrap's 95 % hold the truth in about 90 % of cases with ten, in 84 % with five
WEIGHTS = "weights"  # kind of the findings that are about parameters, not data


@collector_paused()
def check(params: Params, *, data_root: Path) -> CheckReport:
    """See that a run can be trained: its network, the weights that it starts from, and every file of its dataset. Nothing is written.

    Raises:
        DataError: The files cannot even be listed: a folder, the class list or a list file is wrong.
        ParamsError: The parameters do not fit the dataset or the processes, or a network cannot be built, or not be trained; the
            message names the keys.
    """
    _check_sections(params)
    listing = list_dataset(params.data, params.split, data_root)
    weights = check_model(params, listing.spec.class_names)
    report = check_data(params, listing, data_root=data_root, views=params.augment, method=params.method)
    return replace(report, findings=weights + report.findings)


def check_params(params: Params) -> None:
    """See what can be seen without the data and the weights: that the method has what is scored, and that there are such networks.

    Raises:
        ParamsError: As :func:`check`.
    """
    _check_sections(params)
    if params.model.arch in MODELS:  # what the dataset's classes are called may matter to it
        return
    for keys in ({}, *own_networks(params.method).values()):
        build_model(params.model.model_copy(update=keys), params.data.classes or ("one", "other"))


def _check_sections(params: Params) -> None:
    """Raise a ParamsError unless the method has the network that is scored, and the batches suit the processes."""
    check_scored(params.eval.weights, params.method.name)
    check_batches(params.train, params.train.processes * params.train.nodes)


def warn_of_missing_sections(params: Params, file: Path, *, pipeline: Path) -> None:
    """Say which sections a file of parameters leaves out that the stages of DVC depend on.

    Args:
        params: What was read from the file.
        file: Its name.
        pipeline: dvc.yaml; where it is not there, nothing is said.
    """
    missing = [name for name in Params.model_fields if name not in params.model_fields_set | {"synthesize"}]
    if missing and pipeline.is_file():
        logger.warning(
            "%s does not name %s: the defaults count, but `dvc repro` stops at the first stage that depends on it. Add what is "
            "missing, such as `seed: 0`, `method: {name: cw_bass}` or `eval: {}`.",
            file,
            ", ".join(missing),
        )


def refuse_errors(report: CheckReport, *, params: Path, data_root: Path) -> None:
    """Raise where a check has found errors.

    Raises:
        ParamsError: All of them are about the file ``params``.
        DataError: Some are about the dataset in ``data_root``.
    """
    if report.errors:
        of_params = all(finding.kind == WEIGHTS for finding in report.errors)
        kind, place = (ParamsError, params) if of_params else (DataError, data_root)
        raise kind(f"{counted(len(report.errors), 'error')} in {place}; see above.")


def check_model(params: Params, class_names: Sequence[str]) -> tuple[Finding, ...]:
    """Build the networks, see that the run's can be trained on the crops it will get, and look at the weights they start from.

    Nothing is fetched: of ``s3://`` it is seen whether the object is there; of ``imagenet`` nothing, which is told.

    Args:
        params: Of the run.
        class_names: Of the dataset. [C].

    Returns:
        One error for each file of weights that cannot be used.

    Raises:
        ParamsError: A network cannot be built, or not be trained; the message names the keys.
    """
    net = build_model(params.model, class_names)
    net.read_files_()
    check_network(net, params, class_names, unlabeled=METHODS[params.method.name].needs_unlabeled)
    found = list(_check_weights("model", params.model, net))
    for name, keys in own_networks(params.method).items():
        config = params.model.model_copy(update=keys)
        found += _check_weights(name, config, build_model(config, class_names))
    return tuple(found)


def _check_weights(key: str, config: ModelConfig, net: SegmentationNet) -> Iterator[Finding]:
    weights = config.weights
    if weights is None:
        return
    if weights == "imagenet":
        logger.info(
            "%s.weights: imagenet is not looked at; a run fetches those of %s from the Hugging Face hub, if its cache has none. Without "
            "a network, give a file or an s3:// URI.",
            key,
            config.encoder,
        )
        return
    try:
        if weights.startswith("s3://"):
            find_object(weights)
        else:
            load_encoder_weights_(net, weights, encoder=config.encoder, cache_dir=Path())
    except CwbassError as error:
        yield Finding("error", WEIGHTS, None, f"{key}.weights: {error}")


def check_data(
    params: SplitSections,
    listing: Listing,
    *,
    data_root: Path,
    views: AugmentConfig | None = None,
    method: MethodConfig | None = None,
) -> CheckReport:
    """Draw the split in memory and check the files it would use.

    If the split cannot be drawn, the report says why, by a finding of its own where no mask is to
    blame, and all masks that it might have used are checked.

    Args:
        params: Sections of a split.
        listing: What ``list_dataset`` found.
        data_root: Folder of the dataset.
        views: How crops are drawn of the images; None: whether they fit is not looked at.
        method: What will learn from them; None: whether there are enough for it is not looked at.

    Raises:
        DataError: A list file is wrong.
        ParamsError: The parameters do not fit the dataset.
    """
    candidates = find_candidates(listing, params.split, data_root)
    seen = inspect_masks(candidates.named + candidates.masked, data_root, listing.spec)
    manifest: Manifest | None = None
    failure: tuple[Finding, ...] = ()
    try:
        manifest = draw_split(listing, params.split, root=data_root, seed=params.seed, seen=seen)
    except DataError as error:
        if all(facts.sound for facts in seen.values()):  # else that is why, and a finding of its own
            failure = (Finding("error", "no_split", None, f"the split cannot be drawn: {error}"),)
        listing = replace(listing, train=candidates.named + candidates.masked + candidates.bare)
    else:
        failure = () if method is None else tuple(_too_few(manifest, method, params.split))
    report = check_dataset(listing, manifest, data_root, seen, views=views)
    return replace(report, findings=failure + report.findings)


def _too_few(manifest: Manifest, method: MethodConfig, config: SplitConfig) -> Iterator[Finding]:
    """What a run would refuse, in part after the warm-up, and what its report would lack."""
    if message := too_few_classes(manifest):
        yield Finding("error", "one_class", None, message)
    message = no_unlabeled(manifest, method.name) if METHODS[method.name].needs_unlabeled else None
    if message is None and method.retraining is not None:
        message = too_few_to_rank(manifest, method.retraining)
    if message is not None:
        yield Finding("error", "no_unlabeled", None, message)
    if len(manifest.test) < FEW_TEST:
        message = (
            f"{counted(len(manifest.test), 'test image')}: all scores come from so few, and intervals over fewer than {FEW_TEST} are "
            "too narrow. Name more on the test list, or raise split.test where there is none."
        )
        yield Finding("warning", "few_test", None, message)
    if not manifest.selection and config.selection:  # 0 is meant so
        mend = "Label more images, raise split.selection, or set it to 0 where that is meant."
        yield Finding("warning", "no_selection", None, f"{no_selection(len(manifest.labeled), config)} {mend}")
