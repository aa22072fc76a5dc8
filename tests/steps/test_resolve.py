from __future__ import annotations

import json
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import BUCKET, S3Server
from test_register import Run
from tiny import TinyRun
from tiny_model import tiny_checkpoint

from cwbass.config import RegistryConfig
from cwbass.errors import CheckpointError, DataError, ParamsError, ServiceError
from cwbass.export import missing_packages
from cwbass.files import digest_path, file_sha256
from cwbass.params import dump_params
from cwbass.registry import Number, register_version
from cwbass.registry.aliases import current, promote
from cwbass.registry.resolve import default_cache, describe, open_checkpoint, resolve
from cwbass.steps.export import export
from cwbass.steps.register import RegisterParams, register
from cwbass.storage import ObjectStore, open_store
from cwbass.training.checkpoint import load_checkpoint, save_checkpoint

IMAGE = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def registered(run: Run, any_store: ObjectStore) -> str:
    """Where version 1.0.0 of the model `tiny` is, the champion."""
    location = any_store.uri("x").removesuffix("/x")
    params = RegisterParams(registry=RegistryConfig(name="tiny", store=location, promote="champion", onnx=False))
    register(params, checkpoint=run.checkpoint, metrics=run.metrics, report=None, out_dir=run.folder)
    return location


def test_a_version_is_the_checkpoint_it_was_made_from(run: Run, registered: str, tmp_path: Path) -> None:
    paths = {
        reference: resolve(reference, store=registered, cache=tmp_path / "cache")
        for reference in ("tiny@1.0.0", "tiny@champion", f"{registered}/models/tiny/versions/1.0.0")
    }
    assert len({path.resolve() for path in paths.values()}) == 1
    path = paths["tiny@champion"]
    assert describe(path) == ("tiny@1.0.0", file_sha256(run.checkpoint))
    opened, original = open_checkpoint(path), tiny_checkpoint()
    assert opened.networks == ("teacher",)  # the one that was scored
    assert torch.equal(opened.network()(IMAGE), original.network("teacher")(IMAGE))
    same = ("params", "split_hash", "seed", "step", "stage", "method", "dataset")
    assert {name: getattr(opened, name) for name in same} == {name: getattr(original, name) for name in same}


def test_what_was_fetched_is_not_fetched_again_but_checked(s3_location: str, run: Run, tmp_path: Path) -> None:
    params = RegisterParams(registry=RegistryConfig(name="tiny", store=s3_location, onnx=False))
    register(params, checkpoint=run.checkpoint, metrics=run.metrics, report=None, out_dir=run.folder)
    path = resolve("tiny@1.0.0", store=s3_location, cache=tmp_path / "cache")
    stamp = (path / "model.safetensors").stat().st_mtime_ns
    config = path / "config.json"
    config.write_bytes(config.read_bytes().replace(b"sky", b"sea"))
    with pytest.raises(CheckpointError, match=r"config\.json is missing, or not what MANIFEST\.json says"):
        open_checkpoint(path)

    assert resolve("tiny@1.0.0", store=s3_location, cache=tmp_path / "cache") == path
    assert open_checkpoint(path).dataset.class_names == ("sky", "road")
    assert (path / "model.safetensors").stat().st_mtime_ns == stamp
    assert not (path / "metrics.json").exists()  # only what is needed


