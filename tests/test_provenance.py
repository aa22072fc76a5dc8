from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cwbass.provenance import code_revision, dvc_md5, git_state, versions

LOCK = """
schema: '2.0'
stages:
  split:
    cmd: cwbass split
    deps:
    - path: cwbass/data
      md5: 00000000000000000000000000000000.dir
    - path: data/shapes
      hash: md5
      md5: c815cddba29f1a1338bb2cb6ad71a616.dir
      nfiles: 612
"""
PIN = "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: mine\n"


def test_the_data_has_the_hash_that_dvc_lock_gives_it(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(LOCK)
    assert dvc_md5("data/shapes", tmp_path) == "c815cddba29f1a1338bb2cb6ad71a616.dir"
    assert dvc_md5("data/other", tmp_path) is None


def test_data_that_was_added_has_the_hash_of_its_dvc_file(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mine.dvc").write_text(PIN)
    assert dvc_md5("datasets/mine", tmp_path) == "0123456789abcdef0123456789abcdef.dir"


@pytest.mark.parametrize("content", ["", "[1]", "stages: 3", "stages: {a: {deps: [1]}}", "{", "stages: {a: }"])
def test_a_lock_that_says_nothing_is_no_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "dvc.lock").write_text(content)
    assert dvc_md5("data/shapes", tmp_path) is None


def test_outside_a_repository_the_revision_is_the_one_the_image_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("CWBASS_REVISION", raising=False)
    assert git_state() is None
    monkeypatch.setenv("CWBASS_REVISION", "c0ffee")
    assert git_state() == {"revision": "c0ffee", "dirty": False}


def test_revision_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert code_revision(tmp_path) is None
    git("init", "-q")
    assert code_revision(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1")
    (tmp_path / "package").mkdir()
    git("add", "file")
    git("commit", "-qm", "first")
    assert code_revision(tmp_path) == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "file").write_text("2")
    assert code_revision(tmp_path) == git("rev-parse", "--short=12", "HEAD") + "-dirty"
    assert code_revision(tmp_path / "package") is None


def test_the_versions_are_those_that_are_installed() -> None:
    from importlib import metadata

    found = versions()
    assert found["timm"] == metadata.version("timm")
    assert {"cwbass", "python", "torch", "numpy"} <= found.keys()
