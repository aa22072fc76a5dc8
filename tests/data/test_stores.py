"""Datasets at URLs: what kinds there are, and a kind of one's own through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import call

from cwbass.data.manifest import Manifest
from cwbass.data.remote import STORES, local_dataset
from cwbass.errors import ParamsError
from cwbass.params import read_params


def test_a_path_is_taken_as_it_is_and_an_unknown_kind_of_url_is_refused(tmp_path: Path) -> None:
    assert local_dataset("data/shapes", tmp_path) == Path("data/shapes")
    with pytest.raises(ParamsError, match=r"data\.root is ftp://a/b; give a folder, or a URL that begins with s3://"):
        local_dataset("ftp://a/b", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kind_of_ones_own_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(url: str, copies: Path) -> Path:
        asked.append(url)
        if not (copy := tmp_path / "copy").exists():
            shutil.copytree(shapes, copy)
        return copy

    monkeypatch.setitem(STORES, "shelf", fetch)
    smoke = ["--params", "configs/smoke.yaml"]
    assert call("check", *smoke, "--set", "data.root=shelf://three").returncode == 0
    done = call("split", *smoke, "--data", "shelf://four", "--out", tmp_path / "split")
    assert done.returncode == 0, done.stderr
    assert call("init", "shelf://five/photos", "--out", tmp_path / "five.yaml").returncode == 0
    proposed = read_params(tmp_path / "five.yaml")
    assert (proposed["data"]["root"], proposed["registry"]["name"]) == ("shelf://five/photos", "cwbass-photos")
    assert asked == ["shelf://three", "shelf://four", "shelf://five/photos"]
    assert len(Manifest.read(tmp_path / "split" / "manifest.json").unlabeled) == 16
