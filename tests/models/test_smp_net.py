from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cwbass.config import ModelConfig
from cwbass.errors import ParamsError
from cwbass.models import build_model
from cwbass.models.smp_net import ARCHITECTURES, SmpNet

SMALL = "tu-mobilenetv3_small_050"
DPT = {"dynamic_img_size": True, "decoder_fusion_channels": 16, "decoder_intermediate_channels": [16, 16, 16, 16]}
DINO = {**DPT, "embed_dim": 48, "num_heads": 2}  # a small one
NETS = [
    ("deeplabv3", SMALL, {}),
    ("deeplabv3plus", "resnet18", {}),
    ("deeplabv3plus", SMALL, {"encoder_output_stride": 8}),
    ("dpt", "tu-vit_tiny_patch16_224", DPT),
    ("dpt", "tu-vit_small_patch14_dinov2", DINO),
    ("dpt", "tu-vit_base_patch16_gap_224", DINO),  # without a class token
    ("fpn", SMALL, {}),
    ("linknet", SMALL, {}),
    ("manet", SMALL, {}),
    ("pan", SMALL, {}),
    ("pspnet", "resnet18", {}),
    ("segformer", "mit_b0", {}),
    ("unet", "resnet18", {}),
    ("unet", SMALL, {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}),
    ("unetplusplus", SMALL, {}),
    ("upernet", SMALL, {"decoder_channels": 32}),
]


def build(arch: str, encoder: str, options: dict[str, Any] | None = None) -> SmpNet:
    torch.manual_seed(0)
    net = build_model(ModelConfig(arch=arch, encoder=encoder, options=options or {}), "abcde")
    assert isinstance(net, SmpNet)
    return net


def images(height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def test_every_architecture_is_tried_here() -> None:
    assert {arch for arch, _, _ in NETS} == set(ARCHITECTURES)


@pytest.mark.parametrize(("arch", "encoder", "options"), NETS)
def test_odd_sizes_backward_and_state(arch: str, encoder: str, options: dict[str, Any]) -> None:
    net = build(arch, encoder, options)
    side = 113 if arch == "pan" else 33  # pan halves its deepest map three times more
    size = (side, side + 14)
    logits = net.train()(images(*size))
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert sum(float(grad.abs().sum()) for grad in grads) > 0

    copy = build_model(ModelConfig(arch=arch, encoder=encoder, options=options), "abcde")
    copy.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(net.eval()(images(*size)), copy.eval()(images(*size)))


def test_features_are_maps_with_or_without_class_tokens() -> None:
    """Methods drop channels of what ``encode`` gives: a None in it would stop them."""
    image = torch.rand(1, 3, 32, 32)
    with_tokens = build("dpt", "tu-vit_small_patch14_dinov2", DINO).encode(image)
    without = build("dpt", "tu-vit_base_patch16_gap_224", DINO).encode(image)
    assert [each.dim() == 4 for each in with_tokens] == [True] * 5 + [False] * 4  # the size, four maps, their tokens
    assert [each.dim() for each in without] == [4] * 5


@pytest.mark.parametrize(
    ("arch", "encoder", "options", "stride"),
    [
        ("deeplabv3plus", SMALL, {}, 16),
        ("deeplabv3plus", SMALL, {"encoder_output_stride": 8}, 8),
        ("deeplabv3", SMALL, {}, 8),
        ("unet", SMALL, {}, 32),
        ("pspnet", "resnet18", {}, 8),
        ("dpt", "tu-vit_tiny_patch16_224", DPT, 32),
        ("dpt", "tu-vit_small_patch14_dinov2", DINO, 28),
    ],
)
def test_sides_are_padded_to_the_stride_and_no_farther(arch: str, encoder: str, options: dict[str, Any], stride: int) -> None:
    net = build(arch, encoder, options).eval()
    seen: list[tuple[int, ...]] = []
    net.net.encoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    with torch.no_grad():
        for side in (3 * stride, 3 * stride + 1, 4 * stride - 1):
            assert net(images(side, 5 * stride)).shape == (2, 5, side, 5 * stride)
    assert seen == [(3 * stride, 5 * stride), (4 * stride, 5 * stride), (4 * stride, 5 * stride)]


def test_where_nothing_is_padded_it_is_smps_own_forward() -> None:
    net = build("deeplabv3plus", SMALL).eval()
    with torch.no_grad():
        assert torch.equal(net(images(48, 80)), net.net(net.normalize(images(48, 80))))


def test_padding_repeats_the_edge() -> None:
    net = build("unet", SMALL).eval()
    seen: list[Tensor] = []
    net.net.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = images(30, 31)
    with torch.no_grad():
        net(image)
    normal = net.normalize(image)
    assert torch.equal(seen[0][..., :30, :31], normal)
    assert torch.equal(seen[0][..., 30:, :31], normal[..., -1:, :].expand(-1, -1, 2, -1))
    assert torch.equal(seen[0][..., :30, 31:], normal[..., -1:])


def test_the_network_normalises_what_lies_in_0_to_255() -> None:
    net = build_model(ModelConfig(arch="unet", encoder=SMALL, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)), "ab")
    image = torch.tensor([255, 255, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(net.normalize(image).flatten(), torch.tensor([1.0, 3.0, 1.0]))
    assert "pixel_mean" not in net.state_dict()


def test_encoder_parameters_are_those_of_the_encoder() -> None:
    net = build("unet", SMALL)
    encoder = {id(p) for p in net.encoder_parameters()}
    for name, parameter in net.named_parameters():
        assert (id(parameter) in encoder) == name.startswith("net.encoder.")


def test_no_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight file was asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    assert isinstance(build("fpn", "resnet18"), nn.Module)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"arch": "deeplabv3+"},
            r"model\.arch is 'deeplabv3\+'; choose one of deeplabv3, deeplabv3plus, .* Did you mean 'deeplabv3'",
        ),
        ({"arch": "yolo"}, r"model\.arch is 'yolo'; choose one of"),
        ({"encoder": "resnet19"}, r"deeplabv3plus with encoder 'resnet19' .* cannot be built: .*tu-<name>"),
        ({"encoder": "tu-no_such_net"}, r"encoder 'tu-no_such_net' .* cannot be built: Unknown model"),
        ({"encoder": "tu-hrnet_w18_small"}, r"encoder 'tu-hrnet_w18_small' .* cannot be built"),  # cannot be dilated
        ({"encoder": SMALL, "options": {"no_such_option": 1}}, r"options \{'no_such_option': 1\} cannot be built"),
        (
            {"encoder": "resnet18", "options": {"encoder_stride": 8}},
            r"deeplabv3plus has no encoder_stride; it has .*encoder_output_stride",
        ),
        ({"encoder": "resnet18", "options": {"encoder_output_stride": 5}}, r"cannot be built: .*5"),
    ],
)
def test_what_cannot_be_built_is_named(config: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ParamsError, match=message):
        warnings.simplefilter("ignore")
        build_model(ModelConfig(**config), "abc")
