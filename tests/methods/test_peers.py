"""Losses of peers, worked by hand on a few pixels.

A pixel of probability p costs -ln p: ln 2 where the network is unsure, ln 4/3 at three quarters, ln 20/19 where it is sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lookup_net import SURE, SURE_OF_ONE, THREE_QUARTERS, UNSURE, LookupNet, labeled, unlabeled

from cwbass.config import ModelConfig
from cwbass.methods import METHODS, build_method
from cwbass.methods.base import Method
from cwbass.methods.consistency import Targets, cutmix, draw_cutmix, draw_odd_boxes, exchange
from cwbass.methods.corrmatch import Correlation, divergence, grow, propagate
from cwbass.methods.dssn import pair_distance
from cwbass.methods.mgd import image_distance, region_distance
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, StepOutput, UnlabeledBatch
from cwbass.world import ALONE

Steps = Callable[..., Progress]
Batches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
LN2, LN43, LN2019 = math.log(2), math.log(4 / 3), math.log(20 / 19)
OTHER = {UNSURE: 0.75, THREE_QUARTERS: 0.5, SURE: 0.95, SURE_OF_ONE: 0.05}  # what a second network says


def build(name: str, **settings: Any) -> Method:
    config = METHODS[name].config_cls.model_validate({"name": name, **settings})
    return build_method(config, LookupNet, num_classes=2, ignore_index=255)


def step(method: Method, batch: UnlabeledBatch, progress: Progress) -> StepOutput:
    """With a labelled image of the same size, of which one pixel is labelled. It costs ln 4/3."""
    others = batch.weak.shape[-1] - 1
    return method.training_step(labeled([THREE_QUARTERS] + [UNSURE] * others, [0] + [255] * others), batch, progress)


def test_mean_teacher_averages_squares_over_classes_and_over_all_pixels_that_show_something(progress: Steps) -> None:
    method = build("mean_teacher", unsup_weight=10.0)
    method.get_submodule("teacher").load_state_dict(LookupNet(OTHER).state_dict())
    batch = unlabeled([SURE, SURE, UNSURE], [SURE, UNSURE, UNSURE], padded=1)
    output = step(method, batch, progress())
    # Labelled: (0.75 - 0.5)^2; unlabelled: 0, and (0.5 - 0.95)^2; the same for both classes.
    distance = (0.0625 + 0.0 + 0.2025) / 3
    assert output.means["loss_unsup"].item() == pytest.approx(distance)
    assert output.loss.item() == pytest.approx(LN43 + 10 * distance)


def test_mean_teacher_with_one_view_shows_both_the_same(progress: Steps) -> None:
    output = step(build("mean_teacher", views="same"), unlabeled([SURE], [UNSURE]), progress())
    assert output.means["loss_unsup"].item() == 0.0


@pytest.mark.parametrize(
    ("tau", "padded", "expected"),
    [
        (0.9, 0, LN43 / 2),  # the first pixel of two
        (0.95001, 0, 0.0),
        (0.7, 0, (LN43 + LN2) / 2),
        (0.0, 1, LN43),  # the second shows nothing
    ],
)
def test_fixmatch_divides_by_valid_pixels_and_halves_the_sum(progress: Steps, tau: float, padded: int, expected: float) -> None:
    method = build("fixmatch", threshold={"tau": tau}, cutmix=0.0)
    batch = unlabeled([SURE, THREE_QUARTERS], [THREE_QUARTERS, UNSURE], padded=padded)
    output = step(method, batch, progress())
    assert output.means["loss_unsup"].item() == pytest.approx(expected)
    assert output.loss.item() == pytest.approx((LN43 + expected) / 2)
    assert output.means["threshold"].item() == pytest.approx(tau)


def test_fixmatch_counts_what_it_kept(progress: Steps) -> None:
    method = build("fixmatch", threshold={"tau": 0.9}, cutmix=0.0)
    batch = unlabeled([SURE, SURE_OF_ONE, THREE_QUARTERS, SURE], [UNSURE] * 4, padded=1)
    sums = step(method, batch, progress()).sums
    assert sums["seen"].tolist() == [2, 1]
    assert sums["kept"].tolist() == [1, 1]
    assert sums["confidence"].tolist() == pytest.approx([1.7, 0.95])


def test_labels_teach_without_learning(progress: Steps) -> None:
    method = build("fixmatch", cutmix=0.0, threshold={"tau": 0.9})
    nothing = labeled([UNSURE], [255])
    method.training_step(nothing, unlabeled([SURE], [UNSURE]), progress()).loss.backward()
    gradient = method.get_parameter("student.table").grad
    assert gradient is not None
    assert gradient[SURE].tolist() == [0, 0]
    assert gradient[UNSURE].tolist() == [-0.25, 0.25]  # half of p - y


def test_unimatch_adds_two_views_and_the_features(progress: Steps) -> None:
    method = build("unimatch", threshold={"tau": 0.9}, cutmix=0.0, feature_drop=0.0)
    batch = unlabeled([SURE, THREE_QUARTERS], [THREE_QUARTERS, UNSURE], [UNSURE, UNSURE])
    output = step(method, batch, progress())
    expected = 0.25 * LN43 / 2 + 0.25 * LN2 / 2 + 0.5 * LN2019 / 2
    assert output.means["loss_unsup"].item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx((LN43 + expected) / 2, rel=1e-5)


def test_unimatch_perturbs_features_of_unlabelled_images_alone(progress: Steps) -> None:
    costs = set()
    for seed in range(20):
        method = build("unimatch", threshold={"tau": 0.9}, cutmix=0.0, view_weight=0.0, feature_weight=1.0)
        output = step(method, unlabeled([SURE], [UNSURE]), progress(seed=seed))
        assert output.means["loss_sup"].item() == pytest.approx(LN43)
        costs.add(round(output.means["loss_unsup"].item(), 5))
    # The second logit is 0 anyway; the first, ln 19, is left out or doubled: ln 2, or ln(1 + 1/361).
    assert costs == {round(LN2, 5), round(math.log(362 / 361), 5)}


def test_unimatch_v2_is_taught_by_the_average_and_halves_twice(progress: Steps) -> None:
    method = build("unimatch_v2", threshold={"tau": 0.7}, cutmix=0.0, undivided=1.0)
    method.get_submodule("teacher").load_state_dict(LookupNet(OTHER).state_dict())
    # The teacher is sure enough of the first, as the student is not; and not of the second, as the student is.
    batch = unlabeled([UNSURE, THREE_QUARTERS], [THREE_QUARTERS, SURE], [UNSURE, SURE])
    output = step(method, batch, progress())
    expected = (LN43 / 2 + LN2 / 2) / 2
    assert output.means["loss_unsup"].item() == pytest.approx(expected)
    assert output.loss.item() == pytest.approx((LN43 + expected) / 2)


def test_the_two_views_of_unimatch_v2_share_the_channels(progress: Steps) -> None:
    method = build("unimatch_v2", threshold={"tau": 0.9}, cutmix=0.0, undivided=0.0)
    costs = {
        round(step(method, unlabeled([SURE], [SURE]), progress(seed=seed)).means["loss_unsup"].item(), 5) for seed in range(20)
    }
    # One view has the first logit doubled and the other none of it, whichever is which.
    assert costs == {round((LN2 + math.log(362 / 361)) / 2, 5)}


def cps(**settings: Any) -> Method:
    method = build("cps", **settings)
    method.get_submodule("second").load_state_dict(
        LookupNet({UNSURE: 0.25, THREE_QUARTERS: 0.25, SURE: 0.95, SURE_OF_ONE: 0.05}).state_dict()
    )
    return method


def test_cps_without_cutmix_learns_from_labelled_and_unlabelled_pixels(progress: Steps) -> None:
    output = step(cps(cutmix=False), unlabeled([SURE, UNSURE], [UNSURE, UNSURE], padded=1), progress())
    ln4 = math.log(4)
    # Labelled: the first says 0 at 0.75, the second 1 at 0.75: each gives the other's label 0.25. Unlabelled: both agree.
    crossed = (2 * ln4 + 2 * LN2019) / 2
    assert output.means["loss_sup"].item() == pytest.approx(LN43 + ln4)
    assert output.means["loss_unsup"].item() == pytest.approx(crossed, rel=1e-5)
    assert output.loss.item() == pytest.approx(LN43 + ln4 + 1.5 * crossed, rel=1e-5)


def test_cps_with_cutmix_learns_from_unlabelled_pixels_alone(progress: Steps) -> None:
    # A batch of one is its own partner, so that the mix changes nothing.
    output = step(cps(), unlabeled([SURE, THREE_QUARTERS], [UNSURE, UNSURE]), progress())
    crossed = (2 * LN2019 + 2 * math.log(4)) / 2
    assert output.means["loss_unsup"].item() == pytest.approx(crossed, rel=1e-5)
    assert output.loss.item() == pytest.approx(LN43 + math.log(4) + crossed, rel=1e-5)


def test_the_networks_of_cps_share_an_encoder_at_the_start_and_no_decoder(norm_net: type[SegmentationNet]) -> None:
    config = METHODS["cps"].config_cls.model_validate({"name": "cps"})
    method = build_method(config, norm_net, num_classes=4, ignore_index=255)
    warm = norm_net()  # type: ignore[call-arg]
    method.start_from({"student": warm})
    second = dict(method.get_submodule("second").named_parameters())
    for name, value in warm.named_parameters():
        assert torch.equal(second[name], value) == name.startswith("stem"), name
        assert second[name] is not method.get_parameter(f"student.{name}")


def test_boxes_of_cps_cover_at_most_their_area_and_undo_each_other(batches: Batches, progress: Steps) -> None:
    image = batches(size=64, side=40)[1].weak
    boxes = draw_odd_boxes(image, count=3, area=(0.3, 0.3), progress=progress())
    share = boxes.float().mean((1, 2))
    assert (share <= 0.33).all()  # three of a tenth each, give or take a row
    assert (share > 0.27).any()
    assert (share < 0.2).any()  # where two overlap, neither is


def test_images_are_exchanged_inside_the_mask_alone() -> None:
    label = torch.tensor([0, 1]).view(2, 1, 1).expand(2, 1, 2)
    inside = torch.tensor([[[True, False]], [[False, True]]])
    image, moved = exchange([label[:, None].expand(2, 3, 1, 2), label], inside, ALONE)
    assert moved.tolist() == [[[1, 0]], [[1, 0]]]  # the first image's left pixel and the second one's right pixel
    assert torch.equal(image, moved[:, None].expand_as(image))


def test_cutmix_moves_labels_weights_and_padding_with_the_pixels(progress: Steps) -> None:
    image = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 20, 20)
    label = image[:, 0].long()
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[1] = False
    targets = Targets(label, label * 0.5, label.float(), valid)
    boxes = draw_cutmix(image, probability=1.0, progress=progress())
    mixed, moved = cutmix(image, targets, boxes, ALONE)
    inside = torch.zeros_like(valid)
    for own, box in zip(inside, boxes, strict=True):
        own[box] = True
    assert inside.any((1, 2)).all()
    assert torch.equal(mixed[:, 0] == 1, inside ^ (label == 1))
    assert torch.equal(moved.label, mixed[:, 0].long())
    assert torch.equal(moved.weight, mixed[:, 0].float())
    assert torch.equal(moved.valid, mixed[:, 0] == 0)
    assert torch.equal(moved.confidence, moved.label * 0.5)


@pytest.mark.parametrize(
    ("name", "settings", "pixels"),
    [
        ("fixmatch", {"cutmix": 1.0, "threshold": {"tau": 0.9}}, 1),
        ("unimatch", {"cutmix": 1.0, "threshold": {"tau": 0.9}, "feature_drop": 0.0}, 1),  # 1/4, 1/4, and 1/2 of the features
        ("unimatch_v2", {"cutmix": 1.0, "threshold": {"tau": 0.9}, "undivided": 1.0}, 1),
        ("dssn", {"cutmix": 1.0, "feature_drop": 0.0}, 1),  # a quarter each of four; both views have one box, and agree
        ("corrmatch", {"cutmix": 1.0, "feature_drop": 0.0, "regions": 0, "correlation_weight": 0.0}, 0.5),
        ("cps", {}, 2),  # each network from the other
    ],
)
def test_labels_move_with_the_pixels_that_cutmix_pastes(
    progress: Steps, name: str, settings: dict[str, Any], pixels: float
) -> None:
    method = build(name, **settings)
    seen: list[torch.Tensor] = []
    encode = method.student.encode
    method.student.encode = lambda image: seen.append(image[:, 0].round()) or encode(image)  # type: ignore
    views = torch.tensor([SURE, SURE_OF_ONE], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 3, 20, 20)
    batch = UnlabeledBatch(views, views, torch.ones(2, 20, 20, dtype=torch.bool), strong2=views)
    nothing = LabeledBatch(views, torch.full((2, 20, 20), 255, dtype=torch.uint8))
    output = method.training_step(nothing, batch, progress())
    assert all(0 < int((image == SURE).sum()) < image.numel() for image in seen[-1])  # each shows a part of the other
    # The network is as sure of a pixel wherever it lies, and right if its label came along.
    assert output.means["loss_unsup"].item() == pytest.approx(pixels * LN2019, rel=1e-4)


def test_dssn_keeps_of_each_class_what_is_nearly_as_sure_as_its_surest_pixel(progress: Steps) -> None:
    method = build("dssn", cutmix=0.0, feature_drop=0.0, pair_weight=0.0)
    batch = unlabeled([SURE, THREE_QUARTERS, SURE_OF_ONE], [UNSURE, UNSURE, THREE_QUARTERS])
    output = step(method, batch, progress())
    assert output.sums["kept"].tolist() == [1, 1]
    # Each view: ln 2 for the first, ln 4 for the last, whose label is class 1. Each perturbation: two sure pixels.
    expected = 0.25 * (2 * (LN2 + math.log(4)) / 3 + 2 * (2 * LN2019) / 3)
    assert output.means["loss_unsup"].item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx((LN43 + expected) / 2, rel=1e-5)


def test_dssn_keeps_all_where_it_is_told_to(progress: Steps) -> None:
    method = build("dssn", rule="all", cutmix=0.0)
    batch = unlabeled([SURE, THREE_QUARTERS, SURE_OF_ONE], [UNSURE] * 3, padded=1)
    assert step(method, batch, progress()).sums["kept"].tolist() == [2, 0]


def test_pairs_are_compared_whatever_their_scale() -> None:
    one = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).t().reshape(1, 2, 1, 3)
    other = torch.tensor([[9.0, 5.0], [2.0, 0.0], [7.0, 7.0]]).t().reshape(1, 2, 1, 3)
    valid = torch.tensor([[[True, True, False]]])
    # Two logits of any distance become 1 and -1: the first pixel is the same in both, the second the opposite.
    assert pair_distance(one, other, valid, world=ALONE).item() == pytest.approx(2.0, abs=1e-4)
    assert pair_distance(one, other, torch.zeros_like(valid), world=ALONE).item() == 0.0


def test_equal_logits_have_a_finite_gradient_in_a_pair() -> None:
    one = torch.zeros(1, 3, 1, 1, requires_grad=True)
    pair_distance(
        one, torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), world=ALONE
    ).backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()


def test_correlation_is_a_softmax_of_scaled_products() -> None:
    correlation = Correlation(2, 4)
    for conv in (correlation.one, correlation.other):
        conv.weight.data.zero_()[0, 0] = 1.0
        conv.bias.data.zero_()  # type: ignore[union-attr]
    features = torch.tensor([[2.0, 0.0], [5.0, 7.0]]).view(1, 2, 1, 2)
    alike, size = correlation(features)
    assert size == (1, 2)
    e2 = math.exp(2.0)  # 2 * 2 / sqrt(4)
    assert alike[0].flatten().tolist() == pytest.approx([e2 / (e2 + 1), 1 / (e2 + 1), 0.5, 0.5])


def test_logits_spread_to_what_is_alike() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    alike = torch.tensor([[[0.75, 0.25], [0.0, 1.0]]])
    assert propagate(logits, alike, (1, 2)).flatten().tolist() == [3.0, 0.0, 0.5, 2.0]


def test_what_spreads_teaches_where_to_look_and_not_the_logits_to_be_a_mean() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2).requires_grad_()
    alike = torch.tensor([[[0.75, 0.25], [0.0, 1.0]]]).requires_grad_()
    propagate(logits, alike, (1, 2))[0, 0, 0, 0].backward()  # 4 * 0.75 + 0 * 0.25
    assert logits.grad is None
    assert alike.grad is not None
    assert alike.grad.flatten().tolist() == [4.0, 0.0, 0.0, 0.0]


def grown(tau: float, label: list[int], sure: list[int], valid: list[int]) -> Targets:
    """Four pixels of a row; one region holds the first three, another the last two."""
    targets = Targets(
        torch.tensor(label).view(1, 1, 4),
        torch.full((1, 1, 4), 0.6),
        (torch.tensor(sure) * torch.tensor(valid)).view(1, 1, 4).float(),
        torch.tensor(valid).view(1, 1, 4).bool(),
    )
    alike = torch.full((1, 4, 4), 0.1)
    alike[0, 0] = torch.tensor([0.3, 0.3, 0.3, 0.1])
    alike[0, 3] = torch.tensor([0.1, 0.1, 0.4, 0.4])
    return grow(targets, alike, (1, 4), torch.tensor(tau), torch.tensor([[0, 3]]), num_classes=2)


@pytest.mark.parametrize(
    ("tau", "label", "sure", "valid", "expected", "weight"),
    [
        # Two of three are sure and two of three say 0: so does the third, which is in no other accepted region.
        (0.6, [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]),
        (0.7, [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]),
        # Sure enough of one label, but not enough pixels are sure.
        (0.6, [0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]),
        # The second region is wholly of its label and wins the pixel that both hold.
        (0.6, [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]),
        # Padding neither votes nor is labelled.
        (0.45, [0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]),
    ],
)
def test_regions_that_are_sure_of_a_class_have_it_everywhere(
    tau: float, label: list[int], sure: list[int], valid: list[int], expected: list[int], weight: list[int]
) -> None:
    targets = grown(tau, label, sure, valid)
    assert targets.label.flatten().tolist() == expected
    assert targets.weight.flatten().tolist() == weight


def test_a_correlation_without_structure_makes_no_region() -> None:
    targets = Targets(torch.ones(1, 1, 2).long(), torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, 2).bool())
    same = grow(targets, torch.full((1, 2, 2), 0.5), (1, 2), torch.tensor(0.0), torch.zeros(1, 3).long(), num_classes=2)
    assert same.weight.sum() == 0


def test_the_threshold_of_corrmatch_follows_the_surest_pixel_of_each_class_that_is_said(progress: Steps) -> None:
    method = build("corrmatch", momentum=0.9, cutmix=0.0)
    batch = unlabeled([SURE, THREE_QUARTERS, SURE_OF_ONE, SURE_OF_ONE], [UNSURE] * 4, padded=1)
    output = step(method, batch, progress())
    assert output.means["threshold"].item() == pytest.approx(0.9 * 0.85 + 0.1 * 0.95)
    only_zero = unlabeled([THREE_QUARTERS, UNSURE], [UNSURE] * 2)
    output = step(method, only_zero, progress())
    assert output.means["threshold"].item() == pytest.approx(0.9 * 0.86 + 0.1 * 0.75)


@pytest.mark.parametrize("training", [True, False])
def test_corrmatch_counts_channels_without_a_trace_in_the_network(norm_net: type[SegmentationNet], training: bool) -> None:
    config = METHODS["corrmatch"].config_cls.model_validate({"name": "corrmatch"})
    method = build_method(config, lambda **other: norm_net(**other).train(training), num_classes=4, ignore_index=255)
    assert method.get_submodule("correlation.one").in_channels == 3
    assert method.student.training == training
    assert method.get_buffer("student.stem.1.num_batches_tracked") == 0


def test_corrmatch_adds_its_seven_losses(progress: Steps) -> None:
    method = build("corrmatch", tau=0.9, momentum=1.0, regions=0, cutmix=0.0, feature_drop=0.0)
    # One pixel an image: it attends to itself alone, and what is spread is what was said.
    output = step(method, unlabeled([SURE], [THREE_QUARTERS]), progress())
    divergence = 0.95 * math.log(0.95 / 0.75) + 0.05 * math.log(0.05 / 0.25)
    unsup = 0.25 * (LN43 + divergence) + 0.25 * LN2019 + 0.125 * (LN43 + LN2019)
    assert output.means["loss_unsup"].item() == pytest.approx(unsup, rel=1e-5)
    assert output.loss.item() == pytest.approx((0.5 * (LN43 + LN43) + unsup) / 2, rel=1e-5)


def test_all_that_corrmatch_asks_of_a_pixel_moves_with_it(progress: Steps) -> None:
    """The first image is sure of class 0, the second of nothing; its pixels cost nothing wherever they lie."""
    method = build("corrmatch", tau=0.9, momentum=1.0, regions=0, cutmix=1.0, feature_drop=0.0)
    for parameter in method.get_submodule("correlation").parameters():
        torch.nn.init.zeros_(parameter)  # each place attends to all alike: what is spread is the mean of an image's logits
    seen: list[torch.Tensor] = []
    encode = method.student.encode
    method.student.encode = lambda image: seen.append(image[:, 0].round()) or encode(image)  # type: ignore
    rows = torch.ones(2, 3, 20, 20, dtype=torch.uint8)
    weak, strong = (
        rows * torch.tensor(reds, dtype=torch.uint8).view(2, 1, 1, 1) for reds in ((SURE, UNSURE), (THREE_QUARTERS, UNSURE))
    )
    batch = UnlabeledBatch(weak, strong, torch.ones(2, 20, 20, dtype=torch.bool))
    nothing = LabeledBatch(weak, torch.full((2, 20, 20), 255, dtype=torch.uint8))
    output = method.training_step(nothing, batch, progress())
    shares = (seen[-1] == THREE_QUARTERS).double().mean((1, 2)).tolist()  # of each strong view, what is of the first image
    assert 0 < shares[1] < 0.5 < shares[0] < 1
    view = sum(shares) / 2 * (LN43 + 0.95 * math.log(0.95 / 0.75) + 0.05 * math.log(0.05 / 0.25))
    spread = sum(share * math.log(1 + 3**-share) for share in shares) / 2  # ln 3 is the logit of three quarters
    expected = 0.25 * (view + LN2019 / 2) + 0.125 * (spread + LN2019 / 2)
    assert output.means["loss_unsup"].item() == pytest.approx(expected, rel=1e-5)


def test_a_divergence_counts_where_labels_do_and_is_divided_by_all_valid_pixels() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0, 0.0, 5.0], [0.0] * 4]).view(1, 2, 1, 4)  # class 0 has 3/4, 1/2, 1/2
    probs = torch.tensor([[0.5, 0.9, 0.5, 0.5], [0.5, 0.1, 0.5, 0.5]]).view(1, 2, 1, 4)
    weight, valid = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]), torch.tensor([[[True, True, True, False]]])
    targets = Targets(torch.zeros(1, 1, 4).long(), torch.ones(1, 1, 4), weight, valid)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # of the first; the third agrees
    assert divergence(logits, probs, targets, world=ALONE).item() == pytest.approx(expected / 3, rel=1e-5)


def offline(**settings: Any) -> Method:
    config = METHODS["st_plus_plus"].config_cls.model_validate({"name": "st_plus_plus", **settings})
    return build_method(config, LookupNet, num_classes=2, ignore_index=255, offline=True)


def test_st_plus_plus_counts_all_pixels_alike(progress: Steps) -> None:
    batch = replace(
        unlabeled([UNSURE] * 3, [THREE_QUARTERS, THREE_QUARTERS, UNSURE], padded=1),
        pseudo_label=torch.tensor([0, 1, 255], dtype=torch.uint8).view(1, 1, 3),
        confidence=torch.tensor([204, 51, 0], dtype=torch.uint8).view(1, 1, 3),
    )
    output = offline().training_step(labeled([THREE_QUARTERS, UNSURE, UNSURE], [0, 255, 255]), batch, progress())
    # One labelled pixel at ln 4/3; of the two with offline labels one costs ln 4/3, one ln 4.
    assert output.loss.item() == pytest.approx((2 * LN43 + math.log(4)) / 3)
    assert output.means["loss_sup"].item() == pytest.approx(LN43)
    assert output.means["loss_unsup"].item() == pytest.approx((LN43 + math.log(4)) / 2)
    assert output.sums["kept"].tolist() == [1, 1]
    assert output.sums["confidence"].tolist() == pytest.approx([0.8, 0.2])


def test_the_first_stage_of_st_plus_plus_is_supervised(progress: Steps) -> None:
    output = build("st_plus_plus").training_step(labeled([THREE_QUARTERS], [0]), None, progress())
    assert output.loss.item() == pytest.approx(LN43)


def test_padding_of_offline_labels_and_unknown_masks_alone_cost_nothing(progress: Steps) -> None:
    batch = replace(
        unlabeled([UNSURE], [UNSURE], padded=1),
        pseudo_label=torch.full((1, 1, 1), 255, dtype=torch.uint8),
        confidence=torch.zeros(1, 1, 1, dtype=torch.uint8),
    )
    output = offline().training_step(labeled([UNSURE], [255]), batch, progress())
    output.loss.backward()
    assert output.loss.item() == 0.0


def test_images_are_compared_by_their_mean_logits_over_what_is_valid() -> None:
    one = torch.tensor([[1.0, 3.0, 100.0], [5.0, 5.0, 5.0]]).view(2, 1, 1, 3)
    other = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0]]).view(2, 1, 1, 3)
    valid = torch.tensor([[[True, True, False]], [[True, True, True]]])
    # The means are 2 and 2; 5 and 4/3. A second class that differs by 1 and by 2 adds to each image.
    assert image_distance(one, other, valid, world=ALONE).item() == pytest.approx((0 + 11 / 3) / 2)
    two, further = torch.cat((one, one), 1), torch.cat((other, one + torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)), 1)
    assert image_distance(two, further, valid, world=ALONE).item() == pytest.approx((0 + 1 + 11 / 3 + 2) / 2)
    valid[1] = False
    assert image_distance(one, other, valid, world=ALONE).item() == 0.0


def test_regions_are_compared_by_their_angles_to_each_other() -> None:
    # Two kinds of region, at right angles in one network and alike in the other; lengths do not matter.
    left = torch.zeros(1, 2, 7, 7)
    left[:, 0, :, :3], left[:, 1, :, 3:] = 5.0, 2.0
    alike = torch.full((1, 3, 14, 14), 0.5)
    valid = torch.ones(1, 14, 14, dtype=torch.bool)
    pairs = 2 * 21 * 28 / 49**2  # of one kind with the other
    assert region_distance(left, alike, valid, world=ALONE).item() == pytest.approx(pairs)
    valid[:, :, 6:] = False  # the second kind is padding
    assert region_distance(left, alike, valid, world=ALONE).item() == pytest.approx(0.0, abs=1e-6)


def test_mgd_adds_up_what_it_learns_from_both_teachers(progress: Steps) -> None:
    method = build("mgd", image_weight=2.0)
    for teacher in ("deep", "wide"):
        method.get_submodule(teacher).load_state_dict(
            LookupNet({UNSURE: 0.25, THREE_QUARTERS: 0.25, SURE: 0.95, SURE_OF_ONE: 0.05}).state_dict()
        )
    output = step(method, unlabeled([SURE], [UNSURE]), progress())
    ln4, ln3 = math.log(4), math.log(3)
    crossed = 2 * ln4 + 2 * LN2019  # with each teacher: of the labelled pixel, and of the mixed one
    # Of class 0 in the labelled image one says ln 3 and the other -ln 3; of the other image all say the same.
    image = 2 * ln3 / 2
    assert output.means["loss_sup"].item() == pytest.approx(LN43 + 2 * ln4)
    assert output.means["loss_unsup"].item() == pytest.approx(2 * crossed + 2.0 * image, rel=1e-5)


def test_mgd_asks_for_its_teachers_by_their_encoders(pixel_net: type[SegmentationNet]) -> None:
    asked: list[dict[str, Any]] = []

    def build_model(**other: Any) -> SegmentationNet:
        asked.append(other)
        return pixel_net()  # type: ignore[call-arg]

    config = METHODS["mgd"].config_cls.model_validate({"name": "mgd", "wide": {"encoder": "w", "weights": "w.pth"}})
    method = build_method(config, build_model, num_classes=4, ignore_index=255)
    assert asked == [
        {},
        {"key": "method.deep", "encoder": "resnet101", "weights": None},
        {"key": "method.wide", "encoder": "w", "weights": "w.pth"},
    ]
    assert list(method.networks()) == ["student"]


@pytest.mark.parametrize("name", ["unimatch", "unimatch_v2", "corrmatch", "dssn"])
def test_features_of_a_transformer_are_perturbed_too(name: str, batches: Batches, progress: Steps) -> None:
    options = {"dynamic_img_size": True, "embed_dim": 48, "num_heads": 2}
    options |= {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [16, 16, 16, 16]}
    config = ModelConfig(arch="dpt", encoder="tu-vit_small_patch14_dinov2", options=options)
    settings = METHODS[name].config_cls.model_validate({"name": name})
    method = build_method(settings, lambda **other: build_model(config, "abcd"), num_classes=4, ignore_index=255)
    output = method.training_step(*batches(side=56), progress())
    output.loss.backward()
    assert output.loss.isfinite()
    gradient = method.get_parameter("student.net.encoder.model.patch_embed.proj.weight").grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
