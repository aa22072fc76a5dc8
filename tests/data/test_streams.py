from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from threads import in_threads

from cwbass.config import AugmentConfig
from cwbass.data.base import Box, DatasetSpec, Sample, default_palette
from cwbass.data.cache import open_source
from cwbass.data.streams import (
    LabeledStream,
    UnlabeledStream,
    collate,
    index_at,
    make_loader,
)
from cwbass.types import PLACE, LabeledBatch, UnlabeledBatch, shown
from cwbass.world import ALONE, World

CONFIG = AugmentConfig(crop_size=16, scale=(0.5, 2.0))
SIZES = [(20, 30), (24, 24), (40, 17), (9, 50), (33, 21)]


class Arrays:
    """Images of noise; image k's red channel is k, and its mask is k everywhere."""

    def __init__(self, length: int = len(SIZES)) -> None:
        self.sizes = [SIZES[k % len(SIZES)] for k in range(length)]

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        image = np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        image[..., 0] = index
        left, top, right, bottom = box or (0, 0, *self.sizes[index][::-1])
        return image[top:bottom, left:right]

    def mask(self, index: int) -> NDArray[np.uint8]:
        return np.full(self.sizes[index], index, dtype=np.uint8)


def labeled(source: Any, seed: int = 0) -> LabeledStream:
    return LabeledStream(source, CONFIG, ignore_index=255, seed=seed)


def load(stream: Any, *, start: int = 0, stop: int, batch_size: int = 2, workers: int = 0, world: World = ALONE) -> list[Any]:
    batches: Iterable[Any] = make_loader(
        stream, collate, start=start, stop=stop, batch_size=batch_size, workers=workers, pin_memory=False, world=world
    )
    return list(batches)


def same(one: Any, other: Any) -> bool:
    names = ("image", "mask") if isinstance(one, LabeledBatch) else ("weak", "strong", "valid")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("length", [1, 2, 7, 50])
def test_every_cycle_is_a_permutation(length: int) -> None:
    for cycle in range(6):
        positions = range(cycle * length, (cycle + 1) * length)
        assert sorted(index_at(p, length, seed=3, stream="unlabeled") for p in positions) == list(range(length))


def test_order_differs_by_cycle_by_stream_and_by_seed() -> None:
    def order(cycle: int, seed: int, stream: Any) -> tuple[int, ...]:
        return tuple(index_at(cycle * 30 + k, 30, seed=seed, stream=stream) for k in range(30))

    orders = {order(c, s, name) for c in range(3) for s in range(3) for name in ("labeled", "unlabeled")}
    assert len(orders) == 18


def test_a_sample_is_a_function_of_its_position() -> None:
    forward, backward = labeled(Arrays()), labeled(Arrays())
    one = [forward[p] for p in range(12)]
    other = [backward[p] for p in reversed(range(12))][::-1]
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_views_never_repeat_over_three_cycles() -> None:
    labeled_views, unlabeled_views = labeled(Arrays()), UnlabeledStream(Arrays(), CONFIG, seed=0)
    for name, stream in (("image", labeled_views), ("weak", unlabeled_views)):
        views = {getattr(stream[p], name).numpy().tobytes() for p in range(3 * len(SIZES))}
        assert len(views) == 3 * len(SIZES)


def test_order_and_crops_differ_by_stream_and_by_seed() -> None:
    source, orders, crops = Arrays(30), set(), set()
    source.sizes = [(40, 40)] * 30  # so that a crop is its draws alone
    for seed in (0, 1):
        both = (
            LabeledStream(source, CONFIG, ignore_index=255, seed=seed, places=True),
            UnlabeledStream(source, CONFIG, seed=seed, places=True),
        )
        for stream in both:
            places = torch.stack([stream[p].place for p in range(30)])
            orders.add(tuple(places[:, 0].tolist()))
            crops.add(tuple(places[:, 1:].flatten().tolist()))
    assert (len(orders), len(crops)) == (4, 4)


def test_a_mask_belongs_to_its_image() -> None:
    stream = labeled(Arrays())
    for p in range(20):
        item = stream[p]
        known = item.mask != 255
        assert torch.equal(item.image[0][known], item.mask[known])
        assert int(item.mask[known][0]) == index_at(p, len(SIZES), seed=0, stream="labeled")


def test_strong_and_weak_views_share_their_geometry() -> None:
    quiet = CONFIG.model_copy(update={"jitter": 0.0, "grayscale": 0.0, "blur": 0.0})
    loud = UnlabeledStream(Arrays(), CONFIG, seed=0)
    still = UnlabeledStream(Arrays(), quiet, seed=0)
    for p in range(10):
        one, other = loud[p], still[p]
        assert torch.equal(one.weak, other.weak)
        assert torch.equal(other.strong, other.weak)
        assert torch.equal(one.valid, other.valid)
        assert (one.weak[:, ~one.valid] == 114).all()
    assert any(not torch.equal(loud[p].weak, loud[p].strong) for p in range(10))


