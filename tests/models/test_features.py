from __future__ import annotations

import torch
from threads import in_threads

from cwbass.models.features import complementary_channels, drop_channels, join_features, rows_of
from cwbass.types import Progress
from cwbass.world import ALONE, World


def progress(world: World = ALONE, seed: int = 0) -> Progress:
    return Progress(0, 1, 0, 0, torch.Generator().manual_seed(seed), 1, world)


def features(batch: int) -> list[torch.Tensor]:
    """What a network with class tokens gives: an empty size, maps, a token."""
    return [torch.empty(0, 0, 9, 9), torch.rand(batch, 40, 3, 3) + 1, torch.rand(batch, 60, 2, 2) + 1, torch.rand(batch, 5)]


def test_dropped_channels_are_gone_and_the_others_make_up_for_them() -> None:
    maps = features(8)
    dropped = drop_channels(maps, rate=0.25, progress=progress())
    for own, other in zip(maps[1:3], dropped[1:3], strict=True):
        gone = (other == 0).all(dim=(2, 3))
        assert 0.15 < gone.float().mean() < 0.35
        torch.testing.assert_close(other[~gone], own[~gone] / 0.75)
        assert len({tuple(image.tolist()) for image in gone}) == 8  # each image its own
    assert torch.equal(dropped[3], maps[3])
    assert dropped[0].shape == (0, 0, 9, 9)


def test_complementary_views_make_up_the_whole_and_some_images_keep_it() -> None:
    maps = features(7)
    one, other = complementary_channels(maps, maps, share=0.5, progress=progress())
    whole = []
    for own, a, b in zip(maps[1:3], one[1:3], other[1:3], strict=True):
        torch.testing.assert_close((a + b) / 2, own)
        kept = (a == own).all(dim=(1, 2, 3))
        assert ((a == 0) ^ (b == 0))[~kept].all()
        whole.append(kept)
    assert whole[0].sum() == 3  # half of seven, rounded down
    assert torch.equal(*whole)


def test_processes_drop_what_one_would() -> None:
    maps, batch = features(6), 6
    expected = drop_channels(maps, rate=0.5, progress=progress())
    halves = complementary_channels(maps, maps, share=0.5, progress=progress())

    def part(world: World) -> list[list[torch.Tensor]]:
        own = [maps[0], *(world.own(each) for each in maps[1:])]
        both = complementary_channels(own, own, share=0.5, progress=progress(world))
        return [drop_channels(own, rate=0.5, progress=progress(world)), *both]

    found = in_threads(3, part)
    for index, whole in enumerate([expected, *halves]):
        for position in (1, 2, 3):
            assert torch.equal(torch.cat([each[index][position] for each in found]), whole[position])
            assert whole[position].shape[0] == batch


def test_batches_are_joined_and_taken_apart() -> None:
    one, other = features(2), features(3)
    joined = join_features(one, other)
    assert [len(each) for each in joined] == [0, 5, 5, 5]
    for whole, a, b, own, more in zip(joined, rows_of(joined, 0, 2), rows_of(joined, 2), one, other, strict=True):
        assert whole.shape[2:] == own.shape[2:]
        assert torch.equal(a, own)
        assert torch.equal(b, more)
