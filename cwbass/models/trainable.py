"""Whether a network can take a training step on the crops it will get, found out before any data is read.

Some architectures ask for more than a batch of images: DeepLabV3 normalises one value per image and channel, PAN halves its
deepest map three times more, a plain transformer has one size. What torch says of it names none of our keys.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.func import functional_call

from cwbass.config import ModelConfig
from cwbass.errors import ParamsError, one_line
from cwbass.models import build_model
from cwbass.models.smp_net import ARCHITECTURES

_FAILURES = (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
_LARGEST = 1024  # pixels; nobody is told to use larger crops
_GRID = 32  # pixels; crops that are tried are multiples of it
_ANY_SIZE = {"dynamic_img_size": True}  # of timm's transformers


def check_trainable(net: nn.Module, config: ModelConfig, class_names: Sequence[str], *, crop_size: int, batch: int) -> None:
    """Raise unless ``net`` can be trained on such batches.

    No number is computed: the forward pass runs on shapes alone, in milliseconds.

    Args:
        net: Of ``config``; it is left as it is.
        config: Architecture and encoder, for the message.
        class_names: Of the dataset. [C].
        crop_size: Side of the crops, pixels.
        batch: Crops of the smallest batch that a step normalises, over all processes.

    Raises:
        ParamsError: It cannot; the message names the keys, and a change with which it can, where there is one. Or it gives
            something else than a logit of each class for each pixel.
    """
    if (problem := _problem(net, crop_size, batch)) is None:
        _check_logits(_forward(net, crop_size, batch), config, [len(class_names), crop_size, crop_size])
        return
    mends = _mends(config, class_names, crop_size, batch)
    mend = next(mends, "Choose another model.arch or model.encoder")
    raise ParamsError(
        f"model.arch {config.arch} with encoder {config.encoder} cannot be trained on batches of {batch} crops of {crop_size} "
        f"pixels (the smaller of train.batch_labeled and train.batch_unlabeled, augment.crop_size): {problem}. {mend}."
    )


def _problem(net: nn.Module, size: int, batch: int) -> str | None:
    """What stops a forward pass in training, in a line; None where nothing does."""
    try:
        _forward(net, size, batch)
    except _FAILURES as error:
        return one_line(error, 200).rstrip(".")
    return None


@torch.no_grad()
def _forward(net: nn.Module, size: int, batch: int) -> object:
    """What the network gives in training: logits, if it is as it should be."""
    was_training = net.training
    net.train()
    try:
        state = {name: value.to("meta") for name, value in (*net.named_parameters(), *net.named_buffers())}
        return functional_call(net, state, torch.zeros(batch, 3, size, size, device="meta"))
    except _FAILURES:  # it may be that the network cannot run on shapes alone; whether there is more than one image matters
        return copy.deepcopy(net).train()(torch.zeros(min(batch, 2), 3, size, size))
    finally:
        net.train(was_training)


def _check_logits(found: object, config: ModelConfig, asked: list[int]) -> None:
    """Raise unless there is a logit of each class for each pixel. ``asked``: C, H, W."""
    shape = list(found.shape[1:]) if isinstance(found, torch.Tensor) else None
    if shape != asked:
        seen = f"logits of {shape}" if shape is not None else f"a {type(found).__name__}"
        raise ParamsError(
            f"model.arch {config.arch} gives {seen} for an image; they must be [classes, height, width], here {asked}. "
            "Mend what its decode returns, or choose another model.arch."
        )


def _mends(config: ModelConfig, class_names: Sequence[str], size: int, batch: int) -> Iterator[str]:
    """Changes with which it works, the smallest first."""
    net = build_model(config, class_names)
    if batch < 2 and _problem(net, size, 2) is None:
        yield "Raise train.batch_labeled and train.batch_unlabeled to 2 or more"
    if _free_sized(config, class_names, size, max(2, batch)):
        yield "Set model.options: {dynamic_img_size: true}"
    for larger in range(size - size % _GRID + _GRID, _LARGEST + 1, _GRID):
        if _problem(net, larger, max(2, batch)) is None:
            more = " and both batches to 2 or more" if batch < 2 else ""
            yield f"Raise augment.crop_size to {larger}{more}"


def _free_sized(config: ModelConfig, class_names: Sequence[str], size: int, batch: int) -> bool:
    """Whether it works with an encoder of timm that is told to take any size; networks of smp pass that on."""
    if not config.encoder.startswith("tu-") or config.arch not in ARCHITECTURES:
        return False
    try:
        net = build_model(config.model_copy(update={"options": {**config.options, **_ANY_SIZE}}), class_names)
    except ParamsError:
        return False
    return _problem(net, size, batch) is None
