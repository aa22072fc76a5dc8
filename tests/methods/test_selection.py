from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cwbass.methods import METHODS, build_method
from cwbass.methods.base import BuildModel
from cwbass.methods.consistency import Targets
from cwbass.methods.fixmatch import FixMatch, FixMatchConfig
from cwbass.methods.selection import Selection, SelectionConfig
from cwbass.models.base import SegmentationNet
from cwbass.pseudo_labels import class_aware_thresholds, self_adaptive_thresholds, soft_weight
from cwbass.world import ALONE, World

PROBS = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.01, 0.99]])  # the last pixel is padding
LOGITS = PROBS.log().t().reshape(1, 2, 1, 4)
VALID = torch.tensor([[[True, True, True, False]]])


def select(**settings: Any) -> tuple[Selection, list[float]]:
    selection = Selection(SelectionConfig(**settings), 2)
    targets = selection(LOGITS, VALID, ALONE)
    assert targets.label.flatten().tolist() == [0, 0, 1, 1]
    return selection, targets.weight.flatten().tolist()


@pytest.mark.parametrize(("tau", "expected"), [(0.0, [1, 1, 1, 0]), (0.65, [1, 0, 1, 0]), (0.9, [0, 0, 0, 0])])
def test_strict_keeps_the_sure(tau: float, expected: list[int]) -> None:
    assert select(tau=tau)[1] == expected


def test_freematch_lowers_the_threshold_of_a_class_that_is_said_seldom() -> None:
    selection, weight = select(rule="freematch", momentum=0.0)
    # Mean confidence (0.8 + 0.6 + 0.7) / 3 = 0.7; mean probabilities 1.7 / 3 and 1.3 / 3.
    assert selection.threshold().tolist() == pytest.approx([0.7, 0.7 * 1.3 / 1.7])  # type: ignore[union-attr]
    assert weight == [1, 0, 1, 0]


def test_freematch_remembers() -> None:
    selection, _ = select(rule="freematch", momentum=0.9)
    assert selection.mean.item() == pytest.approx(0.9 * 0.5 + 0.1 * 0.7)
    assert selection.class_probs.tolist() == pytest.approx([0.45 + 0.1 * 1.7 / 3, 0.45 + 0.1 * 1.3 / 3])


def test_softmatch_weighs_by_the_distance_below_the_mean() -> None:
    selection, weight = select(rule="softmatch", momentum=0.0)
    assert selection.variance.item() == pytest.approx(0.01)  # of 0.8, 0.6, 0.7 around 0.7
    assert weight == pytest.approx([1, math.exp(-0.5), 1, 0], rel=1e-4)
    assert selection.threshold() is None


def test_padding_alone_is_not_remembered() -> None:
    for rule in ("freematch", "softmatch"):
        selection = Selection(SelectionConfig(rule=rule, momentum=0.5), 2)  # type: ignore[arg-type]
        before = {name: value.clone() for name, value in selection.named_buffers()}
        targets = selection(LOGITS, torch.zeros_like(VALID), ALONE)
        assert targets.weight.sum() == 0
        assert all(torch.equal(value, before[name]) for name, value in selection.named_buffers())


def test_a_wide_spread_weighs_all_alike_and_no_variance_rejects_what_is_below() -> None:
    confidence, mean = torch.tensor([0.5, 0.7, 0.9]), torch.tensor(0.7)
    wide = soft_weight(confidence, mean, torch.tensor(0.04), spread=2.0)
    assert wide.tolist() == pytest.approx([math.exp(-0.125), 1, 1])  # (0.2 / 0.4)^2 / 2
    assert soft_weight(confidence, mean, torch.tensor(0.0), spread=1.0).tolist() == [0, 1, 1]


def test_the_most_frequent_class_has_the_mean_confidence() -> None:
    tau = self_adaptive_thresholds(torch.tensor([0.1, 0.4, 0.0]), torch.tensor(0.8))
    assert tau.tolist() == pytest.approx([0.2, 0.8, 0.0])


def test_class_aware_thresholds_follow_the_surest_pixel_of_each_image() -> None:
    confidence = torch.tensor([[[0.95, 0.90, 0.99]], [[0.92, 0.5, 0.99]]])
    label = torch.tensor([[[0, 0, 1]], [[0, 1, 1]]])
    valid = torch.tensor([[[True, True, True]], [[True, True, False]]])
    tau = class_aware_thresholds(confidence, label, valid, 3, scale=0.96, floor=0.92)
    assert tau[0].tolist() == pytest.approx([0.96 * 0.95, 0.96 * 0.99, 0])
    assert tau[1].tolist() == pytest.approx([0.92, 0.5, 0])  # 0.92 does not exceed the floor; padding does not count


def kept(name: str, net: type[SegmentationNet], threshold: Tensor | None, **settings: Any) -> list[bool]:
    """What a method would keep of pixels of class 0 and 0, and of class 1 and 1."""
    method = build_method(METHODS[name].config_cls(name=name, **settings), net, num_classes=2, ignore_index=255)  # type: ignore[call-arg]
    confidence, label = torch.tensor([[[0.9, 0.5, 0.7, 0.69]]]), torch.tensor([[[0, 0, 1, 1]]])
    return method.keeps(confidence, label, threshold).flatten().tolist()  # type: ignore[no-any-return]


def test_whole_images_are_judged_by_the_rule_of_training(pixel_net: type[SegmentationNet]) -> None:
    assert kept("cw_bass", pixel_net, torch.tensor([0.6, 0.69])) == [True, False, True, False]  # above tau
    assert kept("fixmatch", pixel_net, torch.tensor([0.6, 0.69])) == [True, False, True, True]  # tau or more
    assert kept("cw_bass", pixel_net, None) == [True] * 4
    assert kept("mean_teacher", pixel_net, None) == [True] * 4
    # 0.891 and 0.693: of the highest confidence of each class.
    assert kept("dssn", pixel_net, None, rule="class_aware", scale=0.99, floor=0.5) == [True, False, True, False]
    # Below the floor the surest pixel of each class speaks for it.
    assert kept("dssn", pixel_net, None, rule="class_aware", scale=0.5, floor=0.95) == [True, False, True, False]


class OwnConfig(FixMatchConfig):
    name: Literal["own"] = "own"  # type: ignore[assignment]


class FirstColumn(Selection):
    """A rule of one's own: what lies in the first column teaches."""

    @torch.no_grad()
    def forward(self, logits: Tensor, valid: Tensor, world: World) -> Targets:
        targets = super().forward(logits, valid, world)
        weight = torch.zeros_like(targets.weight)
        weight[..., 0] = 1
        return replace(targets, weight=weight * valid)


class Own(FixMatch):
    config_cls = OwnConfig

    def __init__(self, config: OwnConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.selection = FirstColumn(config.threshold, self.num_classes)


def test_a_method_that_is_derived_takes_a_rule_of_its_own(pixel_net: type[SegmentationNet], batches: Any, progress: Any) -> None:
    method = Own(OwnConfig(cutmix=0.0), pixel_net, num_classes=4, ignore_index=255)
    labeled, unlabeled = batches()
    output = method(labeled, unlabeled, progress())
    taught = unlabeled.valid[:, :, 0]
    assert output.sums["kept"].sum() == taught.sum()
    label = method.student(unlabeled.weak).argmax(1)[:, :, 0]
    cost = F.cross_entropy(method.student(unlabeled.strong)[..., 0], label, reduction="none")  # [B, H]
    expected = (cost * taught).sum() / unlabeled.valid.sum()
    assert output.means["loss_unsup"].item() == pytest.approx(expected.item(), rel=1e-5)
