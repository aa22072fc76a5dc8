from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cwbass.losses.supervised import HardPixels, balanced_class_weights, supervised_cross_entropy

IGNORE = 255


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([0, 0], -math.log(0.75)),
        ([0, 1], (-math.log(0.75) - math.log(0.25)) / 2),
        ([1, IGNORE], -math.log(0.25)),  # the ignored pixel is in neither sum nor count
        ([IGNORE, IGNORE], 0.0),
    ],
)
def test_matches_hand_computed_value(mask: list[int], expected: float) -> None:
    logits = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)  # softmax is (3/4, 1/4)
    loss = supervised_cross_entropy(logits, torch.tensor(mask).view(1, 1, 2), ignore_index=IGNORE)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ignore_index", [255, 200, 19])
def test_equals_torchs_mean_where_some_pixel_is_labelled(ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 19, 7, 5, generator=generator)
    mask = torch.randint(0, 19, (2, 7, 5), generator=generator)
    mask[torch.rand(2, 7, 5, generator=generator) < 0.4] = ignore_index
    expected = F.cross_entropy(logits, mask, ignore_index=ignore_index)
    torch.testing.assert_close(supervised_cross_entropy(logits, mask, ignore_index=ignore_index), expected)


def test_all_ignored_gives_zero_loss_and_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = supervised_cross_entropy(logits, torch.full((2, 4, 4), IGNORE), ignore_index=IGNORE)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_class_weights_by_hand() -> None:
    # Shares 0.1, 0.1 and 0.8 of 100 pixels; the median share is 0.1. Before scaling 1, 1 and 1/8, with mean 0.3 over pixels.
    torch.testing.assert_close(balanced_class_weights([10, 10, 80], 1.0), torch.tensor([1.0, 1.0, 0.125]) / 0.3)
    root = torch.tensor([1.0, 1.0, math.sqrt(1 / 8)])
    torch.testing.assert_close(balanced_class_weights([10, 10, 80], 0.5), root / (0.2 + 0.8 * math.sqrt(1 / 8)))


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_the_mean_weight_of_a_labelled_pixel_is_one(power: float) -> None:
    pixels = torch.tensor([3, 500, 0, 70, 12_345])
    weight = balanced_class_weights(pixels.tolist(), power)
    assert ((weight * pixels).sum() / pixels.sum()).item() == pytest.approx(1.0)
    assert weight[2] == 1.0  # a class nobody labelled
    if power == 0:
        assert torch.equal(weight, torch.ones(5))
    else:
        assert weight[0] > weight[3] > weight[1] > weight[4]


def test_without_any_labelled_pixel_all_weigh_alike() -> None:
    assert torch.equal(balanced_class_weights([0, 0, 0], 0.5), torch.ones(3))


def test_full_balance_gives_every_class_the_same_share_of_the_loss() -> None:
    mask = torch.tensor([[[0] * 80 + [1] * 10 + [2] * 10]])
    weight = balanced_class_weights([80, 10, 10], 1.0)
    logits = torch.zeros(1, 3, 1, 100, requires_grad=True)
    supervised_cross_entropy(logits, mask, ignore_index=IGNORE, class_weight=weight).backward()
    assert logits.grad is not None
    own = torch.stack([logits.grad[0, k, 0, mask[0, 0] == k].sum() for k in range(3)])
    torch.testing.assert_close(own, own[0].expand(3))


def test_class_weights_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 5, generator=generator)
    mask = torch.randint(0, 5, (2, 7, 5), generator=generator)
    mask[:, :2] = IGNORE
    weight = torch.rand(5, generator=generator)
    expected = F.cross_entropy(logits, mask, weight=weight, ignore_index=IGNORE)
    torch.testing.assert_close(supervised_cross_entropy(logits, mask, ignore_index=IGNORE, class_weight=weight), expected)
    nothing = supervised_cross_entropy(logits, torch.full_like(mask, IGNORE), ignore_index=IGNORE, class_weight=weight)
    assert nothing.item() == 0.0


@pytest.mark.parametrize(
    ("threshold", "min_share", "expected"),
    [
        (0.7, 0.0, [False, False, True, True, True, False]),  # probabilities of at most 0.7
        (0.4, 0.0, [False, False, False, False, True, False]),
        (0.4, 0.4, [False, False, False, True, True, False]),  # two of five labelled pixels in any case
        (0.4, 0.41, [False, False, True, True, True, False]),  # 2.05 of them are three
        (0.1, 0.0, [False, False, False, False, True, False]),  # one at least
        (0.7, 1.0, [True, True, True, True, True, False]),  # all that are labelled
    ],
)
def test_hard_pixels_by_hand(threshold: float, min_share: float, expected: list[bool]) -> None:
    probability = torch.tensor([0.9, 0.8, 0.6, 0.5, 0.3, 0.01]).view(1, 1, 6)
    known = torch.tensor([True, True, True, True, True, False]).view(1, 1, 6)
    chosen = HardPixels(threshold, min_share).chosen(-probability.log(), known)
    assert chosen.flatten().tolist() == expected


def test_the_mean_of_hard_pixels_by_hand() -> None:
    probability = torch.tensor([0.9, 0.6, 0.3])
    logits = torch.stack([probability.log(), (1 - probability).log()])[None, :, None].requires_grad_()  # [1, 2, 1, 3]
    mask = torch.zeros(1, 1, 3, dtype=torch.int64)
    loss = supervised_cross_entropy(logits, mask, ignore_index=IGNORE, hard=HardPixels(0.7, 0.1))
    loss.backward()
    assert loss.item() == pytest.approx(-(math.log(0.6) + math.log(0.3)) / 2)
    assert logits.grad is not None  # p - 1 of the true class, over two pixels; nothing for the easy one
    torch.testing.assert_close(logits.grad[0, 0, 0], torch.tensor([0.0, -0.2, -0.35]))
    weight = torch.tensor([2.0, 1.0])
    mask[0, 0, 2] = 1  # whose class has 0.7: no longer above the threshold
    loss = supervised_cross_entropy(logits, mask, ignore_index=IGNORE, class_weight=weight, hard=HardPixels(0.65, 0.0))
    assert loss.item() == pytest.approx(-math.log(0.6))


def test_hard_pixels_are_those_of_the_usual_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(2, 9, 7, generator=generator)
    known = torch.rand(2, 9, 7, generator=generator) < 0.6
    for threshold, least in ((0.7, 5), (0.2, 40), (0.05, 17)):
        smallest = probability[known].sort().values[least - 1].item()
        expected = known & (probability <= max(threshold, smallest))
        share = (least - 0.5) / int(known.sum())
        assert torch.equal(HardPixels(threshold, share).chosen(-probability.log(), known), expected)


def test_a_share_of_all_takes_no_more_pixels_than_there_are() -> None:
    count = 2**24 + 3  # as float32, in which the share is taken, one more
    known = torch.ones(1, 1, count, dtype=torch.bool)
    assert bool(HardPixels(0.7, 1.0).chosen(torch.zeros(1, 1, count), known).all())


def test_without_a_labelled_pixel_none_is_hard() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = supervised_cross_entropy(logits, torch.full((2, 4, 4), IGNORE), ignore_index=IGNORE, hard=HardPixels(0.7, 0.1))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
