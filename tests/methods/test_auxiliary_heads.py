"""Heads that only help to train: every method has them learn from its labelled images, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.methods import METHODS, OFFLINE, build_method
from cwbass.methods.base import Method
from cwbass.methods.cw_bass import CwBassConfig
from cwbass.models.base import SegmentationNet
from cwbass.training.loop import Schedule, fit
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch

CLASSES = 4
Batches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
Steps = Callable[..., Progress]


class TwoHeads(SegmentationNet):
    """A network with one auxiliary head, that notes what the head is shown."""

    def __init__(self, weight: float) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.auxiliary_weight = weight
        self.stem, self.head, self.helper = nn.Conv2d(3, 3, 1), nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, CLASSES, 1)
        self.shown: list[tuple[Tensor, Tensor]] = []

    def encode(self, image: Tensor) -> list[Tensor]:
        return [image[:, :0], self.stem(image)]

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(features[1])
        return logits

    def auxiliary(self, features: list[Tensor]) -> list[Tensor]:
        logits = self.helper(features[1])
        self.shown.append((features[1].detach(), logits.detach()))
        return [logits]

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.stem.parameters())


def build(registry: dict[str, type[Method]], name: str, weight: float) -> Method:
    torch.manual_seed(0)

    def net(**other: Any) -> TwoHeads:
        return TwoHeads(weight)

    config = METHODS[name].config_cls(name=name)  # type: ignore[call-arg]
    method = build_method(config, net, offline=registry is OFFLINE, num_classes=CLASSES, ignore_index=255)
    method.trainable().train()
    return method


def trained(method: Method) -> list[TwoHeads]:
    return [net for net in method.trainable().modules() if isinstance(net, TwoHeads)]


@pytest.mark.parametrize(
    ("registry", "name"),
    [(each, name) for each in (METHODS, OFFLINE) for name in sorted(each)],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_every_method_trains_them_on_its_labelled_images(
    registry: dict[str, type[Method]], name: str, batches: Batches, progress: Steps
) -> None:
    method, without = build(registry, name, 0.4), build(registry, name, 0.0)
    for seed in (0, 1):  # a pass that a step leaves behind would be taken for the next one's
        labeled, unlabeled = batches(seed=seed)
        label = torch.zeros_like(unlabeled.weak[:, 0])
        unlabeled = replace(unlabeled, pseudo_label=label, confidence=torch.full_like(label, 200))
        views = unlabeled if method.needs_unlabeled else None
        output, plain = (each(labeled, views, progress(seed=seed)) for each in (method, without))
        helped = 0.0
        for net in trained(method):
            ((features, logits),) = net.shown
            torch.testing.assert_close(features, net.stem(net.normalize(labeled.image)).detach())
            helped += 0.4 * F.cross_entropy(logits, labeled.mask.long(), ignore_index=255).item()
            net.shown.clear()
        assert output.means["loss_sup"].item() == pytest.approx(plain.means["loss_sup"].item() + helped, rel=1e-5)
    method.zero_grad()
    output.loss.backward()
    for net in trained(method):
        assert net.helper.weight.grad is not None
        assert net.helper.weight.grad.abs().sum() > 0


def test_whoever_has_none_keeps_no_feature_maps(batches: Batches, progress: Steps) -> None:
    method = build(METHODS, "cw_bass", 0.0)
    method(*batches(), progress())
    assert method.student.auxiliary_of_labeled(2) == []
    assert trained(method)[0].shown == []


def test_masks_that_ignore_everything_teach_them_nothing(batches: Batches, progress: Steps) -> None:
    method = build(METHODS, "cw_bass", 0.4)
    labeled, unlabeled = batches()
    output = method(replace(labeled, mask=torch.full_like(labeled.mask, 255)), unlabeled, progress())
    output.loss.backward()
    (net,) = trained(method)
    assert output.means["loss_sup"].item() == 0.0
    assert net.helper.weight.grad is not None
    assert net.helper.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("norm", ["joint", "separate", "labeled"])
def test_the_loop_moves_them_also_where_the_labelled_loss_has_a_backward_pass_of_its_own(norm: str, batches: Batches) -> None:
    torch.manual_seed(0)
    config = CwBassConfig.model_validate({"cwbass": {"norm": norm}})
    method = build_method(config, lambda **other: TwoHeads(0.4), num_classes=CLASSES, ignore_index=255)
    (net,) = trained(method)
    before = net.helper.weight.detach().clone()
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["base_lr"] = 0.1
    labeled, unlabeled = batches()
    fit(
        method,
        [labeled],
        [unlabeled],
        optimizer=optimizer,
        schedule=Schedule(start=0, stop=1, total=10, epoch_steps=10, stage_start=0),
        rate_factor=lambda step, total_steps: 1.0,
        seed=0,
        device=torch.device("cpu"),
        autocast_dtype=None,
        on_epoch=lambda record: True,
    )
    features, mask = net.shown[0][0], labeled.mask.long()
    weight, bias = before.requires_grad_(), net.helper.bias
    assert bias is not None
    old_bias = bias.detach() + 0.1 * bias.grad  # type: ignore[operator]
    (0.4 * F.cross_entropy(F.conv2d(features, weight, old_bias), mask, ignore_index=255)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(net.helper.weight.detach(), before.detach() - 0.1 * weight.grad)
