from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cwbass.losses.confidence import confidence_weighted_mean, pixel_cross_entropy, soft_cross_entropy

IGNORE = 255
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("labels", "confidence", "gamma", "expected"),
    [
        ([0, 1], [1.0, 0.5], 1.0, 0.75 * LN2),  # uniform logits: each pixel costs ln 2
        ([0, 1], [1.0, 0.5], 2.0, 0.625 * LN2),
        ([0, 1], [0.2, 0.5], 0.0, LN2),
        ([0, 1], [0.0, 1.0], 0.0, LN2),  # 0 ** 0 is 1: gamma 0 weighs all alike
        ([0, IGNORE], [1.0, 0.9], 1.0, LN2),  # divided by one kept pixel
        ([0, IGNORE], [0.5, 0.9], 1.0, 0.5 * LN2),
        ([IGNORE, IGNORE], [1.0, 0.9], 1.0, 0.0),
    ],
)
def test_matches_hand_computed_value(labels: list[int], confidence: list[float], gamma: float, expected: float) -> None:
    target = torch.tensor(labels).view(1, 1, 2)
    pixel_loss = pixel_cross_entropy(torch.zeros(1, 2, 1, 2), target, ignore_index=IGNORE)
    loss = confidence_weighted_mean(pixel_loss, torch.tensor(confidence).view(1, 1, 2), target != IGNORE, gamma=gamma)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_count_replaces_the_number_of_kept_pixels() -> None:
    pixel_loss = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    confidence = torch.tensor([[[0.5, 1.0, 1.0, 1.0]]])
    kept = torch.tensor([[[True, True, False, False]]])
    per_kept = confidence_weighted_mean(pixel_loss, confidence, kept, gamma=1.0)
    per_valid = confidence_weighted_mean(pixel_loss, confidence, kept, gamma=1.0, count=torch.tensor(4))
    assert per_kept.item() == (0.5 * 1 + 1 * 2) / 2
    assert per_valid.item() == (0.5 * 1 + 1 * 2) / 4


def test_pixel_losses_are_zero_where_ignored_and_negative_log_probability_elsewhere() -> None:
    logits = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    loss = pixel_cross_entropy(logits, torch.tensor([[[0, 1, IGNORE]]]), ignore_index=IGNORE)
    torch.testing.assert_close(loss, torch.tensor([[[-math.log(0.75), -math.log(0.25), 0.0]]]))


def test_all_rejected_gives_zero_loss_and_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.full((2, 4, 4), IGNORE)
    pixel_loss = pixel_cross_entropy(logits, target, ignore_index=IGNORE)
    loss = confidence_weighted_mean(pixel_loss, torch.rand(2, 4, 4), target != IGNORE, gamma=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_without_weight_and_threshold_it_is_plain_hard_self_training() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(2, 5, 6, 7, generator=generator)
    label = torch.randn(2, 5, 6, 7, generator=generator).argmax(1)
    loss = confidence_weighted_mean(
        pixel_cross_entropy(student, label, ignore_index=IGNORE),
        torch.rand(2, 6, 7, generator=generator),
        torch.ones(2, 6, 7, dtype=torch.bool),
        gamma=0.0,
    )
    torch.testing.assert_close(loss, F.cross_entropy(student, label))


def test_a_rejected_pixel_sends_no_gradient() -> None:
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    kept = torch.tensor([[[True, False]]])
    pixel_loss = pixel_cross_entropy(logits, torch.zeros(1, 1, 2, dtype=torch.long), ignore_index=IGNORE)
    confidence_weighted_mean(pixel_loss, torch.full((1, 1, 2), 0.8), kept, gamma=1.0).backward()
    # softmax - one-hot is (-1/2, 1/2), times confidence 0.8, over one kept pixel
    expected = torch.tensor([[[[-0.4, 0.0]], [[0.4, 0.0]]]])
    torch.testing.assert_close(logits.grad, expected)


def test_soft_labels_by_hand() -> None:
    logits = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1)  # softmax is (3/4, 1/4)
    probs = torch.tensor([0.4, 0.6]).view(1, 2, 1, 1)
    assert soft_cross_entropy(logits, probs).item() == pytest.approx(-0.4 * math.log(0.75) - 0.6 * math.log(0.25))


def test_soft_labels_that_are_certain_are_hard_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 3, 4, generator=generator)
    label = torch.randint(0, 5, (2, 3, 4), generator=generator)
    certain = F.one_hot(label, 5).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(soft_cross_entropy(logits, certain), pixel_cross_entropy(logits, label, ignore_index=IGNORE))


def test_a_student_that_agrees_with_a_soft_label_is_left_alone() -> None:
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(4), requires_grad=True)
    soft_cross_entropy(logits, logits.detach().softmax(1)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)
