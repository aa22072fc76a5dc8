"""What the rows of the training step run on: networks, batches, a step of the loop, and the network's passes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cwbass.config import ModelConfig, OptimizerConfig
from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.models import build_model
from cwbass.models.features import join_features, rows_of
from cwbass.models.norm import frozen_statistics
from cwbass.optimizers import rate_factor
from cwbass.params import Params, load_params, read_params
from cwbass.training.device import place
from cwbass.training.loop import Schedule, fit
from cwbass.training.optim import build_optimizer
from cwbass.types import LabeledBatch, UnlabeledBatch

IGNORE = 255
CPU = torch.device("cpu")
CONFIDENT = 20.0  # factor on the last layer of a random network: its confidences are then spread as a trained one's


@dataclass(frozen=True, slots=True)
class Case:
    """A network and the batches of a step."""

    name: str
    model: ModelConfig
    classes: int
    size: int  # pixels
    labeled: int
    unlabeled: int
    dtype: torch.dtype | None = None  # of autocast; None is float32
    recipe: str = "cwbass"
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))  # so low that a batch can be met often

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"class{index}" for index in range(self.classes))

    def method(self) -> CwBass:
        """A method on this network with random weights, placed as ``cwbass train`` places it."""
        torch.manual_seed(0)
        config = CwBassConfig.model_validate({"recipe": self.recipe})
        method = CwBass(config, lambda: build_model(self.model, self.class_names), num_classes=self.classes, ignore_index=IGNORE)
        for net in method.networks().values():
            list(net.parameters())[-2].data.mul_(CONFIDENT)
        method.student.train()
        return place(method, CPU)

    def batches(self) -> tuple[LabeledBatch, UnlabeledBatch]:
        """Random images of soft shapes, laid out as the loaders give them; an eighth of a mask is ignored, of a crop padded."""
        generator = torch.Generator().manual_seed(0)

        def smooth(images: int, channels: int) -> Tensor:
            coarse = torch.rand(images, channels, 9, 9, generator=generator)
            return F.interpolate(coarse, (self.size, self.size), mode="bilinear")

        def view(images: int) -> Tensor:
            return (255 * smooth(images, 3)).to(torch.uint8).contiguous(memory_format=torch.channels_last)

        mask = smooth(self.labeled, self.classes).argmax(1).to(torch.uint8)
        mask[:, : self.size // 8] = IGNORE
        valid = torch.ones(self.unlabeled, self.size, self.size, dtype=torch.bool)
        valid[:, -(self.size // 8) :] = False
        weak = view(self.unlabeled)
        return LabeledBatch(view(self.labeled), mask), UnlabeledBatch(weak, 255 - weak, valid)


R50 = Case("DeepLabV3+ R50, 21 classes, 321 px, 2+2", ModelConfig(), 21, 321, 2, 2)


def lite0() -> Case:
    """The network of the shipped configurations on photographs."""
    model = load_params(read_params(Path("configs/camvid.yaml"), ["model.weights=null"]), Params).model
    return Case("U-Net Lite0, 11 classes, 176 px, 4+4", model, 11, 176, 4, 4)


def bfloat16(case: Case) -> Case:
    """The case as ``precision: auto`` runs it where the hardware has bfloat16."""
    return replace(case, name=f"{case.name}, bfloat16", dtype=torch.bfloat16)


def published(case: Case) -> Case:
    """The case with the published recipe and optimiser."""
    return replace(case, recipe="paper", optimizer=OptimizerConfig(name="sgd", lr=1e-6, decay_norm_and_bias=True))


def whole_step(case: Case, method: CwBass) -> Callable[[], None]:
    """A step of the training loop on batches that are there: all of it but the loader."""
    optimizer = build_optimizer(method.student, case.optimizer, batch_size=case.labeled)
    labeled, unlabeled = case.batches()
    taken = iter(range(1_000_000))

    def step() -> None:
        now = next(taken)
        fit(
            method,
            [labeled],
            [unlabeled],
            optimizer=optimizer,
            schedule=Schedule(now, now + 1, 1_000_000, 1_000_000, 0),
            rate_factor=rate_factor(case.optimizer),
            seed=0,
            device=CPU,
            autocast_dtype=case.dtype,
            on_epoch=lambda record: True,
        )

    return step


def student_logits(method: CwBass, image: Tensor, first: int) -> Tensor:
    """Logits of all images and, if the recipe decodes unlabelled ones twice, once more of those from ``first`` on."""
    whole = method.student.feature_maps(image)
    return method.student.decode(join_features(whole, rows_of(whole, first)) if method.terms.feature_drop > 0 else whole)


def network_passes(case: Case, method: CwBass) -> Callable[[], None]:
    """The passes that the method asks of its networks, with the cheapest loss there is: a mean of the logits."""
    labeled, unlabeled = case.batches()
    joint, frozen = method.terms.norm == "joint", method.terms.norm == "labeled"

    def passes() -> None:
        method.student.zero_grad(set_to_none=True)
        with autocast(case):
            with torch.no_grad():
                method.teacher(unlabeled.weak)
            if joint:
                loss = student_logits(method, torch.cat((labeled.image, unlabeled.strong)), len(labeled.image)).mean()
            else:
                loss = method.student(labeled.image).mean()
                with frozen_statistics(method.student) if frozen else nullcontext():
                    loss = loss + student_logits(method, unlabeled.strong, 0).mean()
        loss.backward()  # type: ignore[no-untyped-call]

    return passes


@contextmanager
def autocast(case: Case) -> Iterator[None]:
    """As the training loop does it."""
    with torch.autocast("cpu", case.dtype) if case.dtype else nullcontext():
        yield
