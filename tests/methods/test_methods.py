"""What every method of the registry must do."""

from __future__ import annotations

import copy
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from cwbass import memory_format
from cwbass.methods import METHODS, build_method
from cwbass.methods.base import Method
from cwbass.models.base import SegmentationNet
from cwbass.pseudo_labels import CONFIDENCE_BINS
from cwbass.training.device import compile_networks_
from cwbass.types import LabeledBatch, Progress, Reliability, StepOutput, UnlabeledBatch

CLASSES = 4
Batches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
Steps = Callable[..., Progress]


def build(name: str, net: Callable[[], SegmentationNet], seed: int = 0, classes: int = CLASSES) -> Method:
    torch.manual_seed(seed)
    method = build_method(METHODS[name].config_cls(name=name), net, num_classes=classes, ignore_index=255)  # type: ignore[call-arg]
    # As after a warm-up: another teacher than the student, and one that is sure of itself.
    for own in method.networks().values():
        for parameter in own.parameters():
            parameter.data.add_(torch.randn(parameter.shape))
    method.calibrate(Reliability(torch.full((classes, 100), 9.0).double(), torch.full((classes, 100), 9.0).double()))
    method.trainable().train()
    return method


def step(method: Method, batch: tuple[LabeledBatch, UnlabeledBatch], progress: Progress) -> StepOutput:
    return method.training_step(batch[0], batch[1] if method.needs_unlabeled else None, progress)


def take_steps(method: Method, batches: Batches, progress: Steps, count: int) -> list[float]:
    optimizer = torch.optim.SGD(method.trainable().parameters(), lr=0.1, momentum=0.9)
    losses = []
    for k in range(count):
        output = step(method, batches(seed=k), progress(k, seed=k))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_optimizer_step(progress(k, seed=k))
        losses.append(output.loss.item())
    return losses


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest, norm_net: type[SegmentationNet]) -> Iterator[Method]:
    yield build(request.param, norm_net)


def test_a_step_gives_gradients_to_what_is_trained_alone(method: Method, batches: Batches, progress: Steps) -> None:
    output = step(method, batches(), progress())
    output.loss.backward()
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    trained = {id(p) for p in method.trainable().parameters()}
    assert trained >= {id(p) for p in method.student.parameters()}
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_what_is_reported_is_detached_and_finite(method: Method, batches: Batches, progress: Steps) -> None:
    output = step(method, batches(), progress())
    assert {"loss", "loss_sup"} <= output.means.keys()
    assert torch.equal(output.means["loss"], output.loss.detach())
    for value in (*output.means.values(), *output.sums.values()):
        assert not value.requires_grad
        assert value.isfinite().all()
        assert value.shape in ((), (CLASSES,), (CLASSES, CONFIDENCE_BINS))


