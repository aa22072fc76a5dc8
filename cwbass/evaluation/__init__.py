"""How a model is scored: probabilities of an image, streaming counts, one pass over a dataset.

What is done to the probabilities before they count is by name; a new one is a file beside these and a line in
``POSTPROCESS``. An entry is given the probabilities of an image, [C, H, W] float32, and the image itself, [3, H, W] uint8,
both on one device, and gives new ones, of which each pixel's sum to 1. What it takes by keyword alone,
``eval.postprocess_options`` may give.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cwbass.config import EvalConfig, keyword_options
from cwbass.errors import ParamsError
from cwbass.plugins import Registry

POSTPROCESS: Registry[Callable[..., Tensor]] = Registry()


def postprocessed(probs: Tensor, image: Tensor, config: EvalConfig) -> Tensor:
    """The probabilities, after what ``config.postprocess`` names. [C, H, W] float32, and [3, H, W] uint8.

    Raises:
        ParamsError: It gives something else than such probabilities.
    """
    if config.postprocess is None:
        return probs
    entry = POSTPROCESS[config.postprocess]
    found = entry(probs, image, **keyword_options(entry, config.postprocess_options))
    wrong = None
    if found.shape != probs.shape:
        wrong = f"probabilities of shape {list(found.shape)} for {list(probs.shape)}"
    elif not bool(found.isfinite().all()):
        wrong = "probabilities that are not finite"
    if wrong is not None:
        raise ParamsError(f"eval.postprocess: {config.postprocess} gives {wrong}. Mend it, or set eval.postprocess: null.")
    return found
