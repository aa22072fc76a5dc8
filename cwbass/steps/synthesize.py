"""Before the stages: the default dataset, generated where it is missing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cwbass.config import DataConfig, Section, SynthesizeConfig
from cwbass.data.synthetic import MARKER, write_shapes
from cwbass.errors import ParamsError

logger = logging.getLogger(__name__)


class SynthesizeParams(Section):
    """Where the dataset goes, and how large it is."""

    data: DataConfig = DataConfig()
    synthesize: SynthesizeConfig | None = None


def synthesize(params: SynthesizeParams) -> dict[str, Any]:
    """Write the generated dataset to ``data.root``; does nothing without a ``synthesize`` section.

    Raises:
        DataError: The folder holds something else.
        ParamsError: ``data.root`` is a URL.
    """
    root, config = Path(params.data.root), params.synthesize
    if config is None:
        logger.info("no synthesize section: data.root %s is taken as it is", params.data.root)
        return {"root": params.data.root, "generated": False}
    if "://" in params.data.root:
        raise ParamsError(
            f"data.root is {params.data.root}, where nothing can be generated. Name a folder, or remove the section synthesize."
        )
    existed = (root / MARKER).exists()
    write_shapes(
        root,
        seed=config.seed,
        labeled=config.labeled,
        unlabeled=config.unlabeled,
        test=config.test,
        size=(config.height, config.width),
    )
    return {"root": str(root), "generated": not existed}
