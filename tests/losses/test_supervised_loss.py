from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cwbass.losses.supervised import supervised_cross_entropy

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
