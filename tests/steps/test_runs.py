from __future__ import annotations

from pathlib import Path

import pytest

from cwbass.errors import ParamsError
from cwbass.steps.runs import run_folder


def test_a_run_started_again_finds_its_folder_and_another_run_does_not() -> None:
    assert run_folder(Path("runs"), "0c6a7f7e-1b2c", "train") == Path("runs/0c6a7f7e-1b2c/train")
    assert run_folder(Path("runs"), "a", "train") != run_folder(Path("runs"), "b", "train")


@pytest.mark.parametrize("run_id", ["{{$.pipeline_job_uuid}}", "", "..", "a/b", ".hidden", "a b"])
def test_an_id_that_names_no_run_is_refused(run_id: str) -> None:
    with pytest.raises(ParamsError, match="names no run"):
        run_folder(Path("runs"), run_id, "train")
