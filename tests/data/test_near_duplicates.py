"""Look-alikes: the hash, and the search against comparing all with all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cwbass.data.inspection import inspect_image
from cwbass.data.near_duplicates import Hash, difference_hash, near_pairs


def scene(seed: int, size: tuple[int, int] = (180, 144)) -> Image.Image:
    """A smooth random picture."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def distance(one: Image.Image, other: Image.Image) -> int:
    return bits(difference_hash(one), difference_hash(other))


def bits(one: Hash | None, other: Hash | None) -> int:
    words = [np.array(hash, dtype=np.uint32) for hash in (one, other)]
    return int(np.bitwise_count(words[0] ^ words[1]).sum())


def test_hash_of_a_ramp_is_known() -> None:
    """Brighter to the right everywhere, and equal downward: 64 ones, then 64 zeros."""
    ramp = np.tile(np.arange(0, 90, 10, dtype=np.uint8), (9, 1))
    assert difference_hash(Image.fromarray(ramp)) == (2**32 - 1, 2**32 - 1, 0, 0)
    assert difference_hash(Image.fromarray(ramp.T)) == (0, 0, 2**32 - 1, 2**32 - 1)


def test_recompressed_and_rescaled_copy_is_near_and_another_scene_is_not() -> None:
    for seed in range(5):
        buffer = BytesIO()
        scene(seed).resize((120, 96)).save(buffer, "JPEG", quality=75)
        assert distance(scene(seed), Image.open(buffer)) <= 3
        assert distance(scene(seed), scene(seed + 100)) > 20


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_colours_looks_the_same(tmp_path: Path, mode: str) -> None:
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0, 12, (333, 500, 3))
        image = np.asarray(scene(seed, (500, 333))) + noise
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).convert(mode).save(tmp_path / "i.jpg")
        facts = inspect_image(tmp_path / "i.jpg")
        assert facts.size == (500, 333)
        assert facts.hash is not None
        with Image.open(tmp_path / "i.jpg") as whole:
            assert bits(facts.hash, difference_hash(whole)) <= 1


def test_image_of_one_tone_has_no_hash() -> None:
    assert difference_hash(Image.new("RGB", (30, 20), (9, 9, 9))) is None


@given(st.integers(0, 1000), st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_search_finds_what_comparing_all_with_all_finds(seed: int, n: int) -> None:
    """Few base hashes with 0 to 4 flipped bits each, so that pairs lie on both sides of the border."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**32, (3, 4), dtype=np.uint32)[rng.integers(0, 3, n)]
    for row in hashes:
        for _ in range(rng.integers(0, 5)):
            row[rng.integers(0, 4)] ^= np.uint32(1 << int(rng.integers(0, 32)))
    roles = rng.integers(0, 2, n)
    expected = [
        [i, j]
        for i in range(n)
        for j in range(i + 1, n)
        if roles[i] != roles[j] and sum(int(a ^ b).bit_count() for a, b in zip(hashes[i], hashes[j], strict=True)) <= 3
    ]
    assert near_pairs(hashes, roles).tolist() == expected


def test_no_images_have_no_pairs() -> None:
    assert near_pairs(np.empty((0, 4), dtype=np.uint32), np.empty(0, dtype=np.int64)).tolist() == []


def test_each_copy_of_a_large_set_has_a_partner() -> None:
    """2,000 equal images: not all pairs are listed, but the one test image among them is."""
    hashes = np.tile(np.array([1, 2, 3, 4], dtype=np.uint32), (2000, 1))
    roles = np.zeros(2000, dtype=np.int64)
    roles[1234] = 1
    assert 1234 in near_pairs(hashes, roles)