def test_a_second_strong_view_is_another_and_leaves_the_others_as_they_are() -> None:
    (one,) = load(UnlabeledStream(Arrays(), CONFIG, seed=0), stop=1)
    (two,) = load(UnlabeledStream(Arrays(), CONFIG, seed=0, strong_views=2), stop=1)
    assert one.strong2 is None
    for name in ("weak", "strong", "valid"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert two.strong2.shape == two.strong.shape
    assert two.strong2.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(two.strong2, two.strong)
    assert torch.equal(two.to(torch.device("cpu")).strong2, two.strong2)


@pytest.mark.parametrize("make", [labeled, lambda source: UnlabeledStream(source, CONFIG, seed=0)])
def test_to_start_at_a_batch_is_to_skip_those_before_it(make: Any) -> None:
    whole = load(make(Arrays()), stop=9)
    tail = load(make(Arrays()), start=4, stop=9)
    assert len(whole) == 9
    assert len(tail) == 5
    assert all(same(a, b) for a, b in zip(whole[4:], tail, strict=True))


def test_fewer_images_than_a_batch_fill_it_with_other_views() -> None:
    (batch,) = load(labeled(Arrays(3)), stop=1, batch_size=8)
    assert batch.image.shape == (8, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in batch.image}) == 8
    assert set(batch.mask[batch.mask != 255].tolist()) == {0, 1, 2}


def test_batches_are_uint8_and_channels_last() -> None:
    (x,) = load(labeled(Arrays()), stop=1)
    (u,) = load(UnlabeledStream(Arrays(), CONFIG, seed=0), stop=1)
    assert isinstance(x, LabeledBatch)
    assert isinstance(u, UnlabeledBatch)
    assert (x.image.dtype, x.mask.dtype, u.weak.dtype, u.strong.dtype, u.valid.dtype) == (*[torch.uint8] * 4, torch.bool)
    for image in (x.image, u.weak, u.strong):
        assert image.shape == (2, 3, 16, 16)
        assert image.is_contiguous(memory_format=torch.channels_last)
    assert u.pseudo_label is None


def test_the_number_of_workers_does_not_change_the_batches(tmp_path: Path) -> None:
    samples, source = [], Arrays()
    for k in range(len(source)):
        Image.fromarray(source.image(k)).save(tmp_path / f"{k}.png")
        Image.fromarray(source.mask(k)).save(tmp_path / f"{k}_mask.png")
        samples.append(Sample(str(k), f"{k}.png", f"{k}_mask.png"))
    spec = DatasetSpec(tuple("abcde"), default_palette(5), ids={k: k for k in range(5)})
    stream = labeled(open_source(samples, tmp_path, spec, tmp_path / "cache"))
    stream[0]  # the memory map is open when the workers get their copy
    none, two = load(stream, start=1, stop=6), load(stream, start=1, stop=6, workers=2)
    assert len(two) == 5
    assert all(same(a, b) for a, b in zip(none, two, strict=True))


def test_a_loader_that_begins_leaves_the_global_generator_alone() -> None:
    """Or the state that a checkpoint holds would tell where a process began."""
    before = torch.get_rng_state()
    load(labeled(Arrays()), start=1, stop=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_parts_of_all_processes_are_the_batch(processes: int) -> None:
    stream = UnlabeledStream(Arrays(), CONFIG, seed=0)
    whole = load(stream, start=1, stop=4, batch_size=6)
    parts = in_threads(processes, lambda world: load(stream, start=1, stop=4, batch_size=6, world=world))
    assert len(whole) == 3
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[k].strong for part in parts]), batch.strong)
        assert torch.equal(torch.cat([part[k].valid for part in parts]), batch.valid)


def test_images_are_stacked_channels_last_whatever_their_layout() -> None:
    planar = torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    side_by_side = planar.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    gray = planar[:1].expand(3, 5, 7)
    mask = torch.zeros(5, 7, dtype=torch.uint8)
    image = collate([LabeledBatch(view, mask) for view in (planar, side_by_side, gray)]).image
    assert torch.equal(image, torch.stack([planar, planar, gray]))
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_places_say_which_part_of_which_image_a_crop_shows() -> None:
    """At whole scales a crop is its rectangle, mirrored where that is said."""
    source, config = Arrays(), CONFIG.model_copy(update={"scale": (1.0, 1.0), "crop_size": 22})
    stream = LabeledStream(source, config, ignore_index=200, seed=0, places=True)
    (batch,) = load(stream, stop=1, batch_size=20)
    assert batch.place.dtype == torch.int64 and batch.place.shape == (20, len(PLACE))
    assert batch.place[:, PLACE.index("mirror")].unique().tolist() == [0, 1]
    padded = 0
    for image, mask, place, valid in zip(batch.image, batch.mask, batch.place.tolist(), shown(batch.place, 22), strict=True):
        index, top, left, height, width, out_height, out_width, mirror = place
        part = torch.from_numpy(source.image(index)[top : top + height, left : left + width]).permute(2, 0, 1)
        assert torch.equal(image[:, :out_height, :out_width], part.flip(-1) if mirror else part)
        assert torch.equal(valid, mask != 200)
        padded += int((~valid).any())
    assert 0 < padded < 20


def test_unlabelled_crops_have_places_too_and_none_are_made_unasked() -> None:
    (batch,) = load(UnlabeledStream(Arrays(), CONFIG, seed=0, places=True), stop=1, batch_size=20)
    assert torch.equal(shown(batch.place, 16), batch.valid)
    assert torch.equal(batch.place[:, 0], batch.weak[:, 0].masked_fill(~batch.valid, 0).amax((1, 2)))  # the red of each image
    (plain,) = load(UnlabeledStream(Arrays(), CONFIG, seed=0), stop=1, batch_size=20)
    assert plain.place is None and same(plain, batch)
