from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image
from tiny import TinyRun
from torch.nn import functional as F

from cwbass.config import EvalConfig, ModelConfig
from cwbass.data.base import read_image
from cwbass.errors import GateError, ParamsError
from cwbass.export import SIZES, Parity, export_onnx, measure_parity, missing_packages, parity_problem
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.params import dump_params
from cwbass.steps.export import export
from cwbass.training.checkpoint import load_checkpoint, save_checkpoint

CONFIG = ModelConfig(
    arch="unet",
    encoder="tu-mobilenetv4_conv_small_050",
    options={"encoder_depth": 2, "decoder_channels": [8, 8]},
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25),
)
needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason="pip install 'cwbass[export]' for onnx, onnxruntime, onnxscript")


def network(seed: int = 0) -> SegmentationNet:
    torch.manual_seed(seed)
    return build_model(CONFIG, "abcd").eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parity]:
    path = tmp_path_factory.mktemp("onnx") / "deep" / "model.onnx"
    return path, export_onnx(network(), path, class_names=["sky", "road", "car", "tree"], protocol="whole scale:0.4")


@needs_onnx
def test_the_check_of_a_file_leaves_no_trace_of_onnx_runtimes_usage_data(exported: tuple[Path, Parity], tmp_path: Path) -> None:
    """It keeps what it will send, and a device id, below HOME from the first session on."""
    code = "import sys, numpy, torch; from pathlib import Path; from cwbass.export import _run\n"
    code += "print(_run(Path(sys.argv[1]), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape)"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    home = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(exported[0])]
    done = subprocess.run(command, env=environment | home, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 4, 32, 32)\n"
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_the_file_answers_as_the_network_does_at_sizes_it_was_not_checked_at(exported: tuple[Path, Parity]) -> None:
    import onnxruntime

    path, parity = exported
    assert parity_problem(parity) is None
    assert any(size % 4 for pair in parity.sizes for size in pair)  # the network halves twice: odd ones are padded inside
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    assert (given.name, given.type) == ("image", "tensor(uint8)")
    for batch, height, width in ((1, 33, 35), (3, 50, 21)):
        image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = network()(image).numpy()
        [found] = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-4)


@needs_onnx
def test_the_file_says_what_it_is_and_nothing_of_the_machine_it_was_made_on(exported: tuple[Path, Parity]) -> None:
    import onnx

    path, _ = exported
    model = onnx.load(path)
    props = {item.key: item.value for item in model.metadata_props}
    assert json.loads(props["classes"]) == ["sky", "road", "car", "tree"]
    assert props["protocol"] == "whole scale:0.4"
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[1]).encode() not in content
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]


@needs_onnx
def test_another_network_is_found_out(exported: tuple[Path, Parity]) -> None:
    parity = measure_parity(network(seed=1), exported[0])
    assert parity.sizes == SIZES
    assert parity.max_abs_diff > 0.01
    assert "a logit differs by" in str(parity_problem(parity))


