"""Networks that ask for more than a batch of images say so in our words, and name a mend that works."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from cwbass.config import ModelConfig
from cwbass.errors import ParamsError
from cwbass.models import MODELS, build_model
from cwbass.models.base import SegmentationNet
from cwbass.models.trainable import check_trainable

SMALL = "tu-mobilenetv4_conv_small_050"
VIT = "tu-vit_tiny_patch16_224"


def check(arch: str, encoder: str, *, crop_size: int, batch: int, **options: bool | int) -> None:
    config = ModelConfig(arch=arch, encoder=encoder, options=options)
    check_trainable(build_model(config, "abc"), config, "abc", crop_size=crop_size, batch=batch)


@pytest.mark.parametrize(
    ("arch", "encoder", "crop_size", "batch", "mend"),
    [
        ("deeplabv3", SMALL, 64, 1, "Raise train.batch_labeled and train.batch_unlabeled to 2 or more."),
        ("deeplabv3plus", SMALL, 64, 1, "Raise train.batch_labeled and train.batch_unlabeled to 2 or more."),
        ("pan", SMALL, 96, 4, "Raise augment.crop_size to 128."),
        ("dpt", VIT, 64, 2, "Set model.options: {dynamic_img_size: true}."),
    ],
)
def test_what_a_network_cannot_be_trained_on_is_told_with_keys_values_and_mend(
    arch: str, encoder: str, crop_size: int, batch: int, mend: str
) -> None:
    with pytest.raises(ParamsError) as caught:
        check(arch, encoder, crop_size=crop_size, batch=batch)
    said = str(caught.value)
    assert said.startswith(
        f"model.arch {arch} with encoder {encoder} cannot be trained on batches of {batch} crops of {crop_size} pixels "
        "(the smaller of train.batch_labeled and train.batch_unlabeled, augment.crop_size): "
    )
    assert said.endswith(f". {mend}")


@pytest.mark.parametrize(
    ("arch", "encoder", "crop_size", "batch", "options"),
    [
        ("deeplabv3", SMALL, 64, 2, {}),
        ("pan", SMALL, 128, 4, {}),
        ("dpt", VIT, 64, 2, {"dynamic_img_size": True}),
        ("unet", SMALL, 33, 1, {}),
    ],
)
def test_the_mends_work_in_a_real_step(arch: str, encoder: str, crop_size: int, batch: int, options: dict[str, bool]) -> None:
    config = ModelConfig(arch=arch, encoder=encoder, options=options)
    net = build_model(config, "abc")
    check_trainable(net, config, "abc", crop_size=crop_size, batch=batch)
    logits = net.train()(torch.zeros(batch, 3, crop_size, crop_size))
    logits.sum().backward()
    assert logits.shape == (batch, 3, crop_size, crop_size)
    assert all(each.grad.isfinite().all() for each in net.parameters() if each.grad is not None)


def test_looking_changes_nothing() -> None:
    config = ModelConfig(arch="unet", encoder=SMALL)
    net = build_model(config, "abc").eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_trainable(net, config, "abc", crop_size=32, batch=2)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Strict(SegmentationNet):
    """Takes crops of 64 pixels or more, and its own option alone."""

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config.mean, config.std)
        self._build(len(class_names), **config.options)

    def _build(self, classes: int, *, width: int) -> None:
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, classes, 1)

    def encode(self, image: Tensor) -> list[Tensor]:
        if min(image.shape[-2:]) < 64:
            raise ValueError("too small")
        return [self.stem(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(features[0])
        return logits

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.stem.parameters())


class Coarse(Strict):
    """Its logits are of another size, of one class too many, or not there."""

    def _build(self, classes: int, *, extra: int = 0, stride: int = 1, tuples: bool = False) -> None:
        self.stem, self.head, self.tuples = nn.Conv2d(3, 4, stride, stride), nn.Conv2d(4, classes + extra, 1), tuples

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return (logits, logits) if self.tuples else logits  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("options", "seen"),
    [({"extra": 1}, "logits of [4, 64, 64]"), ({"stride": 4}, "logits of [3, 16, 16]"), ({"tuples": True}, "a tuple")],
)
def test_logits_that_are_not_one_of_each_class_for_each_pixel_are_refused(
    options: dict[str, int], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "coarse", Coarse)
    with pytest.raises(ParamsError) as caught:
        check("coarse", "resnet50", crop_size=64, batch=2, **options)
    assert str(caught.value) == (
        f"model.arch coarse gives {seen} for an image; they must be [classes, height, width], here [3, 64, 64]. "
        "Mend what its decode returns, or choose another model.arch."
    )


@pytest.mark.parametrize("encoder", ["resnet50", VIT])
def test_a_network_of_ones_own_is_given_its_own_options_alone(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "strict", Strict)
    with pytest.raises(ParamsError, match=r"too small\. Raise augment\.crop_size to 64\.$"):
        check("strict", encoder, crop_size=32, batch=2, width=4)
