"""What every network of ``MODELS`` must do, and examples of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import EvalConfig, ModelConfig
from cwbass.errors import ParamsError
from cwbass.evaluation.inference import predict_probs
from cwbass.models import MODELS, build_model
from cwbass.models.base import SegmentationNet
from cwbass.models.features import drop_channels, join_features, rows_of
from cwbass.models.smp_net import SmpNet
from cwbass.models.weights import load_encoder_weights_
from cwbass.steps.training import network_factory
from cwbass.training.checkpoint import build_with_weights
from cwbass.types import Progress

ENCODER = "tu-mobilenetv4_conv_small_050"
Net = Callable[[ModelConfig, Sequence[str]], SegmentationNet]


class Example(SegmentationNet):
    """Two strides of 2. The image's size is carried as a map without channels, of as many images as the batch."""

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config.mean, config.std)
        width = config.options.get("width", 8)
        assert isinstance(width, int)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1))
        self.head = nn.Conv2d(width, len(class_names), 1)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [image[:, :0], self.stem(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        return F.interpolate(self.head(features[1]), features[0].shape[-2:], mode="bilinear", align_corners=False)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.stem.parameters())


class Sharpened(SmpNet):
    """smp's U-Net, and a step after the logits where nobody trains: here they are doubled, a CRF would have its place."""

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config.model_copy(update={"arch": "unet", "encoder": ENCODER}), class_names)

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return logits if self.training else 2 * logits


EXAMPLES: dict[str, Net] = {"example": Example, "sharpened": Sharpened}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, net in EXAMPLES.items():
        monkeypatch.setitem(MODELS, name, net)


@pytest.fixture(params=[*EXAMPLES, *MODELS])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(arch: str) -> SegmentationNet:
    torch.manual_seed(0)
    return build_model(ModelConfig(arch=arch), "abcde")


def images(height: int, width: int, batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(64, 64), (65, 79), (33, 50)])
def test_logits_of_any_size_have_that_size_and_a_gradient(arch: str, size: tuple[int, int]) -> None:
    net = build(arch).train()
    logits = net(images(*size))
    assert logits.shape == (3, 5, *size)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_encoder_is_a_part_of_the_network(arch: str) -> None:
    net = build(arch)
    assert {id(p) for p in net.encoder_parameters()} < {id(p) for p in net.parameters()}


def test_a_copy_with_the_same_weights_says_the_same(arch: str) -> None:
    net, copy = build(arch).eval(), build_model(ModelConfig(arch=arch), "abcde").eval()
    copy.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(net(images(40, 47)), copy(images(40, 47)))


def test_methods_can_work_on_what_lies_between_encoder_and_decoder(arch: str) -> None:
    net, batch = build(arch).train(), images(48, 57)
    progress = Progress(0, 1, 0, 0, torch.Generator().manual_seed(0))
    whole = net.feature_maps(batch)
    dropped = drop_channels(rows_of(whole, 1), rate=0.5, progress=progress)
    logits = net.decode(join_features(whole, dropped))
    assert logits.shape == (3 + 2, 5, 48, 57)
    assert not torch.allclose(logits[1:3], logits[3:])


def test_the_options_of_the_parameters_are_the_networks_own() -> None:
    net = build_model(ModelConfig(arch="example", options={"width": 3}), "ab")
    assert [p.shape[0] for p in net.parameters()] == [3, 3, 3, 3, 2, 2]


def test_an_unknown_architecture_is_told_the_networks_of_the_project_too() -> None:
    said = r"model\.arch is 'exampel'; choose one of deeplabv3, .* example, .* Did you mean 'example'\?"
    with pytest.raises(ParamsError, match=said):
        build("exampel")


def test_a_step_after_the_logits_reaches_predictions_and_no_training() -> None:
    net, image = build("sharpened").train(), images(32, 32)
    logits = net(image)
    assert torch.equal(logits, net.decode(net.feature_maps(image)))
    net.eval()
    with torch.no_grad():
        plain = net.decode(net.feature_maps(image[:1]))
    torch.testing.assert_close(predict_probs(net, image[:1], EvalConfig()), (2 * plain).softmax(1))


def test_a_network_made_from_smps_starts_from_pretrained_weights(tmp_path: Path) -> None:
    net, other = build("sharpened"), build_model(ModelConfig(arch="sharpened"), "abcde")
    torch.save({f"encoder.{name}": value for name, value in encoder_of(other).state_dict().items()}, tmp_path / "w.pt")
    load_encoder_weights_(net, str(tmp_path / "w.pt"), encoder=ENCODER, cache_dir=tmp_path)
    for own, given in zip(net.encoder_parameters(), other.encoder_parameters(), strict=True):
        assert torch.equal(own, given)


def encoder_of(net: SegmentationNet) -> nn.Module:
    assert isinstance(net, SmpNet)
    encoder: nn.Module = net.net.encoder
    return encoder


class Named(Example):
    """Reads a number for each class from a file, which is its last layer's bias, and has a part that takes pretrained weights."""

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config, class_names)
        self.file = Path(str(config.options["file"]))
        self.register_buffer("numbers", torch.zeros(len(class_names)))

    def decode(self, features: list[Tensor]) -> Tensor:
        return super().decode(features) + self.numbers[:, None, None]

    def read_files_(self) -> None:
        self.numbers.copy_(torch.tensor([float(line) for line in self.file.read_text().split()]))

    def pretrained_part(self) -> nn.Module:
        return self.stem


def test_a_network_may_not_have_the_name_of_one_of_smp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "unet", Example)
    with pytest.raises(ParamsError, match=f"model.arch is 'unet', a network of segm.* that {Example.__module__} registers too"):
        build("unet")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelConfig:
    monkeypatch.setitem(MODELS, "named", Named)
    (tmp_path / "numbers.txt").write_text("1 2 3")
    other = build("example")
    assert isinstance(other, Example)
    torch.save(other.stem.state_dict(), tmp_path / "stem.pt")
    return ModelConfig(arch="named", weights=str(tmp_path / "stem.pt"), options={"file": str(tmp_path / "numbers.txt")})


def test_files_of_a_network_are_read_where_training_begins(named: ModelConfig, tmp_path: Path) -> None:
    net = network_factory(named, "abc", tmp_path)()
    assert isinstance(net, Named)
    assert net.numbers.tolist() == [1, 2, 3]
    given = torch.load(tmp_path / "stem.pt", weights_only=True)
    assert all(torch.equal(value, given[key]) for key, value in net.stem.state_dict().items())


def test_a_checkpoint_needs_no_other_file(named: ModelConfig, tmp_path: Path) -> None:
    state = network_factory(named, "abc", tmp_path)().state_dict()
    (tmp_path / "numbers.txt").unlink()
    (tmp_path / "stem.pt").unlink()
    again = build_with_weights(named, "abc", state)
    assert isinstance(again, Named)
    assert again.numbers.tolist() == [1, 2, 3]
