"""The cross-entropies that keep no map of probabilities, against torch's own, which does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cwbass.losses.confidence import pixel_cross_entropy, soft_cross_entropy

IGNORE = 255
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda logits: logits.contiguous(),
    "channels last": lambda logits: logits.contiguous(memory_format=torch.channels_last),
    "cropped": lambda logits: F.pad(logits, (0, 3, 0, 2))[..., : logits.shape[2], : logits.shape[3]],
    "cropped, channels last": lambda logits: F.pad(logits, (0, 3, 0, 2)).contiguous(memory_format=torch.channels_last)[
        ..., : logits.shape[2], : logits.shape[3]
    ],
}


def maps(dtype: torch.dtype, classes: int = 5, scale: float = 4.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels of which some are ignored, soft labels, and the gradient that arrives."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(3, classes, 7, 9, generator=generator)
    label = torch.randint(0, classes, (3, 7, 9), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = IGNORE
    wide = dtype if dtype == torch.float64 else torch.float32
    probs = torch.randn(logits.shape, generator=generator, dtype=wide).softmax(1)
    grad = torch.randn(label.shape, generator=generator, dtype=wide)
    return logits.to(dtype), label, probs, grad


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    value.backward(grad)
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 5, 40])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_values_and_gradients_are_torchs(dtype: torch.dtype, layout: str, classes: int, scale: float) -> None:
    logits, label, probs, grad = maps(dtype, classes, scale)
    logits = LAYOUTS[layout](logits)
    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (
            lambda x: pixel_cross_entropy(x, label, ignore_index=IGNORE),
            lambda x: F.cross_entropy(x, label, ignore_index=IGNORE, reduction="none"),
        ),
        (lambda x: soft_cross_entropy(x, probs), lambda x: F.cross_entropy(x, probs, reduction="none")),
    ]
    for ours, plain in pairs:
        value, gradient = value_and_gradient(ours, logits, grad)
        expected, expected_gradient = value_and_gradient(lambda x, plain=plain: plain(x.to(grad.dtype)), logits, grad)
        assert value.dtype == grad.dtype  # of half precision, in single
        assert gradient.dtype == dtype
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, expected_gradient)


def test_a_gradient_of_infinity_at_an_ignored_pixel_is_still_none() -> None:
    logits = torch.zeros(1, 2, 1, 2).requires_grad_()
    loss = pixel_cross_entropy(logits, torch.tensor([[[0, IGNORE]]]), ignore_index=IGNORE)
    (loss * torch.tensor([1.0, 1e38]) * 10).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0, 0].tolist() == [-5, 5]
    assert logits.grad[0, :, 0, 1].tolist() == [0, 0]


def test_a_label_that_is_no_class_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError), match="index 2 is out of bounds"):
        pixel_cross_entropy(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 2), ignore_index=IGNORE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_map_of_the_logits_type_is_kept_and_becomes_the_gradient(dtype: torch.dtype) -> None:
    logits, label, probs, _ = maps(dtype)
    logits.requires_grad_()
    losses: list[Callable[[], Tensor]] = [
        lambda: pixel_cross_entropy(logits, label, ignore_index=IGNORE),
        lambda: soft_cross_entropy(logits, probs),
    ]
    for loss in losses:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            value = loss()
        assert [tensor.dtype for tensor in kept if tensor.shape == logits.shape] == [dtype]
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.data_ptr() == kept[0].data_ptr()


def test_going_back_twice_is_an_error_and_not_another_gradient() -> None:
    logits, _, probs, _ = maps(torch.float32)
    loss = soft_cross_entropy(logits.requires_grad_(), probs).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_too_small_for_float16_survives_a_loss_scale() -> None:
    logits = torch.tensor([20.0, 0.0], dtype=torch.float16).view(1, 2, 1, 1).requires_grad_()
    loss = pixel_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.long), ignore_index=IGNORE)
    (loss.sum() * 2.0**16).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, 1, 0, 0].float().item(), 2.0**16 * 2.0611536e-9, rtol=1e-3, atol=0)
