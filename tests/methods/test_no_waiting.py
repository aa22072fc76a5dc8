"""A step asks the device for no value: each question would make the processor wait until the device has caught up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cwbass.losses.supervised import HardPixels
from cwbass.methods import METHODS, build_method
from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.models.base import SegmentationNet
from cwbass.types import LabeledBatch, Progress, UnlabeledBatch

Net = type[SegmentationNet]
QUESTIONS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "unique",
    "equal",
    "is_nonzero",
}  # of a value or a size


class Questions(TorchDispatchMode):
    """Notes the operations whose result the processor must know to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [index for index in (args[1] if name in ("index", "index_put_") else ()) if index is not None]
        if name in QUESTIONS or any(index.dtype == torch.bool for index in masks):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["paper", "cwbass"])
@pytest.mark.parametrize("rule", ["strict", "logistic", "per_class", "floor", "auto"])
def test_no_value_is_asked_for(
    norm_net: Net,
    batches: Callable[..., tuple[LabeledBatch, UnlabeledBatch]],
    progress: Callable[..., Progress],
    recipe: str,
    rule: str,
) -> None:
    config = CwBassConfig.model_validate({"recipe": recipe, recipe: {"threshold": {"rule": rule}, "cutmix": 1.0}})
    method = CwBass(config, norm_net, num_classes=4, ignore_index=255)
    method.student.train()
    batch = batches()
    with Questions() as questions:
        method.training_step(*batch, progress()).loss.backward()
        method.after_optimizer_step(progress())
    assert questions.asked == []


@pytest.mark.parametrize("name", METHODS)
def test_no_method_asks_for_a_value(
    name: str,
    norm_net: Net,
    batches: Callable[..., tuple[LabeledBatch, UnlabeledBatch]],
    progress: Callable[..., Progress],
) -> None:
    config = METHODS[name].config_cls.model_validate({"name": name})
    method = build_method(config, norm_net, num_classes=4, ignore_index=255, hard=HardPixels(0.7, 0.1))
    method.trainable().train()
    batch = batches()
    with Questions() as questions:
        method.training_step(*batch, progress()).loss.backward()
        method.after_optimizer_step(progress())
    assert questions.asked == []


def test_the_test_sees_a_question() -> None:
    values = torch.arange(3.0)
    asks: list[Callable[[], Any]] = [
        lambda: values.sum().item(),
        lambda: values[values > 1],
        lambda: torch.bincount(values.long()),
        lambda: bool((values > 1).any()),
    ]
    for ask in asks:
        with Questions() as questions:
            ask()
        assert questions.asked


def test_indices_of_numbers_are_no_question() -> None:
    with Questions() as questions:
        table: Tensor = torch.arange(3.0)
        table[torch.tensor([0, 2])]
    assert questions.asked == []
