"""CW-BASS as one would write it down from its formulas, with no thought for speed: what the project's step is compared with.

Two calls of the student, one plane a class for the boundaries, cross-entropy once for each of the two terms, float32,
torch's default memory layout, default optimiser, and a teacher that follows parameter by parameter. The formulas and numbers are
those of the published method (arXiv:2502.15152); ``recipe: paper`` is the project's own form of the same step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases import IGNORE, Case


def one_hot_sobel(label: Tensor, classes: int) -> Tensor:
    """Pixels at which the Sobel pair answers on any class's plane. [B, H, W] -> [B, H, W] bool."""
    planes = F.one_hot(label, classes).permute(0, 3, 1, 2).float()
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gx = F.conv2d(planes, across.expand(classes, 1, 3, 3), padding=1, groups=classes)
    gy = F.conv2d(planes, across.T.expand(classes, 1, 3, 3), padding=1, groups=classes)
    return torch.sqrt(gx**2 + gy**2).sum(dim=1) > 0


def plain_step(case: Case) -> Callable[[], None]:
    """A whole step: teacher, pseudo-labels, losses, backward pass, optimiser, teacher's update."""
    method = case.method().to(memory_format=torch.contiguous_format)
    student, teacher = method.student, method.teacher
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
    labeled, unlabeled = case.batches()
    image, weak, mask = labeled.image.contiguous(), unlabeled.weak.contiguous(), labeled.mask.long()

    def step() -> None:
        with torch.no_grad():
            logits = teacher(weak)
            confidence, label = F.softmax(logits, dim=1).max(dim=1)
            threshold = (0.6 / (1 + torch.exp(-0.5 * (confidence.mean() - 0.5)))).clamp(0.3, 0.8)
            boundary = one_hot_sobel(label, case.classes).float()
            target = torch.where(confidence > threshold, label, IGNORE)
            confidence = confidence * 0.9
        loss_sup = F.cross_entropy(student(image), mask, ignore_index=IGNORE)
        predicted = student(weak)
        kept = (target != IGNORE).float()
        weighted = F.cross_entropy(predicted, target, ignore_index=IGNORE, reduction="none") * confidence**1.0 * kept
        loss_weighted = weighted.sum() / kept.sum().clamp(min=1)
        at_boundary = F.cross_entropy(predicted, target, ignore_index=IGNORE, reduction="none") * boundary * kept
        loss_boundary = at_boundary.sum() / (boundary * kept).sum().clamp(min=1)
        loss = loss_sup + loss_weighted + 0.5 * loss_boundary
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        follow(teacher, student)

    return step


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module) -> None:
    """The teacher's update as published: weights averaged one by one, statistics copied."""
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        own.data = 0.999 * own.data + (1 - 0.999) * other.data
    for own, other in zip(teacher.buffers(), student.buffers(), strict=True):
        own.data = other.data.clone()
