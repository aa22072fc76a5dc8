"""Secrets that are planted in the environment and in URIs, and looked for in all that a run writes and says."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import yaml
from commands import Done, call
from tiny import SMOKE

from cwbass.errors import ServiceError
from cwbass.params import Params, load_params

CANARY = "canary7Qz"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}ID",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}secret",
    "AWS_SESSION_TOKEN": f"{CANARY}session",
    "AWS_ENDPOINT_URL": f"http://user:{CANARY}endpoint@127.0.0.1:1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "HTTP_PROXY": f"http://user:{CANARY}proxy@127.0.0.1:1",
    "HTTPS_PROXY": f"http://user:{CANARY}proxies@127.0.0.1:1",
    "NO_PROXY": "127.0.0.1",
    "HF_TOKEN": f"hf_{CANARY}",
    "GITHUB_TOKEN": f"ghp_{CANARY}",
    "CWBASS_PUSHGATEWAY": f"http://user:{CANARY}push@127.0.0.1:1",
    "CWBASS_PUSHGATEWAY_TIMEOUT": "2",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def leaks(folder: Path) -> list[str]:
    """Files below a folder that hold a canary, also inside zip files, as checkpoints and galleries are."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if any(CANARY.encode() in content for content in contents):
            found.append(path.relative_to(folder).as_posix())
    return found


def test_the_search_sees_a_canary_in_a_text_and_in_a_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"x {CANARY} y")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c", CANARY * 9)
    (tmp_path / "d.txt").write_text("nothing")
    assert leaks(tmp_path) == ["a.txt", "b.npz"]


@pytest.mark.usefixtures("planted")
def test_no_secret_is_in_what_a_run_writes_or_says(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG", logger="cwbass")
    out = tmp_path / "out"
    values = yaml.safe_load(SMOKE.read_text())
    values["data"]["root"] = str(shapes)
    values["train"] |= {"cache": None, "steps": 8, "warmup_steps": 4}
    values["registry"] |= {"store": str(out / "registry"), "onnx": False, "min_gain": -1}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(values))
    common, manifest = ["--params", params], ["--manifest", out / "split" / "manifest.json"]
    scored = ["--checkpoint", out / "train", "--baseline", out / "warmup", *manifest, "--data", shapes, "--out", out / "reports"]
    done = [
        call("split", *common, "--out", out / "split"),
        call("warmup", *common, *manifest, "--out", out / "warmup"),
        call("train", *common, *manifest, "--warmup", out / "warmup" / "warmup.pt", "--out", out / "train"),
        call("eval", *scored),
        call(
            "register",
            *common,
            "--checkpoint",
            out / "train",
            "--metrics",
            out / "reports" / "metrics.json",
            "--out",
            out / "reg",
        ),
    ]
    assert [each.returncode for each in done] == [0] * 5, [each.stderr[-300:] for each in done]
    assert (
        (out / "registry").is_dir() and (out / "reports" / "report.html").is_file() and (out / "train" / "metrics.prom").is_file()
    )
    said = "".join(each.stdout + each.stderr for each in done) + caplog.text + "".join(capfd.readouterr())
    assert "the Pushgateway http://127.0.0.1:1 did not take" in said  # it was tried, and its failure told
    assert CANARY not in said
    assert leaks(out) == []


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--checkpoint", "s3://bucket/a/best.pt", "--images", "."],
        ["predict", "--checkpoint", f"s3://AKIA:{CANARY}@bucket/a/best.pt", "--images", "."],
        ["predict", "--checkpoint", f"s3://AKIA:{CANARY}@bucket/models/x/versions/1.0.0", "--images", "."],
        ["predict", "--checkpoint", "x@1.0.0", "--store", f"s3://AKIA:{CANARY}@bucket/a", "--images", "."],
        ["predict", "--checkpoint", "x@1.0.0", "--store", f"http://AKIA:{CANARY}@bucket/a", "--images", "."],
        ["registry", "list", "--store", "s3://bucket/a"],
        ["split", "--set", f"registry.store=s3://AKIA:{CANARY}@bucket/a"],
        ["split", "--set", f"train.checkpoint_uri=s3://AKIA:{CANARY}@bucket/a"],
        ["split", "--set", f"model.weights=s3://AKIA:{CANARY}/more@bucket/a"],
        ["split", "--set", f"train.steps=s3://AKIA:{CANARY}@bucket/a"],
        ["doctor"],
    ],
    ids=lambda arguments: " ".join(arguments[:4]).replace(CANARY, "SECRET"),
)
def test_no_secret_is_in_what_a_failure_says(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    done: Done = call(*arguments)
    assert done.returncode in ((0, 3, 6) if arguments[0] == "doctor" else (3, 6)), done.stderr[-300:]
    assert CANARY not in done.stdout + done.stderr + "".join(capfd.readouterr())


def test_an_error_cuts_the_password_out_of_a_url() -> None:
    message = "http://user:secret@host:80/a and s3://key:secret@bucket/b@c are out of reach."
    assert str(ServiceError(message)) == "http://host:80/a and s3://bucket/b@c are out of reach."


def test_a_port_and_a_key_with_an_at_sign_are_no_password() -> None:
    assert load_params({"registry": {"store": "s3://bucket/a@b"}}, Params).registry.store == "s3://bucket/a@b"