def test_a_checkpoint_in_s3_is_checked_by_the_digest_beside_it(
    run: Run, s3_env: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = s3_env.location()
    client, key = s3_env.client(), base.removeprefix(f"s3://{BUCKET}/") + "/last.pt"
    with pytest.raises(ParamsError, match="no such object"):
        resolve(f"{base}/last.pt", store=None, cache=tmp_path / "cache")
    assert not [record for record in caplog.records if record.name.startswith("cwbass")]  # nothing was used
    client.put_object(Bucket=BUCKET, Key=key, Body=run.checkpoint.read_bytes())
    path = resolve(f"{base}/last.pt", store=None, cache=tmp_path / "cache")
    assert "last.pt has no .sha256 beside it" in caplog.text
    assert file_sha256(path) == file_sha256(run.checkpoint)

    client.put_object(Bucket=BUCKET, Key=f"{key}.sha256", Body=digest_path(run.checkpoint).read_bytes())
    path = resolve(f"{base}/last.pt", store=None, cache=tmp_path / "cache")
    assert open_checkpoint(path).step == tiny_checkpoint().step

    content = bytearray(run.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    client.put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    with pytest.raises(ServiceError, match=r"last\.pt is damaged: its SHA-256 is not the one in last\.pt\.sha256"):
        resolve(f"{base}/last.pt", store=None, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("tiny@1.9.0", DataError, r"versions/1\.9\.0/MANIFEST\.json.*: no such object"),
        ("tiny@production", DataError, r"tiny has no alias 'production' \(it has: champion\)"),
        ("other@champion", DataError, r"the registry has no model 'other'; it has: tiny\."),
        ("tiny@1.0", DataError, r"'1\.0' is no version; write it as 1\.2\.3"),
    ],
)
def test_what_is_not_there_is_named(registered: str, reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(reference, store=registered)


def test_a_reference_without_a_registry_says_how_to_name_one() -> None:
    with pytest.raises(ParamsError, match=r"tiny@champion is looked up in a registry, and none is named: give --store"):
        resolve("tiny@champion", store=None)
    with pytest.raises(ParamsError, match=r"neither a checkpoint .* nor a version"):
        resolve("s3://bucket/models/tiny", store=None)


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny@champion").touch()
    assert resolve("tiny@champion", store=None) == Path("tiny@champion")
    assert resolve("gone.pt", store=None) == Path("gone.pt")  # load_checkpoint names it


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"palette": [[1, 2]]}),
        ("provenance.json", {"checkpoint": None}),
        ("provenance.json", {"split": {}}),
        ("model.safetensors", None),
    ],
)
def test_a_version_of_another_make_is_refused(run: Run, file: str, change: dict[str, Any] | None) -> None:
    run.register()
    files: dict[str, bytes | Path] = {name: content for name, content in run.files().items() if name != "SHA256SUMS"}
    files[file] = b"no tensors" if change is None else json.dumps(json.loads(run.files()[file]) | change).encode()
    version = register_version(open_store(str(run.folder / "other")), name="tiny", files=files)
    with pytest.raises(CheckpointError, match="is no version that can be scored"):
        open_checkpoint(Path(version.uri))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CWBASS_CACHE", raising=False)
    assert default_cache() == tmp_path / "cwbass"
    monkeypatch.setenv("CWBASS_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("CWBASS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)  # as in a container with a user of the cluster's choice
    with pytest.raises(ParamsError, match=r"no home.* Set CWBASS_CACHE"):
        default_cache()


def test_a_promoted_version_is_followed(any_store: ObjectStore, registered: str, run: Run, tmp_path: Path) -> None:
    run.score(miou=0.7)
    params = RegisterParams(registry=RegistryConfig(name="tiny", store=registered, onnx=False))
    register(params, checkpoint=run.checkpoint, metrics=run.metrics, report=None, out_dir=run.folder)
    assert describe(resolve("tiny@champion", store=registered, cache=tmp_path))[0] == "tiny@1.0.0"
    promote(any_store, "tiny", "champion", Number(1, 1), seen=current(any_store, "tiny", "champion"), reason="")
    assert describe(resolve("tiny@champion", store=registered, cache=tmp_path))[0] == "tiny@1.1.0"


@pytest.mark.skipif(bool(missing_packages()), reason="pip install 'cwbass[export]' for onnx, onnxruntime, onnxscript")
def test_the_network_that_is_scored_is_the_one_that_is_exported(tiny_run: TinyRun, tmp_path: Path) -> None:
    trained = load_checkpoint(tiny_run.train / "last.pt")
    assert trained.networks == ("student", "teacher")
    scored = tiny_run.params.eval.model_copy(update={"weights": "student"})
    params = dump_params(trained.run_params.model_copy(update={"eval": scored}))
    save_checkpoint(replace(trained, params=params), tmp_path / "last.pt")
    assert export(checkpoint=tmp_path / "last.pt", out=tmp_path / "model.onnx").weights == "student"
    assert export(checkpoint=tmp_path / "last.pt", out=tmp_path / "model.onnx", weights="teacher").weights == "teacher"
