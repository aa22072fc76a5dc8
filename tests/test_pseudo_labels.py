from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwbass.pseudo_labels import (
    CONFIDENCE_BINS,
    adaptive_floor,
    confidence_and_label,
    confidence_counts,
    count_by_class,
    decay_factor,
    logistic_threshold,
    precision_curve,
    probabilities,
    retained,
    sum_by_class,
    thresholds_for_precision,
)
from cwbass.types import Reliability

PUBLISHED = {"base": 0.6, "beta": 0.5, "low": 0.3, "high": 0.8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_confidence_is_the_top_softmax_probability(dtype: torch.dtype, scale: float) -> None:
    logits = (torch.randn(2, 7, 5, 3, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    confidence, label = confidence_and_label(logits)
    expected, _ = logits.float().softmax(1).max(1)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, expected)
    assert torch.equal(logits.gather(1, label[:, None])[:, 0], logits.amax(1))
    assert confidence.max() <= 1
    assert confidence.min() >= 1 / 7 - 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [7, 40])
def test_probabilities_are_the_softmax_of_logits_in_any_layout(
    dtype: torch.dtype, layout: torch.memory_format, classes: int
) -> None:
    logits = torch.randn(2, classes, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    for shown in (logits, logits[..., :2]):
        expected = shown.float().softmax(1)
        torch.testing.assert_close(probabilities(shown), expected, rtol=1e-6, atol=1e-7)
        confidence, label = confidence_and_label(shown)
        torch.testing.assert_close(confidence, expected.amax(1), rtol=1e-6, atol=1e-7)
        assert torch.equal(shown.gather(1, label[:, None])[:, 0], shown.amax(1))


def test_confidence_leaves_the_logits_as_they_were() -> None:
    logits = torch.randn(1, 3, 2, 2)
    before = logits.clone()
    confidence_and_label(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("mean", "raw", "clamped"),
    [
        (1 / 21, 0.2662, 0.3000),
        (0.50, 0.3000, 0.3000),
        (0.70, 0.3150, 0.3150),
        (0.80, 0.3225, 0.3225),
        (0.90, 0.3299, 0.3299),
        (0.95, 0.3336, 0.3336),
        (0.99, 0.3366, 0.3366),
        (1.00, 0.3373, 0.3373),
    ],
)
def test_logistic_threshold_of_the_published_numbers(mean: float, raw: float, clamped: float) -> None:
    at = torch.tensor(mean)
    assert logistic_threshold(at, base=0.6, beta=0.5, low=0.0, high=1.0).item() == pytest.approx(raw, abs=5.1e-5)
    assert logistic_threshold(at, **PUBLISHED).item() == pytest.approx(clamped, abs=5.1e-5)


@pytest.mark.parametrize(("beta", "expected"), [(0.5, 0.334), (1, 0.366), (2, 0.427), (5, 0.543), (10, 0.593), (20, 0.600)])
def test_a_steeper_logistic_never_passes_its_base(beta: float, expected: float) -> None:
    tau = logistic_threshold(torch.tensor(0.95), base=0.6, beta=beta, low=0.3, high=0.8).item()
    assert tau == pytest.approx(expected, abs=6e-4)
    assert tau <= 0.6


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_published_threshold_rises_within_0_300_and_0_3373(one: float, other: float) -> None:
    low, high = sorted((one, other))
    tau = logistic_threshold(torch.tensor([low, high], dtype=torch.float64), **PUBLISHED).tolist()
    assert 0.3 <= tau[0] <= tau[1] <= 0.6 / (1 + 2.718281828 ** (-0.25)) + 1e-9  # 0.33731...


def test_confidence_counts_on_valid_pixels_of_each_class() -> None:
    confidence = torch.tensor([[[0.9, 0.5], [0.7, 0.1]]])
    label = torch.tensor([[[0, 0], [2, 2]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    sums = sum_by_class(confidence, label, valid, 4)
    torch.testing.assert_close(sums, torch.tensor([1.4, 0.0, 0.7, 0.0], dtype=torch.float64), rtol=0, atol=1e-7)
    assert count_by_class(label, valid, 4).tolist() == [2, 0, 1, 0]


def test_mean_confidence_of_four_million_equal_pixels_is_theirs() -> None:
    confidence = torch.full((1, 2048, 2048), 0.99)  # added up in float32, the mean would be 0.999
    label = torch.zeros(1, 2048, 2048, dtype=torch.long)
    total = sum_by_class(confidence, label, torch.ones_like(label, dtype=torch.bool), 1)
    assert total.item() / label.numel() == pytest.approx(0.99, abs=1e-6)


def test_a_sum_by_class_is_exact_where_float64_would_stop_counting() -> None:
    ones = 2**21  # 2^53 units of 2^-32: the next unit would be lost in float64
    values = torch.cat((torch.ones(ones), torch.full((10,), 2.0**-32)))
    label = torch.zeros(len(values), dtype=torch.long)
    assert sum_by_class(values, label, torch.ones_like(label, dtype=torch.bool), 1).item() == ones + 10 * 2.0**-32


def test_adaptive_floor_by_hand() -> None:
    tau = adaptive_floor(torch.tensor([0.9, 0.6, 0.3]), torch.tensor(0.8), scale=0.95)
    torch.testing.assert_close(tau, torch.tensor([0.76, 0.76 * 2 / 3, 0.76 / 3]))
    assert adaptive_floor(torch.zeros(3), torch.tensor(0.0), scale=0.95).tolist() == [0.0, 0.0, 0.0]


@pytest.fixture
def reliability() -> Reliability:
    """Two classes, two bins: [0, 1/2) and [1/2, 1]."""
    return Reliability(
        correct=torch.tensor([[1.0, 4.0], [0.0, 2.0]], dtype=torch.float64),
        total=torch.tensor([[4.0, 4.0], [2.0, 2.0]], dtype=torch.float64),
    )


def test_precision_counts_everything_at_or_above_a_threshold(reliability: Reliability) -> None:
    assert precision_curve(reliability, prior=0.0).tolist() == [[5 / 8, 4 / 4], [2 / 4, 2 / 2]]


def test_precision_is_shrunk_towards_that_of_all_classes(reliability: Reliability) -> None:
    pooled = 7 / 12  # at threshold 0; 6/6 at 1/2
    expected = torch.tensor([[(5 + 4 * pooled) / 12, 1.0], [(2 + 4 * pooled) / 8, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(precision_curve(reliability, prior=4.0), expected)


def test_precision_of_a_class_never_predicted_is_that_of_all() -> None:
    counts = Reliability(
        correct=torch.tensor([[3.0, 1.0], [0.0, 0.0]], dtype=torch.float64),
        total=torch.tensor([[4.0, 1.0], [0.0, 0.0]], dtype=torch.float64),
    )
    torch.testing.assert_close(precision_curve(counts, prior=10.0)[1], torch.tensor([0.8, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.6, [0.3, 0.5]),  # class 0 is right often enough at threshold 0, but low is the least
        (0.625, [0.3, 0.5]),  # reached exactly
        (0.9, [0.5, 0.5]),
        (0.4, [0.3, 0.3]),
    ],
)
def test_thresholds_are_the_lowest_that_reach_the_target(reliability: Reliability, target: float, expected: list[float]) -> None:
    assert thresholds_for_precision(reliability, target=target, low=0.3, high=0.95, prior=0.0).tolist() == expected


def test_a_class_that_never_reaches_the_target_gets_the_highest_threshold() -> None:
    counts = Reliability(
        correct=torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64),
        total=torch.tensor([[4.0, 4.0], [0.0, 0.0]], dtype=torch.float64),  # class 1 is never predicted: nothing speaks for it
    )
    assert thresholds_for_precision(counts, target=0.9, low=0.3, high=0.95, prior=0.0).tolist() == [0.95, 0.95]
    assert thresholds_for_precision(counts, target=0.9, low=0.3, high=0.95, prior=100.0).tolist() == [0.95, 0.95]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=4, max_size=4), st.floats(0.05, 1), st.floats(0, 50))
def test_a_threshold_that_was_found_keeps_its_promise(bins: list[tuple[int, int]], target: float, prior: float) -> None:
    right, wrong = (torch.tensor([[pair[i] for pair in bins]], dtype=torch.float64) for i in (0, 1))
    counts = Reliability(correct=right, total=right + wrong)
    tau = thresholds_for_precision(counts, target=target, low=0.0, high=0.99, prior=prior).item()
    curve = precision_curve(counts, prior=prior)[0]
    if tau == 0.99:
        assert not (curve >= target).any()
    else:
        assert curve[int(tau * 4)] >= target
        assert not (curve[: int(tau * 4)] >= target).any()


@pytest.mark.parametrize(
    ("tau", "right", "kept"),
    [
        (0.0, [5, 2], [8, 4]),
        ([0.0, 0.5], [5, 2], [8, 2]),
        ([0.3, 1.0], [4, 0], [4, 0]),  # 0.3 is rounded up to 1/2; nothing is at or above 1
    ],
)
def test_what_is_retained_by_hand(reliability: Reliability, tau: float | list[float], right: list[int], kept: list[int]) -> None:
    correct, total = retained(reliability, torch.tensor(tau))
    assert (correct.tolist(), total.tolist()) == (right, kept)


def test_retained_takes_a_float32_edge_for_the_edge_it_is() -> None:
    bins = torch.arange(100, dtype=torch.float64)
    counts = Reliability(correct=bins[None], total=torch.full((1, 100), 100.0, dtype=torch.float64))
    for n in range(100):  # 0.3 in float32 is 0.300000012, and still the edge of bin 30
        correct, total = retained(counts, torch.tensor(n / 100, dtype=torch.float32).double())
        assert (correct.item(), total.item()) == (bins[n:].sum().item(), 100.0 * (100 - n))


@pytest.mark.parametrize(
    ("rule", "fraction", "expected"),
    [
        ("none", 0.5, 1.0),
        ("constant", 0.0, 0.9),
        ("constant", 1.0, 0.9),
        ("progressive", 0.0, 1.0),
        ("progressive", 0.5, 0.95),
        ("progressive", 1.0, 0.9),
    ],
)
def test_decay_factor(rule: str, fraction: float, expected: float) -> None:
    assert decay_factor(rule, factor=0.9, fraction=fraction) == pytest.approx(expected)


def test_confidences_are_counted_in_bins_that_include_their_lower_edge() -> None:
    confidence = torch.tensor([[0.0, 0.005, 0.5, 0.3], [0.999, 1.0, 0.75, 0.3]])
    label = torch.tensor([[0, 0, 2, 255], [2, 0, 0, 255]])  # what lies outside the mask need be no class
    counts = confidence_counts(confidence, label, confidence != 0.3, 3)
    assert counts.shape == (3, CONFIDENCE_BINS)
    found = [{index: int(count) for index, count in enumerate(row) if count} for row in counts]
    assert found == [{0: 2, 75: 1, 99: 1}, {}, {50: 1, 99: 1}]


def test_counts_and_sums_by_class_are_those_of_bincount() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (2, 40, 30), generator=generator)
    where = torch.rand(label.shape, generator=generator) < 0.6
    confidence = torch.rand(label.shape, generator=generator)
    loose = label.where(where, 255)  # what lies outside the mask need be no class
    assert torch.equal(count_by_class(loose, where, 7), torch.bincount(label[where], minlength=7))
    sums = torch.bincount(label[where], weights=confidence[where].double(), minlength=7)
    torch.testing.assert_close(sum_by_class(confidence, loose, where, 7), sums, rtol=0, atol=1e-6)


def test_a_sum_by_class_does_not_depend_on_the_order_of_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    label, confidence = torch.randint(0, 3, (9999,), generator=generator), torch.rand(9999, generator=generator)
    order = torch.randperm(9999, generator=generator)
    everywhere = torch.ones_like(label, dtype=torch.bool)
    one, other = sum_by_class(confidence, label, everywhere, 3), sum_by_class(confidence[order], label[order], everywhere, 3)
    assert torch.equal(one, other)
