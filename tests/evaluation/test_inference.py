from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import EvalConfig
from cwbass.errors import ParamsError
from cwbass.evaluation.inference import Predictor, predict_probs


class PointNet(nn.Module):
    """A 1x1 convolution: what it says of a pixel depends on that pixel alone."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_classes, 1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        return self.conv(image.float() / 64)


class GreedyNet(nn.Module):
    """Asks for more than a GPU has."""

    def forward(self, image: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.")


class ContextNet(PointNet):
    """Looks around, and not the same way to the left as to the right."""

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return logits + F.pad(logits, (3, 0, 0, 0))[..., :-3]


class CornerNet(nn.Module):
    """Logit of class 1 is 1 at the first pixel of what it is shown, and 0 elsewhere."""

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.zeros(len(image), 2, *image.shape[2:])
        logits[:, 1, 0, 0] = 1
        return logits


def an_image(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def slide(window: int, stride: int, **others: object) -> EvalConfig:
    return EvalConfig(protocol="slide", window=window, stride=stride, **others)


@pytest.mark.parametrize(
    ("scales", "middle"), [([0.4], 0.4), ([0.5, 1.0], 1.0), ([0.5, 0.75, 1.0, 1.25, 1.5, 1.75], 1.0), ([2.0, 0.5, 1.0], 1.0)]
)
def test_the_network_alone_is_one_pass_at_the_scale_nearest_to_their_geometric_mean(scales: list[float], middle: float) -> None:
    config = EvalConfig(scales=scales, flip=True, protocol="slide", window=64, stride=32)
    alone = Predictor(config, torch.device("cpu"), None).network_alone.config
    assert (alone.scales, alone.flip, alone.protocol, alone.window) == ([middle], False, "slide", 64)


def test_whole_image_is_the_softmax_of_the_logits():
    net, image = PointNet(), an_image(13, 9)
    assert torch.equal(predict_probs(net, image, EvalConfig()), net(image).softmax(1))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (16, 41), (17, 16), (7, 50), (5, 3)])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 11), (16, 16), (24, 9)])
@pytest.mark.parametrize("num_classes", [1, 3, 21])
def test_windows_give_what_the_whole_image_gives(height: int, width: int, window: int, stride: int, num_classes: int):
    net, image = PointNet(num_classes), an_image(height, width)
    torch.testing.assert_close(predict_probs(net, image, slide(window, stride)), predict_probs(net, image, EvalConfig()))


def test_image_smaller_than_the_window_is_one_window_of_its_own_size():
    net = PointNet()
    predict_probs(net, an_image(50, 70), slide(801, 534))
    assert net.seen == [(1, 3, 50, 70)]


def test_windows_stay_inside_the_image_and_come_four_at_a_time():
    net = PointNet()
    # Rows start at 0, 16 and 24 - 16 = 8 -> [0, 8]; columns at 0, 12, 24, 36 and 60 - 16 = 44.
    predict_probs(net, an_image(24, 60), slide(16, 12))
    assert net.seen == [(4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 16, 16)]


def test_middle_of_a_window_outweighs_the_edge_of_its_neighbour():
    # Windows of 16 columns start at 0 and 8: at column 8 the first is at its middle, the second at its first pixel.
    logits = predict_probs(CornerNet(), an_image(16, 24), slide(16, 8)).logit()[0, 1, 0]  # class 1 against class 0
    assert logits[0] == pytest.approx(1.0, abs=1e-5)  # nobody else sees it
    # sin^2 of half a pixel of 16 is below the floor of 0.01; that of 8.5 pixels is 0.9904.
    assert logits[8] == pytest.approx(0.01 / (0.01 + 0.99039), rel=1e-2)
    assert logits[[4, 12, 20]].abs().max() < 1e-6


@pytest.mark.parametrize(
    "config", [EvalConfig(flip=True), EvalConfig(flip=True, scales=[0.5, 1.0, 1.75]), slide(16, 11, flip=True)]
)
def test_flip_makes_the_answer_to_a_mirrored_image_the_mirrored_answer(config: EvalConfig):
    net, image = ContextNet(), an_image(31, 45)
    answer, mirrored = predict_probs(net, image, config), predict_probs(net, image.flip(-1), config)
    torch.testing.assert_close(mirrored, answer.flip(-1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(predict_probs(net, image, EvalConfig()).flip(-1), predict_probs(net, image.flip(-1), EvalConfig()))


def test_scales_are_averaged_as_probabilities():
    net, image = PointNet(), an_image(20, 30)
    each = [predict_probs(net, image, EvalConfig(scales=[scale])) for scale in (0.5, 1.0, 1.5)]
    torch.testing.assert_close(predict_probs(net, image, EvalConfig(scales=[0.5, 1.0, 1.5])), sum(each) / 3)
    assert net.seen[:3] == [(1, 3, 10, 15), (1, 3, 20, 30), (1, 3, 30, 45)]


def test_scaling_keeps_the_values_of_a_flat_image():
    net, image = PointNet(), torch.full((1, 3, 11, 7), 200, dtype=torch.uint8)
    flat = predict_probs(net, image, EvalConfig())
    torch.testing.assert_close(predict_probs(net, image, EvalConfig(scales=[0.01, 0.6, 2.3], flip=True)), flat)


@pytest.mark.parametrize("config", [EvalConfig(), EvalConfig(scales=[0.75, 1.25], flip=True), slide(16, 8, scales=[0.5, 2.0])])
def test_result_is_a_distribution_at_the_size_of_the_image(config: EvalConfig):
    probs = predict_probs(ContextNet(5), an_image(33, 47), config)
    assert probs.shape == (1, 5, 33, 47)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 33, 47))


def test_low_precision_logits_are_averaged_in_float32():
    class Half(PointNet):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image).bfloat16()

    net, image = Half(), an_image(40, 40)
    whole = predict_probs(net, image, EvalConfig())
    assert whole.dtype == torch.float32
    torch.testing.assert_close(predict_probs(net, image, slide(16, 8)), whole, atol=1e-5, rtol=1e-4)


def test_an_image_too_large_for_the_gpu_is_named_with_the_way_out() -> None:
    predictor = Predictor(EvalConfig(), torch.device("cpu"), autocast_dtype=None)
    with pytest.raises(ParamsError, match=r"an image of 40x30 \(CUDA out of memory.*Set eval\.protocol: slide"):
        predictor.probs(GreedyNet(), np.zeros((30, 40, 3), np.uint8))
