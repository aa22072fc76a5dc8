"""A batch divided among processes gives the loss, gradient, thresholds and counts of the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from threads import in_threads
from torch import Tensor

from cwbass.config import Section
from cwbass.losses.supervised import HardPixels
from cwbass.methods import METHODS, OFFLINE, build_method
from cwbass.methods.base import Method
from cwbass.methods.cw_bass import CwBass, CwBassConfig, ThresholdConfig
from cwbass.methods.selection import SelectionConfig
from cwbass.models.base import SegmentationNet
from cwbass.models.norm import synchronize_norms_
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch
from cwbass.world import ALONE, World

Net = type[SegmentationNet]
Batches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
CLASSES = 4


def cw_bass(net: Net, recipe: str, **terms: Any) -> Method:
    config = CwBassConfig.model_validate({"recipe": recipe, recipe: terms})
    return CwBass(config, net, num_classes=CLASSES, ignore_index=255)


def of(net: Net, name: str, *, offline: bool = False, **settings: Any) -> Method:
    config = METHODS[name].config_cls.model_validate({"name": name, **settings})
    return build_method(config, net, num_classes=CLASSES, ignore_index=255, offline=offline)


def balanced(net: Net, name: str) -> Method:
    config = METHODS[name].config_cls.model_validate({"name": name, **HEARD.get(name, {})})
    weight = torch.tensor([0.2, 0.7, 1.5, 4.0])
    hard = HardPixels(threshold=0.2, min_share=0.3)
    return build_method(config, net, num_classes=CLASSES, ignore_index=255, class_weight=weight, hard=hard)


def rules(config: type[Section]) -> tuple[str, ...]:
    """The rules that a section knows."""
    return get_args(config.model_fields["rule"].annotation)


# Settings with which some labels of an untrained network are kept, and some are not.
HEARD: dict[str, dict[str, Any]] = {name: {"threshold": {"tau": 0.4}} for name in ("fixmatch", "unimatch", "unimatch_v2")} | {
    "corrmatch": {"tau": 0.4}
}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"fixmatch, {rule}": ("fixmatch", {"threshold": {"rule": rule, "tau": 0.4, "momentum": 0.1}})
        for rule in rules(SelectionConfig)
    },
    "cps without CutMix": ("cps", {"cutmix": False}),
    "dssn, all": ("dssn", {"rule": "all"}),
    "corrmatch, low": ("corrmatch", {"tau": 0.3, "momentum": 0.5}),
}
OFFLINE_KINDS = [name for name in OFFLINE if name != "cw_bass"]  # which shares its loss with cw_bass: test_offline
RULES = [{"rule": rule, "low": 0.0, "strict": 0.4} for rule in rules(ThresholdConfig)]
KINDS: dict[str, Callable[[Net], Method]] = {
    **{name: lambda net, name=name: of(net, name) for name in METHODS},
    **{f"{name}, balanced": lambda net, name=name: balanced(net, name) for name in METHODS},
    **{kind: lambda net, name=name, settings=settings: of(net, name, **settings) for kind, (name, settings) in PEERS.items()},
    **{f"{name}, offline": lambda net, name=name: of(net, name, offline=True) for name in OFFLINE_KINDS},
    "paper": lambda net: cw_bass(net, "paper"),
    "hard labels": lambda net: cw_bass(net, "cwbass", labels="hard"),
    "cwbass": lambda net: cw_bass(net, "cwbass", threshold={"rule": "auto", "strict": 0.4}),
    "labelled pastes": lambda net: cw_bass(net, "cwbass", cutmix_labeled=0.5, threshold=RULES[0]),
    "joint norm": lambda net: cw_bass(net, "cwbass", norm="joint", threshold=RULES[0]),
    "published padding": lambda net: cw_bass(net, "paper", cutmix=0.5, ignore_padding=False),
    "nothing kept": lambda net: cw_bass(net, "paper", threshold={"rule": "strict", "strict": 1.0}),
    **{f"threshold {rule['rule']}": lambda net, rule=rule: cw_bass(net, "cwbass", threshold=rule) for rule in RULES},
}


def step(
    method: Method, labeled: LabeledBatch, unlabeled: UnlabeledBatch, world: World
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, means, sums and buffers after a step with this process's part of the batches."""
    synchronize_norms_(method, world)
    method.trainable().train()
    mine = LabeledBatch(world.own(labeled.image), world.own(labeled.mask))
    weak, strong, valid = world.own(unlabeled.weak), world.own(unlabeled.strong), world.own(unlabeled.valid)
    assert unlabeled.strong2 is not None
    views = UnlabeledBatch(weak, strong, valid, strong2=world.own(unlabeled.strong2))
    if unlabeled.pseudo_label is not None and unlabeled.confidence is not None:
        views = replace(views, pseudo_label=world.own(unlabeled.pseudo_label), confidence=world.own(unlabeled.confidence))
    progress = Progress(30, 100, 20, 0, torch.Generator().manual_seed(3), 1, world)
    output = method.training_step(mine, views if method.needs_unlabeled else None, progress)
    output.loss.backward()  # type: ignore[no-untyped-call]
    world.average_gradients_(method.trainable().parameters())
    gradients = {name: p.grad for name, p in method.trainable().named_parameters() if p.grad is not None}
    means = {name: world.total(value.double()) / world.size for name, value in output.means.items()}
    sums = {name: world.total(value.double()) for name, value in output.sums.items()}
    return gradients, means, sums, dict(method.named_buffers())


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_add_up_to_the_whole(norm_net: Net, batches: Batches, kind: str, processes: int) -> None:
    torch.manual_seed(0)
    method = KINDS[kind](norm_net).double()  # rounding is then far below any mistake
    labeled, _ = batches(size=4, seed=1)
    labeled.mask[0] = 255  # a process with two images has half the labelled pixels of another
    _, unlabeled = batches(size=8, seed=2)  # not as many as labelled ones: partners lie in other processes
    unlabeled = replace(
        unlabeled,
        pseudo_label=(unlabeled.weak[:, 0] % CLASSES).where(unlabeled.valid, 255),
        confidence=unlabeled.weak[:, 1].where(unlabeled.valid, 0),
    )
    expected = step(copy.deepcopy(method), labeled, unlabeled, ALONE)
    copies = [copy.deepcopy(method) for _ in range(processes)]
    found = in_threads(processes, lambda world: step(copies[world.rank], labeled, unlabeled, world))
    for part in found:
        for one, other in zip(part, expected, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7, msg=f"{name} of {kind}")
    if kind not in METHODS and "kept" in expected[2]:
        kept = expected[2]["kept"].sum()
        assert (kept == 0) == (kind == "nothing kept")


def test_the_test_sees_a_divisor_of_one_process(norm_net: Net, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "share", lambda self, count: count.clamp(min=1))
    with pytest.raises(AssertionError, match="of supervised"):
        test_the_parts_add_up_to_the_whole(norm_net, batches, "supervised", 2)


def test_dropout_is_another_in_each_process_and_explicit_draws_are_the_same() -> None:
    from cwbass.training.seed import seed_everything

    seen = set()
    for rank in range(3):
        generator = seed_everything(0, step=5, rank=rank)
        seen.add((float(torch.rand(())), float(torch.rand((), generator=generator))))
    assert len({dropout for dropout, _ in seen}) == 3
    assert len({drawn for _, drawn in seen}) == 1
