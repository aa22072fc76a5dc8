from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, Reliability, StepOutput, UnlabeledBatch

CLASSES = 4
Batches = Callable[..., tuple[LabeledBatch, UnlabeledBatch]]
Steps = Callable[..., Progress]
Net = type[SegmentationNet]

KEEP_ALL = {"threshold": {"rule": "strict", "strict": 0.0}}


def build(net: Net, recipe: str = "paper", **terms: Any) -> CwBass:
    """A method whose teacher is not its student; the recipe's terms with ``terms`` laid over them, lambda risen."""
    torch.manual_seed(0)
    config = CwBassConfig.model_validate({"recipe": recipe, recipe: {"ramp_epochs": 0.0, **terms}})
    method = CwBass(config, net, num_classes=CLASSES, ignore_index=255)
    for own in method.networks().values():
        for parameter in own.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.5)
    method.student.train()
    return method


def run(method: CwBass, batch: tuple[LabeledBatch, UnlabeledBatch], progress: Progress) -> tuple[StepOutput, list[Tensor]]:
    """Output of a step, and the student's gradients."""
    method.zero_grad()
    output = method.training_step(*batch, progress)
    output.loss.backward()
    return output, [p.grad.clone() for p in method.student.parameters() if p.grad is not None]


def means(method: CwBass, batch: tuple[LabeledBatch, UnlabeledBatch], progress: Progress) -> dict[str, float]:
    output = method.training_step(*batch, progress)
    return {name: value.item() for name, value in output.means.items() if value.dim() == 0}


