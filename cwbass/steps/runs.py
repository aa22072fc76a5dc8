"""Folders that outlive a process: where a run that is started again finds what it had written."""

from __future__ import annotations

import re
from pathlib import Path

from cwbass.errors import ParamsError


def run_folder(runs: Path, run_id: str, stage: str) -> Path:
    """The folder of a stage of a run, ``<runs>/<run_id>/<stage>``; it need not exist yet.

    Args:
        runs: Folder for all runs, on a disk that outlives the process.
        run_id: Names one run among all that share the disk.
        stage: Name of the stage.

    Raises:
        ParamsError: The id is no plain name. One that the pipeline's back end did not fill in would be shared by all runs.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise ParamsError(
            f"run_id is {run_id!r}, which names no run; use letters, digits and ._-. "
            "Where it is a placeholder, this version of Kubeflow Pipelines does not fill it in."
        )
    return runs / run_id / stage
