"""params.yaml as the arguments of a pipeline run: one YAML text for each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cwbass.config import Section
from cwbass.params import Params, dump_params, load_params
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
