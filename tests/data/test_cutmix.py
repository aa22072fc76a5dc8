from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from threads import in_threads
from torch import Tensor

from cwbass.data.cutmix import Box, draw_boxes, draw_classes, mix_, pixels_of
from cwbass.world import World

AREA = (0.02, 0.4)


def boxes(batch: int, height: int, width: int, *, probability: float = 1.0, seed: int = 0) -> Tensor:
    """True inside the rectangles. [B, H, W] bool."""
    generator = torch.Generator().manual_seed(seed)
    return painted(draw_boxes(batch, height, width, probability=probability, area=AREA, generator=generator), (height, width))


def painted(drawn: Sequence[Box | None], size: tuple[int, int]) -> Tensor:
    mask = torch.zeros(len(drawn), *size, dtype=torch.bool)
    for image, box in zip(mask, drawn, strict=True):
        if box is not None:
            image[box] = True
    return mask


def paste(target: Tensor, source: Tensor, where: Tensor) -> Tensor:
    """The plain form: a whole mixed copy."""
    return torch.where(where[:, None] if target.dim() == 4 else where, source, target)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (9, 9)])
def test_boxes_are_rectangles_of_the_asked_area(size: tuple[int, int]) -> None:
    drawn = boxes(400, *size)
    rows, columns = drawn.any(2), drawn.any(1)
    assert torch.equal(drawn, rows[:, :, None] & columns[:, None, :])  # one solid rectangle each
    for sides in (rows, columns):
        starts = (sides[:, 1:] & ~sides[:, :-1]).sum(1) + sides[:, 0]
        assert starts.unique().tolist() == [1]
    height, width = rows.sum(1), columns.sum(1)
    pixels = size[0] * size[1]
    rounding = (height + width + 1) / 2  # half a pixel on either side
    assert (height * width >= AREA[0] * pixels - rounding).all()
    assert (height * width <= AREA[1] * pixels + rounding).all()
    assert rows.any(0).all()  # no row and no column is out of reach
    assert columns.any(0).all()


def test_area_and_shape_are_spread_over_their_ranges() -> None:
    drawn = boxes(2000, 200, 200)
    height, width = drawn.any(2).sum(1).double(), drawn.any(1).sum(1).double()
    share = height * width / 200**2
    assert share.min() < 0.03
    assert share.max() > 0.38
    assert share.mean().item() == pytest.approx(0.21, abs=0.02)  # a few of the largest are cut at the frame
    ratio = height / width
    assert ratio.min().item() == pytest.approx(0.3, rel=0.1)
    assert ratio.max().item() == pytest.approx(1 / 0.3, rel=0.1)


def test_probability_says_how_many_images_get_a_box() -> None:
    assert not boxes(200, 16, 16, probability=0.0).any()
    assert boxes(200, 16, 16, probability=1.0).any(2).any(1).all()
    assert boxes(4000, 8, 8, probability=0.3).any(2).any(1).double().mean().item() == pytest.approx(0.3, abs=0.03)


def test_boxes_follow_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    one = boxes(8, 32, 32, seed=5)
    torch.manual_seed(2)
    assert torch.equal(one, boxes(8, 32, 32, seed=5))
    assert not torch.equal(one, boxes(8, 32, 32, seed=6))


def test_the_probability_does_not_move_the_boxes() -> None:
    always, sometimes = boxes(32, 32, 32), boxes(32, 32, 32, probability=0.5)
    used = sometimes.any(2).any(1)
    assert torch.equal(sometimes[used], always[used])


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_mixing_in_place_is_pasting_the_image_before_into_a_copy(batch: int, probability: float) -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        drawn = draw_boxes(batch, 12, 17, probability=probability, area=(0.1, 0.9), generator=generator)
        image = torch.rand(batch, 3, 12, 17, generator=generator).contiguous(memory_format=torch.channels_last)
        label = torch.randint(0, 9, (batch, 12, 17), generator=generator)
        expected = [paste(rows, rows.roll(1, 0), painted(drawn, (12, 17))) for rows in (image, label)]
        mix_([image, label], drawn, {})
        assert torch.equal(image, expected[0])
        assert torch.equal(label, expected[1])


def test_what_is_not_mixed_with_its_partner_is_given() -> None:
    image, label = torch.arange(3.0).view(3, 1, 1, 1).repeat(1, 2, 4, 4), torch.arange(3).view(3, 1, 1).repeat(1, 4, 4)
    box = (slice(1, 3), slice(0, 2))
    mix_([image, label], [box, None, box], {2: [torch.full((2, 2, 2), 7.0), torch.full((2, 2), 8)]})
    assert image[:, 1, 1, 1].tolist() == [2, 1, 7]  # the first image's partner is the last as it was
    assert label[:, 2, 0].tolist() == [2, 1, 8]
    assert image[:, 0, 0, 0].tolist() == label[:, 1, 2].tolist() == [0, 1, 2]


def test_each_process_mixes_its_part_as_the_whole_batch_would_be() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(6, 8, 8, generator=generator)
    drawn = draw_boxes(6, 8, 8, probability=1.0, area=(0.2, 0.6), generator=generator)
    expected = paste(whole, whole.roll(1, 0), painted(drawn, (8, 8)))

    def mixed(world: World) -> Tensor:
        own = world.own(whole).clone()
        mix_([own], drawn[2 * world.rank : 2 * world.rank + 2], {}, world)
        return own

    assert torch.equal(torch.cat(in_threads(3, mixed)), expected)


def test_a_class_is_taken_as_often_as_its_chance_says() -> None:
    chance = torch.tensor([0.0, 0.25, 0.5, 1.0])
    drawn = draw_classes(8000, chance, probability=0.5, generator=torch.Generator().manual_seed(3))
    assert drawn.shape == (8000, 4)
    used = drawn[:, 3]  # a class of chance 1 is taken by every image that gets any
    assert used.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not drawn[~used].any()
    share = drawn[used].double().mean(0)
    assert share.tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=0.025)


def test_pixels_of_classes_leave_out_what_is_not_labelled() -> None:
    label = torch.tensor([[0, 1, 2], [0, 2, 1]])
    known = torch.tensor([[True, True, True], [False, True, True]])
    taken = pixels_of(torch.tensor([False, True, False]), label, known)
    assert taken.tolist() == [[False, True, False], [False, False, True]]
    assert pixels_of(torch.tensor([True, True, True]), label, known).tolist() == [[True, True, True], [False, True, True]]