def test_whoever_learns_from_unlabelled_images_says_what_it_was_taught(method: Method, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    sums = step(method, (labeled, unlabeled), progress()).sums
    assert set(sums) == ({"seen", "kept", "confidence", "confidence_counts"} if method.needs_unlabeled else set())
    if sums:
        assert sums["seen"].sum() == unlabeled.valid.sum()
        assert torch.equal(sums["confidence_counts"].sum(1), sums["seen"])
        assert (sums["kept"] <= sums["seen"]).all()


def test_masks_that_ignore_everything_give_a_finite_step(method: Method, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    output = step(method, (replace(labeled, mask=torch.full_like(labeled.mask, 255)), unlabeled), progress())
    output.loss.backward()
    assert output.means["loss_sup"].item() == 0.0
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_crops_of_padding_alone_give_a_finite_step(method: Method, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    nothing = replace(labeled, mask=torch.full_like(labeled.mask, 255))  # a labelled paste has a voice of its own
    output = step(method, (nothing, replace(unlabeled, valid=torch.zeros_like(unlabeled.valid))), progress())
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_the_collapse_guard_scales_what_unlabelled_images_say(method: Method, batches: Batches, progress: Steps) -> None:
    states = {name: value.clone() for name, value in method.state_dict().items()}
    said = []
    for scale in (1.0, 0.5, 0.0):
        method.load_state_dict(states)  # running statistics and confidences move with each step
        method.unsup_scale = scale
        output = step(method, batches(), progress())
        said.append(output.loss.item())
    whole, half, none = said  # what is left has only labels, which some methods weigh too
    assert half - none == pytest.approx((whole - none) / 2, rel=1e-4, abs=1e-5)
    assert (whole - none > 1e-4) == method.needs_unlabeled


def test_compiled_networks_run_every_convolution_in_a_graph_and_give_the_same_loss(
    method: Method, batches: Batches, progress: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, found = (
        copy.deepcopy(method),
        {True: Counter[bool](), False: Counter[bool]()},
    )  # convolutions, with a gradient and without

    def count(*_: object) -> None:
        found[False][torch.is_grad_enabled()] += 1

    for net in (each for each in plain.modules() if isinstance(each, SegmentationNet)):
        for each in net.modules():
            if isinstance(each, nn.Conv2d):
                each.register_forward_hook(count)

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        own = sum("conv2d" in str(node.target) for node in graph.graph.nodes)

        def run(*arguments: Any) -> Any:
            found[True][torch.is_grad_enabled()] += own
            return graph(*arguments)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setenv("CXX", sys.executable)
    assert compile_networks_(method)
    names = list(method.state_dict())
    plain_loss, loss = (step(each, batches(), progress()).loss for each in (plain, method))
    assert found[True] == found[False]
    assert found[True][True] > 0
    assert torch.equal(loss, plain_loss)
    assert list(method.state_dict()) == names == list(plain.state_dict())


@pytest.mark.parametrize(("size", "side"), [(1, 12), (1, 9), (3, 17)])
def test_any_size_of_batch(method: Method, batches: Batches, progress: Steps, size: int, side: int) -> None:
    assert step(method, batches(size=size, side=side), progress()).loss.isfinite()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_many_classes_give_the_same_step_read_side_by_side_and_plane_by_plane(
    name: str, norm_net: Callable[..., SegmentationNet], batches: Batches, progress: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for many in (memory_format.MANY, 1000):
        monkeypatch.setattr(memory_format, "MANY", many)
        method = build(name, partial(norm_net, classes=40), classes=40).to(memory_format=torch.channels_last)
        labeled, unlabeled = batches()
        labeled = replace(labeled, image=labeled.image.contiguous(memory_format=torch.channels_last))
        assert memory_format.classes_together(method.student(labeled.image)) == (many < 40)
        views = {view: getattr(unlabeled, view).contiguous(memory_format=torch.channels_last) for view in ("weak", "strong")}
        output = step(method, (labeled, replace(unlabeled, **views)), progress())
        output.loss.backward()
        found.append([output.loss.detach(), *(p.grad for p in method.trainable().parameters() if p.grad is not None)])
    for side_by_side, planes in zip(*found, strict=True):
        torch.testing.assert_close(side_by_side, planes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_same_seed_gives_the_same_losses_and_weights(
    name: str, norm_net: type[SegmentationNet], batches: Batches, progress: Steps
) -> None:
    one, other = build(name, norm_net), build(name, norm_net)
    first = take_steps(one, batches, progress, 4)
    torch.manual_seed(123)  # the global stream is not what draws
    assert first == take_steps(other, batches, progress, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_saved_method_goes_on_bit_for_bit(
    name: str, norm_net: type[SegmentationNet], batches: Batches, progress: Steps
) -> None:
    method = build(name, norm_net)
    take_steps(method, batches, progress, 3)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    fresh = build(name, norm_net, seed=99)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for (key, value), other in zip(method.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert torch.equal(step(method, batches(seed=7), progress(3)).loss, step(fresh, batches(seed=7), progress(3)).loss)


def test_batches_are_left_as_they_were(method: Method, batches: Batches, progress: Steps) -> None:
    used, kept = batches(), batches()
    step(method, used, progress())
    assert torch.equal(used[0].image, kept[0].image)
    assert torch.equal(used[0].mask, kept[0].mask)
    assert torch.equal(used[1].weak, kept[1].weak)
    assert torch.equal(used[1].strong, kept[1].strong)
    assert torch.equal(used[1].valid, kept[1].valid)
    assert torch.equal(used[1].strong2, kept[1].strong2)


def test_networks_name_the_student_first_and_start_from_a_warm_up(method: Method, norm_net: type[SegmentationNet]) -> None:
    networks = method.networks()
    assert next(iter(networks)) == "student"
    assert networks["student"] is method.student
    warm = {"student": norm_net(), "teacher": norm_net()}  # type: ignore[call-arg]
    method.start_from(warm)
    for name, own in method.networks().items():
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), warm[name].parameters(), strict=True))
    method.start_from({"student": warm["student"]})  # a warm-up without a teacher
    for own in method.networks().values():
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), warm["student"].parameters(), strict=True))


def test_the_teacher_stays_in_eval_mode_and_follows_the_student(method: Method, batches: Batches, progress: Steps) -> None:
    followers = [net for name, net in method.networks().items() if name != "student"]
    before = [[p.clone() for p in net.parameters()] for net in followers]
    take_steps(method, batches, progress, 1)
    for net, old in zip(followers, before, strict=True):
        assert not any(module.training for module in net.modules() if isinstance(module, nn.Module))
        assert any(not torch.equal(p, q) for p, q in zip(net.parameters(), old, strict=True))


# Images that go through the encoder of each network in a step of 2 labelled and 3 unlabelled ones, call by call; then
# through its decoder, where that differs.
PASSES: dict[str, dict[str, list[int]]] = {
    "supervised": {"student": [2], "teacher": []},
    "cw_bass": {"student": [2 + 3], "teacher": [3]},
    "mean_teacher": {"student": [2, 3], "teacher": [2, 3]},
    "fixmatch": {"student": [2 + 3, 3]},
    "unimatch": {"student": [2 + 3, 3 + 3]},
    "unimatch_v2": {"student": [2, 3 + 3], "teacher": [3]},
    "cps": {"student": [2, 3, 3], "second": [2, 3, 3]},
    "corrmatch": {"student": [2 + 3, 3]},
    "dssn": {"student": [2 + 3, 3 + 3], "teacher": [3]},
    "st_plus_plus": {"student": [2]},
    "mgd": {name: [3, 2, 3] for name in ("student", "deep", "wide")},
}
DECODED: dict[str, dict[str, list[int]]] = {
    "cw_bass": {"student": [2 + 3 + 3], "teacher": [3]},
    "unimatch": {"student": [2 + 3 + 3, 3 + 3]},
    "corrmatch": {"student": [2 + 3 + 3, 3]},
    "dssn": {"student": [2 + 3 + 3 + 3, 3 + 3], "teacher": [3]},
}


@pytest.mark.parametrize("name", METHODS)
def test_number_of_forward_passes_and_their_images(
    name: str, norm_net: type[SegmentationNet], batches: Batches, progress: Steps
) -> None:
    method = build(name, norm_net)
    encoded: dict[str, list[int]] = {}
    decoded: dict[str, list[int]] = {}
    for key, net in method.named_children():
        for part, seen in (("stem", encoded), ("conv", decoded)):
            if hasattr(net, part):
                calls = seen.setdefault(key, [])
                getattr(net, part).register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0].shape[0]))
    step(method, (batches(size=2)[0], batches(size=3)[1]), progress())
    assert encoded == PASSES.get(name), "what a new method sends through its encoders goes into PASSES"
    assert decoded == DECODED.get(name, PASSES[name])
