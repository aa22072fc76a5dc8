from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cwbass.search_path import leave_out_working_directory

TOP = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "arguments", "taken"),
    [("cwbass", ["config", "show"], "yaml"), ("cwbass.training.torchrun", ["--help"], "torch")],
)
def test_a_file_in_the_working_directory_takes_the_place_of_no_library(
    module: str, arguments: list[str], taken: str, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").touch()
    (tmp_path / f"{taken}.py").write_text("raise ZeroDivisionError")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_what_pythonpath_names_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path), "libraries"])  # python -m, with PYTHONPATH=$PWD
    leave_out_working_directory()
    assert sys.path == [str(tmp_path), "libraries"]
    monkeypatch.setattr(sys, "path", ["first", str(tmp_path)])  # python -P -m
    leave_out_working_directory()
    assert sys.path == ["first", str(tmp_path)]


def test_the_checkout_that_cwbass_is_imported_from_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)
    monkeypatch.setattr(sys, "path", [str(TOP), "libraries"])
    leave_out_working_directory()
    assert sys.path == [str(TOP), "libraries"]
