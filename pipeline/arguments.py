"""params.yaml as the arguments of a pipeline run: one YAML text for each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwbass.comparison.variants import SUPERVISED, method_variants
from cwbass.config import Section
from cwbass.params import Params, dump_params, load_params, load_text
from cwbass.steps.compare import asked_plan, listed
from cwbass.steps.evaluate import EvaluateParams
from cwbass.steps.register import RegisterParams
from cwbass.steps.split import SplitParams
from cwbass.steps.train import TrainParams
from cwbass.steps.training import WarmupParams

STEPS: Mapping[str, type[Section]] = {
    "split": SplitParams,
    "warmup": WarmupParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
}


def pipeline_arguments(values: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a run, by the pipeline's names: ``split_params`` to ``register_params``, and ``data``.

    A text holds only the sections that its step depends on, with every default filled in: a step whose text has
    not changed may be taken from the cache.

    Args:
        values: From ``read_params``.

    Raises:
        ParamsError: A key is wrong in any section; hours later its step would have said so.
    """
    params = load_params(values, Params)
    texts = {f"{step}_params": dump_params(load_params(values, kind)) for step, kind in STEPS.items()}
    return {**texts, "data": params.data.root}


def model_name(text: str) -> str:
    """The model that parameters, as YAML, would register."""
    return load_text(text, "params", RegisterParams).registry.name


def compare_arguments(values: Mapping[str, Any], *, methods: str, seeds: str, labels: str, budget: str) -> dict[str, Any]:
    """The parameters of a comparison's pipeline: ``params``, ``data``, and the grid, of which ``methods`` is a list without the baseline.

    Args:
        values: From ``read_params``.
        methods: Names, with commas between; empty takes the one of the parameters.
        seeds: Whole numbers, likewise.
        labels: See ``cwbass compare --labels``; empty takes those of the parameters.
        budget: See ``cwbass compare --budget``; empty takes ``train.steps``.

    Raises:
        ParamsError: A key, a name or a number is wrong; hours later the pipeline would have said so.
    """
    params = load_params(values, Params)
    variants = method_variants(listed(methods) or [params.method.name], params)
    asked = {"seeds": listed(seeds), "labels": listed(labels), "budget": budget or None}
    asked_plan(params, variants, **asked, out_dir=Path())  # refuses what is wrong
    grid = {"seeds": seeds or str(params.seed), "labels": labels, "budget": budget}
    names = [name for name in variants if name != SUPERVISED]
    return {"params": dump_params(params), "methods": names, **grid, "data": params.data.root}
