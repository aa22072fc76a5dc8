from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cwbass.losses.boundary import _dilate, boundary_mask, boundary_mean

Frame = Literal["zero", "replicate"]
FRAMES: tuple[Frame, ...] = ("zero", "replicate")


def one_hot_sobel(label: Tensor, num_classes: int, frame: Frame) -> Tensor:
    """The published form: the Sobel pair on every class's plane, any magnitude above 0."""
    planes = F.one_hot(label.long(), num_classes).permute(0, 3, 1, 2).double()  # [B, K, H, W]
    planes = F.pad(planes, (1, 1, 1, 1), mode="constant" if frame == "zero" else "replicate")
    horizontal = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    kernels = torch.stack([horizontal, horizontal.T]).repeat(num_classes, 1, 1)[:, None]  # [2K, 1, 3, 3]
    answers = F.conv2d(planes, kernels, groups=num_classes)  # [B, 2K, H, W]
    magnitude = (answers[:, 0::2].square() + answers[:, 1::2].square()).sqrt()
    return magnitude.sum(1) > 0


@pytest.mark.parametrize("frame", FRAMES)
def test_equals_the_one_hot_form_on_every_map_of_three_classes(frame: Frame) -> None:
    label = torch.tensor(list(itertools.product(range(3), repeat=9))).view(-1, 3, 3)  # all 19683 of them
    assert torch.equal(boundary_mask(label, frame=frame), one_hot_sobel(label, 3, frame))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 9), (9, 1), (2, 2), (2, 5), (5, 3), (13, 17)])
def test_equals_the_one_hot_form_on_random_maps(frame: Frame, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for num_classes in range(2, 22):
        noise = torch.randint(0, num_classes, (8, *size), generator=generator)
        blocks = noise.repeat_interleave(3, 1).repeat_interleave(2, 2)  # edges of objects, not only of noise
        for label in (noise, blocks, noise.to(torch.uint8)):
            assert torch.equal(boundary_mask(label, frame=frame), one_hot_sobel(label, num_classes, frame))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 321])
def test_a_constant_map_has_no_boundary_but_the_frame_that_zero_padding_makes(size: int) -> None:
    label = torch.full((2, size, size), 7)
    assert not boundary_mask(label, frame="replicate").any()
    assert boundary_mask(label, frame="zero").sum(dim=(1, 2)).tolist() == [4 * (size - 1)] * 2  # 1280 at 321


def test_a_dot_is_seen_by_the_ring_around_it() -> None:
    label = torch.zeros(1, 5, 5, dtype=torch.long)
    label[0, 2, 2] = 1
    ring = torch.zeros(1, 5, 5, dtype=torch.bool)
    ring[0, 1:4, 1:4] = True
    ring[0, 2, 2] = False  # left and right of the dot are the same
    assert torch.equal(boundary_mask(label, frame="replicate"), ring)


@pytest.mark.parametrize(("width", "columns"), [(1, [3, 4]), (2, [2, 3, 4, 5]), (3, [1, 2, 3, 4, 5, 6]), (9, list(range(8)))])
def test_width_is_the_reach_on_each_side_of_an_edge(width: int, columns: list[int]) -> None:
    label = (torch.arange(8) > 3).long().expand(1, 6, 8)
    edge = boundary_mask(label, frame="replicate", width=width)
    assert edge.any(1)[0].nonzero().flatten().tolist() == columns
    assert edge.all(1)[0].nonzero().flatten().tolist() == columns


@pytest.mark.parametrize("by", [1, 2, 5, 20])
def test_a_mask_is_widened_as_pooling_would(by: int) -> None:
    mask = torch.rand(3, 17, 13, generator=torch.Generator().manual_seed(0)) < 0.02
    pooled = F.max_pool2d(mask[:, None].float(), 2 * by + 1, stride=1, padding=by)[:, 0] > 0
    assert torch.equal(_dilate(mask, by), pooled)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("inside", [1, 5, 255])
def test_an_ignored_strip_makes_no_boundary(width: int, inside: int) -> None:
    label = torch.zeros(1, 6, 20, dtype=torch.long)
    label[..., 8:11] = inside
    valid = label == 0
    assert boundary_mask(label, frame="replicate", width=width).any()
    assert not boundary_mask(label, frame="replicate", width=width, valid=valid).any()


def test_padding_makes_no_boundary_and_hides_none_farther_off() -> None:
    label = (torch.arange(12) > 3).long().repeat(1, 6, 1)  # a true edge at columns 3 and 4
    label[..., 10:] = 2  # what the network says of the padding
    valid = torch.ones(1, 6, 12, dtype=torch.bool)
    valid[..., 10:] = False
    edge = boundary_mask(label, frame="replicate", valid=valid)
    assert edge.any(1)[0].nonzero().flatten().tolist() == [3, 4]


def test_what_lies_in_the_padding_has_no_influence() -> None:
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(0, 4, (2, 9, 9), generator=generator)
    other = label.clone()
    valid = torch.ones(2, 9, 9, dtype=torch.bool)
    valid[:, 6:] = valid[:, :, 7:] = False
    other[~valid] = torch.randint(0, 4, (int((~valid).sum()),), generator=generator)
    for width in (1, 2, 3):
        one = boundary_mask(label, frame="replicate", width=width, valid=valid)
        assert torch.equal(one, boundary_mask(other, frame="replicate", width=width, valid=valid))
        assert not (one & ~valid).any()


@pytest.mark.parametrize("frame", FRAMES)
def test_names_of_the_classes_do_not_matter(frame: Frame) -> None:
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 6, (4, 11, 9), generator=generator)
    renamed = torch.randperm(6, generator=generator)[label]
    assert torch.equal(boundary_mask(label, frame=frame), boundary_mask(renamed, frame=frame))


def test_mean_matches_hand_computed_value() -> None:
    pixel_loss = torch.tensor([[[1.0, 2.0, 4.0]]])
    boundary = torch.tensor([[[True, True, False]]])
    confidence = torch.tensor([[[1.0, 0.5, 1.0]]])
    assert boundary_mean(pixel_loss, boundary).item() == 1.5
    assert boundary_mean(pixel_loss, boundary, confidence, gamma=1.0).item() == (1 + 2 * 0.5) / 2
    assert boundary_mean(pixel_loss, boundary, confidence, gamma=2.0).item() == (1 + 2 * 0.25) / 2
    assert boundary_mean(pixel_loss, boundary, confidence, gamma=0.0).item() == 1.5


def test_no_boundary_gives_zero_loss_and_zero_gradient() -> None:
    pixel_loss = torch.rand(1, 3, 3, requires_grad=True)
    loss = boundary_mean(pixel_loss, torch.zeros(1, 3, 3, dtype=torch.bool), torch.rand(1, 3, 3), gamma=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert pixel_loss.grad is not None
    assert torch.equal(pixel_loss.grad, torch.zeros(1, 3, 3))