def published_step(
    student: SegmentationNet,
    teacher: SegmentationNet,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch,
    *,
    decay: bool,
    ramp: float,
) -> Tensor:
    """Steps 1 to 10 of the published code, written down one by one."""
    with torch.no_grad():
        t = teacher(unlabeled.weak)
        confidence = t.softmax(1).amax(1)  # 1
        label = t.argmax(1)  # 2
        planes = F.one_hot(label, CLASSES).permute(0, 3, 1, 2).float()  # 3
        gx = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).expand(CLASSES, 1, 3, 3)
        across = F.conv2d(planes, gx, padding=1, groups=CLASSES)
        down = F.conv2d(planes, gx.transpose(2, 3), padding=1, groups=CLASSES)
        edge = ((across**2 + down**2).sqrt().sum(1) > 0).float()
        tau = (0.6 / (1 + torch.exp(-0.5 * (confidence.mean() - 0.5)))).clamp(0.3, 0.8)  # 4
        target = label.clone()  # 5
        target[confidence <= tau] = 255
        if decay:  # 6
            confidence = confidence * 0.9
        valid = (target != 255).float()
    f = student(unlabeled.weak)
    cross_entropy = F.cross_entropy(f, target, ignore_index=255, reduction="none")
    loss_cw = (confidence**1.0 * cross_entropy * valid).sum() / max(1.0, valid.sum().item())  # 7
    loss_b = (cross_entropy * edge * valid).sum() / max(1.0, (edge * valid).sum().item())  # 8
    loss_u = loss_cw + 0.5 * loss_b  # 9
    return F.cross_entropy(student(labeled.image), labeled.mask.long(), ignore_index=255) + 1.0 * ramp * loss_u  # 10


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_paper_recipe_is_the_published_step(
    pixel_net: Net, batches: Batches, progress: Steps, seed: int, decay: bool
) -> None:
    batch = batches(seed=seed, side=21)
    method = build(pixel_net, decay={"rule": "constant" if decay else "none"}, ramp_epochs=10.0)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.mul_(0.4)  # less sure of itself: the published threshold drops only what is below about 0.32
    output, gradients = run(method, batch, progress(4))
    method.student.zero_grad()
    expected = published_step(method.student, method.teacher, *batch, decay=decay, ramp=0.4)
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    for gradient, parameter in zip(gradients, method.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    kept = int(output.sums["kept"].sum())
    assert 0 < kept < int(output.sums["seen"].sum())  # the threshold had something to say


def test_the_paper_recipe_then_moves_the_teacher_by_a_thousandth(norm_net: Net, batches: Batches, progress: Steps) -> None:
    method = build(norm_net)
    _, _ = run(method, batches(), progress())
    old = [p.detach().clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.student.parameters():
            p += 0.5
    method.after_optimizer_step(progress())
    for p, before, student in zip(method.teacher.parameters(), old, method.student.parameters(), strict=True):
        torch.testing.assert_close(p, 0.999 * before + 0.001 * student)
    assert all(torch.equal(a, b) for a, b in zip(method.teacher.buffers(), method.student.buffers(), strict=True))


@pytest.mark.parametrize("rule", ["strict", "logistic", "per_class", "floor", "auto"])
@pytest.mark.parametrize(
    "extra", [{}, {"labels": "hard"}, {"cutmix": 0.0}, {"norm": "joint"}, {"norm": "separate"}, {"boundary": {"width": 3}}]
)
def test_padding_has_no_influence_at_all(
    pixel_net: Net, batches: Batches, progress: Steps, rule: str, extra: dict[str, Any]
) -> None:
    labeled, unlabeled = batches(side=24, padded=7)
    generator = torch.Generator().manual_seed(5)
    junk = torch.randint(0, 256, unlabeled.weak.shape, generator=generator).to(torch.uint8)
    inside = unlabeled.valid[:, None]
    changed = replace(unlabeled, weak=unlabeled.weak.where(inside, junk), strong=unlabeled.strong.where(inside, junk.flip(0)))
    outputs = []
    for views in (unlabeled, changed):
        method = build(pixel_net, "cwbass", threshold={"rule": rule, "strict": 0.5}, **extra)
        outputs.append((*run(method, (labeled, views), progress()), [b.clone() for b in method.buffers()]))
    (one, grads, buffers), (other, other_grads, other_buffers) = outputs
    assert one.means["loss_unsup"] > 0
    assert torch.equal(one.loss, other.loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(buffers, other_buffers, strict=True))
    assert all(torch.equal(one.sums[name], other.sums[name]) for name in one.sums)
    assert int(one.sums["seen"].sum()) == int(unlabeled.valid.sum())


def test_ignore_padding_off_lets_padding_speak_as_published(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    changed = replace(unlabeled, weak=unlabeled.weak.where(unlabeled.valid[:, None], 0))
    method = build(pixel_net, ignore_padding=False)
    assert means(method, (labeled, unlabeled), progress())["loss"] != means(method, (labeled, changed), progress())["loss"]
    masked = build(pixel_net, ignore_padding=True)
    assert means(masked, (labeled, unlabeled), progress())["loss"] == means(masked, (labeled, changed), progress())["loss"]


def test_views_say_what_the_student_sees(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    for views, image in (("same", unlabeled.weak), ("strong", unlabeled.strong)):
        method, seen = build(pixel_net, views=views), []
        method.student.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        method.training_step(labeled, unlabeled, progress())
        assert torch.equal(seen[0], labeled.image)
        assert torch.equal(seen[1], image)


def test_cutmix_pastes_the_partner_and_its_label(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches(size=3)
    mixed, plain = build(pixel_net, cutmix=1.0, **KEEP_ALL), build(pixel_net, cutmix=0.0, **KEEP_ALL)
    seen: list[Tensor] = []
    mixed.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss = means(mixed, (labeled, unlabeled), progress(seed=3))["loss"]
    view = seen[1]
    pasted = (view != unlabeled.weak).any(1)
    partner = unlabeled.weak.roll(1, 0)
    assert pasted.flatten(1).any(1).all()
    assert torch.equal(view, torch.where(pasted[:, None], partner, unlabeled.weak))
    # The student is asked for the same pixels and labels, only elsewhere: recompute from the mixed view itself.
    again = means(plain, (labeled, replace(unlabeled, weak=view)), progress())["loss"]
    assert loss == pytest.approx(again, rel=1e-6)
    assert means(mixed, (labeled, unlabeled), progress(seed=3))["loss"] == loss
    assert means(mixed, (labeled, unlabeled), progress(seed=4))["loss"] != loss


def test_cutmix_pastes_padding_as_padding(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches(size=4)  # every other crop has padded columns
    terms: dict[str, Any] = {"ignore_padding": True, "divide_by": "valid", "boundary": {"frame": "replicate"}, **KEEP_ALL}
    mixed, plain = build(pixel_net, cutmix=1.0, **terms), build(pixel_net, cutmix=0.0, **terms)
    seen: list[Tensor] = []
    mixed.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss = means(mixed, (labeled, unlabeled), progress())["loss"]
    pasted = (seen[1] != unlabeled.weak).any(1)
    valid = torch.where(pasted, unlabeled.valid.roll(1, 0), unlabeled.valid)
    assert int(valid.sum()) != int(unlabeled.valid.sum())
    again = means(plain, (labeled, replace(unlabeled, weak=seen[1], valid=valid)), progress())["loss"]
    assert loss == pytest.approx(again, rel=1e-6)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_labelled_pastes_bring_the_ground_truth(pixel_net: Net, batches: Batches, progress: Steps, labels: str) -> None:
    labeled, unlabeled = batches(size=2)
    terms: dict[str, Any] = {"cutmix": 1.0, "cutmix_labeled": 1.0, "boundary": {"weight": 0.0}, "ignore_padding": True}
    method = build(pixel_net, labels=labels, threshold={"rule": "strict", "strict": 1.0}, **terms)  # the teacher has no say
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output, _ = run(method, (labeled, unlabeled), progress())
    box = (seen[1] == labeled.image).all(1) & (seen[1] != unlabeled.weak).any(1)
    known = box & (labeled.mask != 255)
    expected = F.cross_entropy(method.student(labeled.image), labeled.mask.long(), ignore_index=255, reduction="none")
    # Ground truth weighs 0.9: the paper's constant decay is a factor on whatever confidence there is.
    assert output.means["loss_unsup"].item() == pytest.approx(0.9 * expected[known].mean().item(), rel=1e-5)
    nothing = replace(labeled, mask=torch.full_like(labeled.mask, 255))
    assert means(method, (nothing, unlabeled), progress())["loss"] == 0.0


def test_a_share_of_the_pastes_is_labelled(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    _, unlabeled = batches(size=400)
    labeled = LabeledBatch(torch.full((3, 3, 12, 12), 255, dtype=torch.uint8), torch.zeros(3, 12, 12, dtype=torch.uint8))
    views = replace(unlabeled, weak=unlabeled.weak.clamp(max=254))
    method = build(pixel_net, cutmix=1.0, cutmix_labeled=0.25)
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.training_step(labeled, views, progress())
    white = (seen[1] == 255).flatten(1).any(1).float().mean().item()
    assert white == pytest.approx(0.25, abs=0.07)  # three deviations of 400 draws


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_classmix_pastes_whole_objects_with_their_true_labels(
    pixel_net: Net, batches: Batches, progress: Steps, labels: str
) -> None:
    labeled, unlabeled = batches(size=2)
    classes = int(labeled.mask[labeled.mask != 255].max()) + 1
    chance = torch.tensor([1.0] + [0.0] * (classes - 1))  # of the classes, the first alone
    terms: dict[str, Any] = {"cutmix": 0.0, "classmix": 1.0, "boundary": {"weight": 0.0}, "decay": {"rule": "none"}, "gamma": 0.0}
    method = build(pixel_net, labels=labels, threshold={"rule": "strict", "strict": 1.0}, **terms)  # the teacher has no say
    method.object_chance = chance
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    before = unlabeled.strong.clone(), unlabeled.weak.clone()
    output, _ = run(method, (labeled, unlabeled), progress())
    assert torch.equal(unlabeled.strong, before[0])  # the batch itself is left alone
    assert torch.equal(unlabeled.weak, before[1])
    other = LabeledBatch(labeled.image.roll(-1, 0), labeled.mask.roll(-1, 0))  # the next labelled image
    objects = other.mask == 0
    assert torch.equal(seen[1], torch.where(objects[:, None], other.image, unlabeled.weak))
    expected = F.cross_entropy(method.student(seen[1]), torch.zeros_like(other.mask).long(), reduction="none")[objects].mean()
    assert output.means["loss_unsup"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_classmix_pastes_counts_and_other_padding_does_not(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    """An object that lands on padding is an object; what is unknown in its mask is not pasted; padding beside it says nothing."""
    labeled, unlabeled = batches(size=2, padded=4)
    assert not unlabeled.valid.all()
    assert (labeled.mask == 255).any()
    classes = torch.ones(int(labeled.mask[labeled.mask != 255].max()) + 1)  # all classes: whatever is known
    terms: dict[str, Any] = {"cutmix": 0.0, "classmix": 1.0, "boundary": {"weight": 0.0}, "decay": {"rule": "none"}, "gamma": 0.0}
    method = build(pixel_net, threshold={"rule": "strict", "strict": 1.0}, ignore_padding=True, divide_by="valid", **terms)
    method.object_chance = classes
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss = means(method, (labeled, unlabeled), progress())["loss_unsup"]
    mask = labeled.mask.roll(-1, 0)
    known = mask != 255
    pixel = F.cross_entropy(method.student(seen[1]), mask.long(), ignore_index=255, reduction="none")
    assert loss == pytest.approx((pixel[known].sum() / (known | unlabeled.valid).sum()).item(), rel=1e-5)
    unknown = replace(labeled, mask=torch.full_like(labeled.mask, 255))
    assert means(method, (unknown, unlabeled), progress())["loss_unsup"] == 0.0


def test_classmix_takes_rare_classes_more_often(pixel_net: Net) -> None:
    config = CwBassConfig(recipe="cwbass")
    weight = torch.tensor([0.5, 1.0, 4.0])
    method = CwBass(config, pixel_net, num_classes=3, ignore_index=255, class_weight=weight)
    assert method.object_chance.tolist() == [0.25, 0.5, 1.0]
    assert CwBass(config, pixel_net, num_classes=3, ignore_index=255).object_chance.tolist() == [0.5, 0.5, 0.5]


def test_gamma_is_the_exponent_of_confidence(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    batch = batches()
    plain = {**KEEP_ALL, "boundary": {"weight": 0.0}, "decay": {"rule": "none"}}
    with torch.no_grad():
        method = build(pixel_net)
        confidence, label = method.teacher(batch[1].weak).softmax(1).max(1)
        pixel_loss = F.cross_entropy(method.student(batch[1].weak), label, reduction="none")
    for gamma in (0.0, 1.0, 2.5):
        found = means(build(pixel_net, gamma=gamma, **plain), batch, progress())["loss_unsup"]
        assert found == pytest.approx((confidence**gamma * pixel_loss).mean().item(), rel=1e-5)


def test_with_every_switch_off_it_is_plain_hard_self_training(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    method = build(pixel_net, gamma=0.0, boundary={"weight": 0.0}, decay={"rule": "none"}, **KEEP_ALL)
    output, gradients = run(method, (labeled, unlabeled), progress())
    method.student.zero_grad()
    label = method.teacher(unlabeled.weak).argmax(1)
    expected = F.cross_entropy(method.student(labeled.image), labeled.mask.long(), ignore_index=255) + F.cross_entropy(
        method.student(unlabeled.weak), label
    )
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    for gradient, parameter in zip(gradients, method.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_no_weight_or_no_kept_label_leaves_the_supervised_loss(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    for recipe in ("paper", "cwbass"):  # hard and soft labels
        for terms in (
            {"unsup_weight": 0.0},
            {"threshold": {"rule": "strict", "strict": 1.0}, "cutmix_labeled": 0.0, "classmix": 0.0},
        ):
            method, batch = build(pixel_net, recipe, **terms), batches()
            output, gradients = run(method, batch, progress())
            assert torch.equal(output.loss, output.means["loss_sup"])
            method.student.zero_grad()
            F.cross_entropy(method.student(batch[0].image), batch[0].mask.long(), ignore_index=255).backward()
            for gradient, parameter in zip(gradients, method.student.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad)


def test_a_label_is_kept_where_confidence_exceeds_tau(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    batch = batches()
    method = build(pixel_net, threshold={"rule": "strict", "strict": 0.6})
    output, _ = run(method, batch, progress())
    confidence, label = method.teacher(batch[1].weak).softmax(1).max(1)
    assert output.sums["kept"].tolist() == label[confidence > 0.6].bincount(minlength=CLASSES).tolist()
    assert output.sums["seen"].tolist() == label.flatten().bincount(minlength=CLASSES).tolist()
    torch.testing.assert_close(output.sums["confidence"].sum(), confidence.double().sum())
    assert output.sums["confidence_counts"].sum() == output.sums["seen"].sum()


def test_per_class_thresholds_follow_the_running_confidence(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    batch = batches()
    rule = {"low": 0.0, "high": 1.0, "scale": 0.8, "momentum": 0.75}
    confidence, label = build(pixel_net).teacher(batch[1].weak).softmax(1).max(1)
    running = torch.full((CLASSES,), 0.25)
    mean = 0.75 * 0.25 + 0.25 * confidence.mean().item()
    for k in label.unique().tolist():
        running[k] = 0.75 * 0.25 + 0.25 * confidence[label == k].mean()
    per_class = build(pixel_net, threshold={"rule": "per_class", **rule})
    torch.testing.assert_close(run(per_class, batch, progress())[0].means["threshold"], 0.8 * running)
    floor = build(pixel_net, threshold={"rule": "floor", **rule})
    torch.testing.assert_close(run(floor, batch, progress())[0].means["threshold"], 0.8 * mean * running / running.max())


def test_a_class_that_is_not_named_keeps_its_running_confidence(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    method = build(pixel_net, threshold={"rule": "per_class", "low": 0.0, "high": 1.0, "scale": 0.8, "momentum": 0.75})
    method.teacher.get_parameter("conv.bias").data[2] = -1e4
    output, _ = run(method, batches(), progress())
    assert output.sums["seen"][2] == 0
    assert output.means["threshold"][2].item() == pytest.approx(0.8 * 0.25)
    assert (output.means["threshold"][output.sums["seen"] > 0] > 0.8 * 0.25).all()


def test_bounds_of_tau_that_are_equal_are_tau(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    method = build(pixel_net, threshold={"rule": "floor", "low": 0.5, "high": 0.5})
    threshold = method.training_step(*batches(), progress()).means["threshold"]
    assert threshold.tolist() == [0.5] * CLASSES


def test_auto_thresholds_come_from_the_selection_slice(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    rule = {"rule": "auto", "strict": 0.9, "target": 0.8, "prior": 0.0, "low": 0.0, "high": 0.95}
    method = build(pixel_net, threshold=rule)
    threshold = method.training_step(*batches(), progress()).means["threshold"]
    torch.testing.assert_close(threshold, torch.full((CLASSES,), 0.9))  # strict, until there is something to learn from
    method.calibrate(None)
    torch.testing.assert_close(method.thresholds, torch.full((CLASSES,), 0.9))
    total = torch.full((CLASSES, 10), 10.0).double()
    correct = torch.stack([torch.full((10,), right).double() for right in (10.0, 5.0, 0.0, 0.0)])
    correct[2, 5:] = 8.0  # right in 8 of 10 from confidence 0.5 on
    method.calibrate(Reliability(correct, total))
    threshold = method.training_step(*batches(), progress()).means["threshold"]
    torch.testing.assert_close(threshold, torch.tensor([0.0, 0.95, 0.5, 0.95]))


@pytest.mark.parametrize("rule", ["strict", "logistic", "per_class", "floor"])
def test_other_rules_ask_the_selection_slice_nothing(pixel_net: Net, rule: str) -> None:
    method = build(pixel_net, threshold={"rule": rule})
    before = [b.clone() for b in method.buffers()]
    method.calibrate(Reliability(torch.ones(CLASSES, 10).double(), torch.ones(CLASSES, 10).double()))
    assert all(torch.equal(a, b) for a, b in zip(before, method.buffers(), strict=True))


def test_the_frame_is_a_boundary_only_as_published(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    flat = (labeled, replace(unlabeled, weak=torch.full_like(unlabeled.weak, 90)))  # one label everywhere
    assert means(build(pixel_net, boundary={"frame": "zero"}), flat, progress())["loss_boundary"] > 0
    assert means(build(pixel_net, boundary={"frame": "replicate"}), flat, progress())["loss_boundary"] == 0


def test_the_boundary_term_has_its_weight_and_its_switch(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    found = {w: means(build(pixel_net, boundary={"weight": w}), batches(), progress()) for w in (0.0, 0.5, 2.0)}
    assert found[0.0]["loss_boundary"] == 0
    term = found[0.5]["loss_boundary"]
    assert term > 0
    assert found[0.5]["loss_unsup"] - found[0.0]["loss_unsup"] == pytest.approx(0.5 * term, rel=1e-5)
    assert found[2.0]["loss_unsup"] - found[0.0]["loss_unsup"] == pytest.approx(2.0 * term, rel=1e-5)


def test_the_boundary_term_can_be_weighted_by_confidence(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    batch = batches()
    terms: dict[str, Any] = {"decay": {"rule": "none"}, "gamma": 2.0, **KEEP_ALL}
    plain, weighted = (build(pixel_net, boundary={"confidence_weighted": on}, **terms) for on in (False, True))
    confidence, label = plain.teacher(batch[1].weak).softmax(1).max(1)
    pixel_loss = F.cross_entropy(plain.student(batch[1].weak), label, reduction="none")
    planes = F.pad(F.one_hot(label, CLASSES).permute(0, 3, 1, 2).float(), (1, 1, 1, 1))
    gx = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([gx, gx.T]).repeat(CLASSES, 1, 1)[:, None]
    edge = (F.conv2d(planes, kernels, groups=CLASSES) != 0).any(1)
    assert means(plain, batch, progress())["loss_boundary"] == pytest.approx(pixel_loss[edge].mean().item(), rel=1e-5)
    expected = (confidence**2 * pixel_loss)[edge].mean().item()
    assert means(weighted, batch, progress())["loss_boundary"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "step", "factor"), [("none", 50, 1.0), ("constant", 0, 0.5), ("progressive", 20, 1.0), ("progressive", 60, 0.75)]
)
def test_decay_scales_the_weight_of_confidence(
    pixel_net: Net, batches: Batches, progress: Steps, rule: str, step: int, factor: float
) -> None:
    terms: dict[str, Any] = {"boundary": {"weight": 0.0}, "gamma": 2.0}
    plain = means(build(pixel_net, decay={"rule": "none"}, **terms), batches(), progress(step, start=20))["loss_unsup"]
    decayed = build(pixel_net, decay={"rule": rule, "factor": 0.5}, **terms)
    assert means(decayed, batches(), progress(step, start=20))["loss_unsup"] == pytest.approx(factor**2 * plain, rel=1e-5)


def test_the_sum_is_divided_by_kept_or_by_valid_pixels(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    batch = batches()
    terms: dict[str, Any] = {"boundary": {"weight": 0.0}, "threshold": {"rule": "strict", "strict": 0.6}, "ignore_padding": True}
    kept, valid = (run(build(pixel_net, divide_by=name, **terms), batch, progress())[0] for name in ("kept", "valid"))
    share = kept.sums["kept"].sum() / batch[1].valid.sum()
    assert 0 < share < 1
    torch.testing.assert_close(valid.means["loss_unsup"], kept.means["loss_unsup"] * share)


@pytest.mark.parametrize(("step", "voice"), [(10, 0.0), (15, 0.25), (30, 1.0), (90, 1.0)])
def test_lambda_rises_from_the_start_of_the_stage(
    pixel_net: Net, batches: Batches, progress: Steps, step: int, voice: float
) -> None:
    found = means(build(pixel_net, ramp_epochs=20.0, unsup_weight=2.0), batches(), progress(step, start=10))
    assert found["unsup_weight"] == 2 * voice
    assert found["loss"] == pytest.approx(found["loss_sup"] + 2 * voice * found["loss_unsup"], rel=1e-6)


@pytest.mark.parametrize(("step", "voice"), [(10, 1.0), (60, 1.0), (70, 0.8), (90, 0.4), (109, 0.02)])
def test_lambda_falls_to_zero_at_the_end_of_the_stage(
    pixel_net: Net, batches: Batches, progress: Steps, step: int, voice: float
) -> None:
    found = means(build(pixel_net, fade=0.5, unsup_weight=2.0), batches(), progress(step, start=10, total=110))
    assert found["unsup_weight"] == pytest.approx(2 * voice)
    assert found["loss"] == pytest.approx(found["loss_sup"] + 2 * voice * found["loss_unsup"], rel=1e-6)


@pytest.mark.parametrize(("norm", "calls", "remembered"), [("joint", [4], 1), ("separate", [2, 2], 2), ("labeled", [2, 2], 1)])
def test_norm_says_whose_statistics_are_made_and_kept(
    norm_net: Net, batches: Batches, progress: Steps, norm: str, calls: list[int], remembered: int
) -> None:
    labeled, unlabeled = batches()
    other = replace(unlabeled, weak=255 - unlabeled.weak)
    statistics = []
    for views in (unlabeled, other):
        method, seen = build(norm_net, norm=norm), []
        method.student.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].shape[0]))
        method.training_step(labeled, views, progress())
        buffers = dict(method.student.named_buffers())
        assert seen == calls
        assert buffers["stem.1.num_batches_tracked"].item() == remembered
        statistics.append(buffers["stem.1.running_mean"].clone())
    assert torch.equal(*statistics) == (norm == "labeled")


@pytest.mark.parametrize("norm", ["joint", "separate", "labeled"])
def test_a_strong_view_is_decoded_again_without_some_of_its_channels(
    pixel_net: Net, batches: Batches, progress: Steps, norm: str
) -> None:
    """By hand: the network's features are the image's three channels, of which two in ten are left out and the others grow."""
    labeled, unlabeled = batches(padded=0)
    terms: dict[str, Any] = {"cutmix": 0.0, "classmix": 0.0, "boundary": {"weight": 0.0}, "decay": {"rule": "none"}, "gamma": 0.0}
    method = build(pixel_net, "cwbass", labels="hard", norm=norm, feature_drop=0.2, **terms, **KEEP_ALL)
    found = means(method, (labeled, unlabeled), progress(seed=7))
    label = method.teacher(unlabeled.weak).argmax(1)
    features = method.student.normalize(unlabeled.strong)
    drawn = torch.rand(2, 3, generator=torch.Generator().manual_seed(7))
    assert 0 < (drawn < 0.2).sum() < 6
    thinned = torch.stack(
        [
            torch.stack([plane / 0.8 if r >= 0.2 else 0 * plane for plane, r in zip(*of, strict=True)])
            for of in zip(features, drawn, strict=True)
        ]
    )
    whole, rest = (F.cross_entropy(method.student.decode([each]), label) for each in (features, thinned))
    assert found["loss_unsup"] == pytest.approx(((whole + rest) / 2).item(), rel=1e-5)
    sup = F.cross_entropy(method.student(labeled.image), labeled.mask.long(), ignore_index=255)
    assert found["loss_sup"] == pytest.approx(sup.item(), rel=1e-5)  # labelled images keep all their channels


@pytest.mark.parametrize("ramp", [False, True])
def test_ema_settings_reach_the_teacher(norm_net: Net, progress: Steps, ramp: bool) -> None:
    method = build(norm_net, ema={"decay": 0.9, "ramp": ramp, "buffers": "average"})
    old = [p.detach().clone() for p in method.teacher.parameters()]
    method.after_optimizer_step(progress(1))  # the second update: half and half on the ramp
    decay = 0.5 if ramp else 0.9
    for p, before, student in zip(method.teacher.parameters(), old, method.student.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), decay * before + (1 - decay) * student.detach())


def test_the_automatic_decay_is_of_the_run_s_length(norm_net: Net, progress: Steps) -> None:
    method = build(norm_net, "cwbass")  # which leaves the decay open
    old = [p.detach().clone() for p in method.teacher.parameters()]
    method.after_optimizer_step(progress(20, total=24, start=8))  # 1 - 6/24; the ramp is at 20/21
    for p, before, student in zip(method.teacher.parameters(), old, method.student.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), 0.75 * before + 0.25 * student.detach())


def test_the_recipe_chooses_its_block() -> None:
    config = CwBassConfig.model_validate({"paper": {"gamma": 3.0}, "cwbass": {"gamma": 2.0}})
    assert config.terms is config.cwbass
    assert config.terms.gamma == 2.0
    assert config.model_copy(update={"recipe": "paper"}).terms.gamma == 3.0
    assert config.paper.ema.decay == 0.999  # the rest of the block is its recipe's own
    assert config.paper.threshold.rule == "logistic"


def test_soft_labels_of_a_certain_teacher_are_hard_ones(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    batch = batches()
    losses = []
    for labels in ("hard", "soft"):
        method = build(pixel_net, "cwbass", labels=labels, **KEEP_ALL)
        for parameter in method.teacher.parameters():
            parameter.data.mul_(1e4)
        losses.append(means(method, batch, progress()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_soft_labels_by_their_definition(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches(padded=0)
    method = build(
        pixel_net,
        "cwbass",
        labels="soft",
        feature_drop=0.0,
        cutmix=0.0,
        classmix=0.0,
        boundary={"weight": 0.0},
        decay={"rule": "none"},
        **KEEP_ALL,
    )
    probs = method.teacher(unlabeled.weak).softmax(1)
    log_q = method.student(unlabeled.strong).log_softmax(1)
    expected = (probs.amax(1) * -(probs * log_q).sum(1)).mean()
    assert means(method, (labeled, unlabeled), progress())["loss_unsup"] == pytest.approx(expected.item(), rel=1e-5)


def test_pasted_pixels_carry_the_soft_label_of_where_they_come_from(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches(padded=0)
    method = build(pixel_net, "cwbass", labels="soft", norm="separate", feature_drop=0.0, cutmix_labeled=0.0, classmix=0.0)
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    targets: list[Tensor | None] = []
    inner = method._pixel_loss

    def keep(logits: Tensor, pseudo: Any) -> Tensor:
        targets.append(pseudo.probs)
        return inner(logits, pseudo)

    method._pixel_loss = keep  # type: ignore[method-assign]
    method.training_step(labeled, replace(unlabeled, strong=unlabeled.weak), progress())
    assert targets[0] is not None
    # The network looks at single pixels: its soft label of the mixed picture is the mix of its soft labels.
    torch.testing.assert_close(targets[0], method.teacher(seen[1]).softmax(1))


def test_rare_labelled_classes_count_more(pixel_net: Net, batches: Batches, progress: Steps) -> None:
    labeled, unlabeled = batches()
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0])
    torch.manual_seed(0)
    method = CwBass(CwBassConfig(), pixel_net, num_classes=CLASSES, ignore_index=255, class_weight=weight)
    expected = F.cross_entropy(method.student(labeled.image), labeled.mask.long(), weight=weight, ignore_index=255)
    found = method.training_step(labeled, unlabeled, progress()).means["loss_sup"]
    torch.testing.assert_close(found, expected)
    assert not any("class_weight" in name for name in method.state_dict())  # it follows from split and parameters


@pytest.mark.parametrize("norm", ["joint", "separate", "labeled"])
def test_settling_the_labelled_loss_early_changes_no_bit(norm_net: Net, batches: Batches, progress: Steps, norm: str) -> None:
    settled: list[Tensor] = []

    def settle(part: Tensor) -> Tensor:
        part.backward()
        settled.append(part.detach())
        return settled[0]

    found = []
    for now in (progress(), replace(progress(), settle=settle)):
        method = build(norm_net, "cwbass", norm=norm, **KEEP_ALL)
        output, gradients = run(method, batches(), now)
        found.append([output.loss.detach(), *output.means.values(), *gradients, *method.student.buffers()])
    assert len(settled) == (0 if norm == "joint" else 1)  # one batch is one graph, which cannot be freed by halves
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
