from __future__ import annotations

import pytest
import torch

from cwbass.pixels import highest, look_up


def _maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_highest_by_hand() -> None:
    maps = torch.tensor([[[0.2, 0.5, 0.1]], [[0.7, 0.1, 0.1]], [[0.1, 0.4, 0.8]]])  # [3, 1, 3]
    value, label = highest(maps)
    assert value.tolist() == [pytest.approx([0.7, 0.5, 0.8])]
    assert label.tolist() == [[1, 0, 2]]
    assert label.dtype == torch.int64


def test_of_equal_values_the_first_class_counts() -> None:
    maps = torch.tensor([0.0, 0.3, 0.3, 0.3, 0.1]).view(5, 1, 1)
    assert highest(maps)[1].item() == 1
    assert highest(torch.zeros(4, 1, 1))[1].item() == 0


@pytest.mark.parametrize("classes", [1, 2, 11, 150, 255, 256])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_highest_is_what_torch_finds(classes: int, layout: torch.memory_format) -> None:
    maps = _maps(2, classes, 13, 7).contiguous(memory_format=layout)
    value, label = highest(maps)
    expected = maps.max(1)
    assert torch.equal(value, expected.values)
    assert torch.equal(label, expected.indices)


@pytest.mark.parametrize("cut", [(slice(None), slice(2, 9)), (slice(1, 5),), (slice(None), slice(None), slice(0, 4))])
def test_highest_of_a_part_of_a_map(cut: tuple[slice, ...]) -> None:
    maps = _maps(6, 13, 7)[cut]
    assert torch.equal(highest(maps)[1], maps.max(0).indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_the_first_of_equals(dtype: torch.dtype) -> None:
    maps = _maps(3, 40, 9, 8, dtype=dtype)
    value, label = highest(maps)
    assert value.dtype == dtype
    assert torch.equal(value, maps.amax(1))
    first = (maps == maps.amax(1, keepdim=True)).float().argmax(1)  # of a tensor of 0 and 1, the first 1
    assert torch.equal(label, first)


@pytest.mark.parametrize("shape", [(0, 11, 6, 5), (2, 11, 0, 5), (11, 0, 5)])
def test_nothing_has_no_highest_class(shape: tuple[int, ...]) -> None:
    value, label = highest(torch.zeros(shape))
    assert value.shape == label.shape == (*shape[:-3], *shape[-2:])


def test_doubles_are_told_apart_where_floats_are_not() -> None:
    maps = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64).view(2, 1, 1)
    assert highest(maps)[1].item() == 1


def test_no_gradient_flows() -> None:
    maps = _maps(2, 3, 4, 4).requires_grad_()
    value, _ = highest(maps)
    assert not value.requires_grad


def test_values_that_are_not_numbers_show_and_their_class_is_in_range() -> None:
    maps = _maps(3, 4, 4)
    maps[1, 2, 2] = torch.nan
    value, label = highest(maps)
    assert torch.isnan(value).nonzero().tolist() == [[2, 2]]
    assert 0 <= int(label.min()) <= int(label.max()) < 3


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 3, 4)])
def test_look_up_is_an_index(shape: tuple[int, ...]) -> None:
    table = torch.tensor([0.5, 1.5, 2.5])
    index = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(look_up(table, index), table[index])
    assert torch.equal(look_up(table > 1, index), (table > 1)[index])
