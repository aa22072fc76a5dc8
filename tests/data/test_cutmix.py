from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cwbass.data.cutmix import draw_boxes, partner, paste

AREA = (0.02, 0.4)


def boxes(batch: int, height: int, width: int, *, probability: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_boxes(batch, height, width, probability=probability, area=AREA, generator=generator)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_a_partner_is_never_the_image_itself(batch: int) -> None:
    ids = torch.arange(batch)
    assert (partner(ids) != ids).all()
    assert sorted(partner(ids).tolist()) == ids.tolist()  # and each is a partner once


def test_all_tensors_of_an_image_get_the_same_partner() -> None:
    label = torch.arange(4).view(4, 1, 1).expand(4, 2, 2)
    image = label[:, None].expand(4, 3, 2, 2)
    assert torch.equal(partner(image)[:, 0], partner(label))


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


def test_paste_takes_the_source_inside_the_boxes_only() -> None:
    box = torch.tensor([[[True, False], [False, False]]])
    target, source = torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[[5, 6], [7, 8]]])
    assert paste(target, source, box).tolist() == [[[5, 2], [3, 4]]]
    image = paste(target[:, None].repeat(1, 3, 1, 1), source[:, None].repeat(1, 3, 1, 1), box)
    assert image[0].tolist() == [[[5, 2], [3, 4]]] * 3


def test_paste_takes_whole_images_where_the_mask_is_one_of_images() -> None:
    target, source = torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4)
    use = torch.tensor([True, False, True])
    assert paste(target, source, use).amax((1, 2, 3)).tolist() == [1, 0, 1]
    assert paste(target[:, 0], source[:, 0], use).amin((1, 2)).tolist() == [1, 0, 1]
