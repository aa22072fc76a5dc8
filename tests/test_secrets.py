"""Secrets that are planted in the environment and in URIs, and looked for in all that a run writes and says."""

from __future__ import annotations

import base64
import time
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import yaml
from commands import Done, call
from killing import Killed
from servers import BUCKET, S3Server
from tiny import SMOKE, TinyRun, changed, training

from cwbass.errors import ParamsError, ServiceError
from cwbass.params import Params, load_params, read_params

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


def leaks(folder: Path, canary: str = CANARY) -> list[str]:
    """Files below a folder that hold a canary, also inside zip files, as checkpoints and galleries are."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if any(canary.encode() in content for content in contents):
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
def test_no_secret_is_in_a_compiled_pipeline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("kfp", reason="needs kfp: pip install -c constraints.txt -e '.[pipeline]'")
    from pipeline.arguments import pipeline_arguments
    from pipeline.compile import compile_pipeline

    values = read_params(SMOKE, ["registry.store=s3://bucket/registry", "train.checkpoint_uri=s3://bucket/states"])
    compiled = compile_pipeline(pipeline_arguments(values), tmp_path / "pipeline.yaml")
    text = compiled.read_text()
    assert "s3://bucket/states" in text and "AWS_SECRET_ACCESS_KEY" in text  # the name of the key, which the cluster fills in
    assert leaks(tmp_path) == []
    assert CANARY not in "".join(capfd.readouterr())
    secret = read_params(SMOKE, [f"train.checkpoint_uri=s3://AKIA:{CANARY}@bucket/a"])
    with pytest.raises(ParamsError, match=r"train\.checkpoint_uri: holds a user or password") as caught:
        pipeline_arguments(secret)
    assert CANARY not in str(caught.value)


def test_no_secret_is_in_the_states_that_a_run_copies_to_s3(
    tiny_run: TinyRun, s3_env: S3Server, s3_location: str, tmp_path: Path, killed_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The canaries are the keys that the run signs its requests with."""
    caplog.set_level("DEBUG", logger="cwbass")
    killed_at(6)
    with pytest.raises(Killed):
        training(tiny_run, tmp_path / "train", changed(tiny_run.params, checkpoint_uri=s3_location, save_minutes=1e-9))
    client, prefix = s3_env.client(), s3_location.removeprefix(f"s3://{BUCKET}/")
    end, before, keys = time.monotonic() + 20, [""], keys_below(client, prefix)
    while keys != before or ".json" not in " ".join(keys):  # the thread that copies outlives what is said to be killed
        assert time.monotonic() < end, "no state has arrived"
        time.sleep(0.5)
        before, keys = keys, keys_below(client, prefix)
    for index, key in enumerate(keys):
        (tmp_path / f"object{index}").write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    for canary in s3_env.keys["writer"]:
        assert leaks(tmp_path, canary) == []
        assert canary not in caplog.text


def keys_below(client: Any, prefix: str) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())]


class Gateway(BaseHTTPRequestHandler):
    """A Pushgateway that remembers what it was sent."""

    seen: ClassVar[list[tuple[str, str, str]]] = []  # path, authorization, body

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(202)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.mark.usefixtures("planted")
def test_no_secret_is_in_what_is_pushed_or_served(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(SMOKE.read_text())
    values["data"]["root"] = str(shapes)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    gateway = HTTPServer(("127.0.0.1", 0), Gateway)
    Thread(target=gateway.serve_forever, daemon=True).start()
    monkeypatch.setenv("CWBASS_PUSHGATEWAY", f"http://user:{CANARY}push@127.0.0.1:{gateway.server_address[1]}")
    monkeypatch.setenv("CWBASS_METRICS_TEXTFILE", str(tmp_path / "metrics.prom"))
    try:
        done = call("split", "--params", tmp_path / "params.yaml", "--out", tmp_path / "split")
    finally:
        gateway.shutdown()
        gateway.server_close()
    assert done.returncode == 0, done.stderr
    [(path, authorization, body)] = Gateway.seen
    assert CANARY in base64.b64decode(authorization.removeprefix("Basic ")).decode()  # where it belongs, and nowhere else
    assert "cwbass_stage_last_success_timestamp_seconds" in body
    assert CANARY not in path + body + done.stdout + done.stderr
    assert "cwbass_build_info" in (tmp_path / "metrics.prom").read_text()
    assert leaks(tmp_path) == []


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
