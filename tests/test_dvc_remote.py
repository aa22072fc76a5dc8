"""`dvc push` and `dvc pull` as docs/data.md has them, with the registry's S3 server as the remote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import S3Server

pytest.importorskip("dvc", reason="no dvc: pip install 'cwbass[dvc]'")


COMMANDS = """
import json, sys
from dvc.cli import main
for arguments in json.loads(sys.argv[1]):
    if code := main(arguments):
        sys.exit(f"dvc {arguments} ends with {code}")
"""


def dvc(folder: Path, server: S3Server, *commands: str, who: str = "writer") -> str:
    """What dvc says to these command lines, in one process: each would load for seconds."""
    empty = folder / "aws"  # aiobotocore insists on a file
    empty.touch()
    environment = os.environ | server.env(who) | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    environment |= {"AWS_CONFIG_FILE": str(empty), "AWS_SHARED_CREDENTIALS_FILE": str(empty)}
    environment.pop("AWS_ENDPOINT_URL")  # what the documents say must do: the remote has a setting of its own
    command = [sys.executable, "-c", COMMANDS, json.dumps([each.split() for each in commands])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_data_that_was_pushed_is_pulled_by_others_with_the_same_bytes(s3_server: S3Server, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "datasets" / "mine" / "images").mkdir(parents=True)
    for index in range(5):
        (ours / "datasets" / "mine" / "images" / f"{index}.bin").write_bytes(os.urandom(1000 + index))
    # Of stages that nobody has run, as those of compare/, there is nothing to push, and a plain pull ends with an error.
    (ours / "dvc.yaml").write_text("stages: {never: {cmd: 'true', outs: [artifacts/never]}}\n")
    said = dvc(
        ours,
        s3_server,
        "init --no-scm -q",
        "add -q datasets/mine",
        f"remote add -d storage {s3_server.location()}/data",
        f"remote modify storage endpointurl {s3_server.url}",
        "push",
    )
    assert "6 files pushed" in said  # five, and the list of them
    config = (ours / ".dvc" / "config").read_text()
    assert not any(secret in config for pair in s3_server.keys.values() for secret in pair)

    theirs.mkdir()  # a clone: what Git would hold, without the data and without the cache
    shutil.copytree(ours / ".dvc", theirs / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "site"))
    (theirs / "datasets").mkdir()
    shutil.copy(ours / "datasets" / "mine.dvc", theirs / "datasets" / "mine.dvc")
    shutil.copy(ours / "dvc.yaml", theirs / "dvc.yaml")
    dvc(theirs, s3_server, "pull --allow-missing", who="reader")
    found = {path.name: path.read_bytes() for path in (theirs / "datasets" / "mine" / "images").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (ours / "datasets" / "mine" / "images").iterdir()}
