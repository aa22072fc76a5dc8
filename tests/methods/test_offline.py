from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.methods.offline import OfflineCwBass
from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, Reliability, UnlabeledBatch

CLASSES = 4
IGNORE = 255
Batches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
Steps = Callable[..., Progress]
Net = type[SegmentationNet]
M = TypeVar("M", bound=CwBass)


class Oracle(SegmentationNet):
    """Red says the label, green the confidence, in 255ths: the rest is shared by the other classes."""

    def __init__(self) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def forward(self, image: Tensor) -> Tensor:
        label, confidence = answers(image)
        top = confidence.double() / 255
        others = ((1 - top) / (CLASSES - 1)).clamp(min=1e-12)
        probs = others[:, None].repeat(1, CLASSES, 1, 1).scatter(1, label[:, None].long(), top[:, None])
        return probs.log()

    def encode(self, image: Tensor) -> list[Tensor]:
        return [image]

    def decode(self, features: list[Tensor]) -> Tensor:
        return features[0]

    def encoder_parameters(self) -> list[nn.Parameter]:
        return []


def answers(image: Tensor) -> tuple[Tensor, Tensor]:
    """Label and confidence of the oracle. [B, 3, H, W] -> [B, H, W] uint8 each."""
    return image[:, 0] % CLASSES, image[:, 1].clamp(min=80)


def labelled(unlabeled: UnlabeledBatch) -> UnlabeledBatch:
    """The batch as it comes from files that the oracle's labels were written to."""
    label, confidence = answers(unlabeled.weak)
    inside = unlabeled.valid
    return replace(unlabeled, pseudo_label=label.where(inside, IGNORE), confidence=confidence.where(inside, 0))


def build(kind: type[M], net: Net, recipe: str, **terms: Any) -> M:
    torch.manual_seed(0)
    return kind(CwBassConfig.model_validate({"recipe": recipe, recipe: terms}), net, num_classes=CLASSES, ignore_index=IGNORE)


@pytest.mark.parametrize("rule", ["strict", "logistic", "per_class", "floor", "auto"])
@pytest.mark.parametrize("recipe", ["paper", "cwbass"])
@pytest.mark.parametrize("extra", [{}, {"cutmix": 1.0, "cutmix_labeled": 0.5}, {"decay": {"rule": "constant"}, "gamma": 2.0}])
def test_the_loss_is_that_of_a_teacher_who_says_the_same(
    norm_net: Net, batches: Batches, progress: Steps, recipe: str, rule: str, extra: dict[str, Any]
) -> None:
    terms: dict[str, Any] = {"threshold": {"rule": rule, "strict": 0.601}, "ignore_padding": True, "labels": "hard", **extra}
    labeled, unlabeled = batches(size=3, side=24, padded=5)
    online, offline = build(CwBass, norm_net, recipe, **terms), build(OfflineCwBass, norm_net, recipe, **terms)
    online.teacher = Oracle()
    one = online.training_step(labeled, unlabeled, progress(30, start=10))
    other = offline.training_step(labeled, labelled(unlabeled), progress(30, start=10))
    one.loss.backward()
    other.loss.backward()
    assert int(one.sums["kept"].sum()) > 0
    assert one.means["loss_boundary"] > 0
    for name in other.means:
        torch.testing.assert_close(one.means[name], other.means[name])
    for name in ("seen", "kept"):
        assert torch.equal(one.sums[name], other.sums[name])
    for a, b in zip(online.student.parameters(), offline.student.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_padding_has_no_label_whatever_the_recipe_says(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches(side=24, padded=7)
    batch = labelled(unlabeled)
    assert batch.pseudo_label is not None
    assert batch.confidence is not None
    loud = replace(
        batch,
        pseudo_label=batch.pseudo_label.where(batch.valid, 2),
        confidence=batch.confidence.where(batch.valid, 255),
        weak=batch.weak.where(batch.valid[:, None], 255),
    )
    method = build(OfflineCwBass, pixel_net, "paper", ignore_padding=False)
    one, other = (method.training_step(labeled, views, progress()) for views in (batch, loud))
    assert one.means["loss_unsup"] > 0
    assert torch.equal(one.loss, other.loss)
    assert int(other.sums["seen"].sum()) == int(batch.valid.sum())


def test_only_the_student_runs(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    method = build(OfflineCwBass, pixel_net, "cwbass")
    calls: list[Any] = []
    method.teacher.register_forward_pre_hook(lambda module, args: calls.append(args))
    method.training_step(labeled, labelled(unlabeled), progress())
    assert calls == []


def test_thresholds_come_from_the_network_that_made_the_labels(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    rule = {"rule": "auto", "strict": 0.9, "target": 0.8, "low": 0.0, "prior": 0.0}
    method = build(OfflineCwBass, pixel_net, "cwbass", threshold=rule)
    total = torch.full((CLASSES, 10), 10.0).double()
    correct = torch.zeros(CLASSES, 10).double()
    correct[:, 5:] = 8.0  # right in 8 of 10 from confidence 0.5 on
    method.calibrate_labels(Reliability(correct, total))
    torch.testing.assert_close(method.thresholds, torch.full((CLASSES,), 0.5))
    method.calibrate(Reliability(total, total))  # the network in training is always right: none of the labels' business
    torch.testing.assert_close(method.thresholds, torch.full((CLASSES,), 0.5))
    labeled, unlabeled = batches()
    output = method.training_step(labeled, labelled(unlabeled), progress())
    assert "threshold" not in output.means
    label, confidence = answers(unlabeled.weak)
    kept = label[unlabeled.valid & (confidence > 127)]  # 128 / 255 is the first above 0.5
    assert output.sums["kept"].tolist() == kept.long().bincount(minlength=CLASSES).tolist()


def test_the_average_of_weights_forgets_the_start(pixel_net: Net, progress: Steps) -> None:
    method = build(OfflineCwBass, pixel_net, "paper")  # 0.999 from the first step on
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    method.after_optimizer_step(progress(0))
    for own, student in zip(method.teacher.parameters(), method.student.parameters(), strict=True):
        assert torch.equal(own, student)


def test_its_state_is_a_cw_bass_state(pixel_net: Net) -> None:
    offline, online = build(OfflineCwBass, pixel_net, "cwbass"), build(CwBass, pixel_net, "cwbass")
    assert offline.state_dict().keys() == online.state_dict().keys()
    assert list(offline.networks()) == ["student", "teacher"]