@needs_onnx
def test_a_file_that_answers_otherwise_is_not_handed_out(
    exported: tuple[Path, Parity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The exporter is right, so a wrong file is put in its place.
    monkeypatch.setattr("cwbass.export._write", lambda net, path, *_: path.write_bytes(exported[0].read_bytes()))
    with pytest.raises(GateError, match=r"model\.onnx does not answer as the network does: a logit differs by") as caught:
        export_onnx(network(seed=1), tmp_path / "model.onnx", class_names=["a"], protocol=None)
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


@needs_onnx
@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_file_that_cannot_be_run_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr("cwbass.export._write", lambda net, path, *_: path.write_bytes(content))
    with pytest.raises(ParamsError, match=r"its file fails at 64 x 64 pixels \(.*\)\. Set registry\.onnx: false"):
        export_onnx(network(), tmp_path / "model.onnx", class_names=["a"], protocol=None)
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_a_network_that_cannot_be_exported_is_named_with_the_way_out(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image if float(image.sum()) > 0 else -image

    with pytest.raises(ParamsError, match=r"cannot be exported to ONNX: .*Set registry\.onnx: false"):
        export_onnx(Branching(), tmp_path / "model.onnx", class_names=["a"], protocol=None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "logit", "agreement", "problem"),
    [
        (1e-3, 0.5, 1.0, None),  # the limit itself, of 1 where all logits are smaller
        (1.1e-3, 0.5, 1.0, "a logit differs by 1.10e-03, more than 1.00e-03"),
        (1.1e-3, 2.0, 1.0, None),  # a share of the largest logit
        (float("nan"), 1.0, 1.0, "a logit differs by nan, more than 1.00e-03"),
        (0.0, 1.0, 0.999, None),
        (0.0, 1.0, 0.9989, "99.8900% of the pixels get the same class, fewer than 99.9%"),
    ],
)
def test_what_is_too_far_off(difference: float, logit: float, agreement: float, problem: str | None) -> None:
    assert parity_problem(Parity(SIZES, difference, logit, agreement)) == problem


def test_without_its_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwbass.export._PACKAGES", ("json", "onnx_of_nowhere"))
    with pytest.raises(ParamsError, match=r"ONNX needs onnx_of_nowhere: pip install 'cwbass\[export\]'"):
        export_onnx(network(), tmp_path / "model.onnx", class_names=["a"], protocol=None)


def scored(tiny_run: TinyRun, path: Path, config: EvalConfig) -> Path:
    """A checkpoint of the run that is scored by other settings."""
    trained = load_checkpoint(tiny_run.train / "last.pt")
    save_checkpoint(replace(trained, params=dump_params(trained.run_params.model_copy(update={"eval": config}))), path)
    return path


@needs_onnx
def test_who_does_what_the_warning_says_gets_the_masks_of_predict(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx
    import onnxruntime

    checkpoint = scored(tiny_run, tmp_path / "last.pt", EvalConfig(scales=[0.4]))
    file, photo = tmp_path / "model.onnx", next((tiny_run.data / "images").iterdir())
    done = call("export", "--checkpoint", checkpoint, "--out", file)
    assert (done.returncode, json.loads(done.stdout)["protocol"]) == (0, "whole scale:0.4"), done.stderr
    assert {item.key: item.value for item in onnx.load(file).metadata_props}["protocol"] == "whole scale:0.4"
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    must = "resize images by 0.4 before (bilinear, with antialiasing), and logits back to full size after."
    assert said == f"{file} is the network alone, and its scores are of 'whole scale:0.4'. Whoever calls it must {must}"

    assert call("predict", "--checkpoint", checkpoint, "--images", photo, "--out", tmp_path).returncode == 0
    with Image.open(tmp_path / "masks" / f"{photo.stem}.png") as mask:
        expected = np.asarray(mask)
    image = torch.tensor(read_image(photo)).permute(2, 0, 1)[None]
    small = F.interpolate(image, [round(0.4 * side) for side in expected.shape], mode="bilinear", antialias=True)
    [logits] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": small.numpy()})
    full = F.interpolate(torch.from_numpy(logits), list(expected.shape), mode="bilinear")
    assert (full.argmax(1)[0].numpy() == expected).mean() > 0.98  # small images of the file are whole numbers


def test_the_warning_names_all_that_predict_does_around_the_network_and_is_not_there_where_that_is_nothing(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwbass.steps.export.export_onnx", lambda net, path, **_: path.touch())
    config = EvalConfig(protocol="slide", window=48, stride=32, scales=[0.5, 1.0], flip=True)
    export(checkpoint=scored(tiny_run, tmp_path / "last.pt", config), out=tmp_path / "model.onnx")
    assert "resize images by 0.5 and by 1 before" in caplog.text
    for part in ("cut windows of 48 pixels, 32 apart", "; add the mirror image; average the probabilities."):
        assert part in caplog.text
    caplog.clear()
    export(checkpoint=scored(tiny_run, tmp_path / "last.pt", EvalConfig()), out=tmp_path / "model.onnx")
    assert caplog.text == ""
