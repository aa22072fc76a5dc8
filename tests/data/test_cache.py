from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwbass.data.base import DatasetSpec, Sample, default_palette
from cwbass.data.cache import UNUSED_DAYS, CachedSource, FileSource, open_source
from cwbass.errors import DataError, ParamsError

SPEC = DatasetSpec(("sky", "road", "car"), default_palette(3), ids={0: 0, 7: 1, 9: 2, 255: 255})
SIZES = [(5, 8), (1, 1), (12, 3)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for k, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        Image.fromarray(rng.choice(np.array([0, 7, 9, 255], dtype=np.uint8), size)).save(folder / f"{k}_mask.png")
    return folder


@pytest.fixture
def samples() -> list[Sample]:
    """The second has no mask."""
    return [Sample("a", "0.png", "0_mask.png"), Sample("b", "1.png"), Sample("c", "2.png", "2_mask.png")]


def files(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir())


def test_what_is_cached_is_what_is_decoded(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    plain = FileSource(samples, root, SPEC)
    for _ in range(2):  # first written, then found
        cached = open_source(samples, root, SPEC, tmp_path / "cache")
        assert isinstance(cached, CachedSource)
        assert len(cached) == 3
        for k in range(3):
            assert np.array_equal(cached.image(k), plain.image(k))
            assert cached.image(k).shape == (*SIZES[k], 3)
        for k in (0, 2):
            assert np.array_equal(cached.mask(k), plain.mask(k))
            assert set(np.unique(cached.mask(k))) <= {0, 1, 2, 255}
    assert files(tmp_path / "cache") == [".bin", ".json"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_part_of_an_image_is_that_part_of_the_whole(root: Path, samples: list[Sample], tmp_path: Path, cached: bool) -> None:
    source = open_source(samples, root, SPEC, tmp_path / "cache" if cached else None)
    for k in range(len(samples)):
        height, width = source.size(k)
        whole = source.image(k)
        assert whole.shape == (height, width, 3)
        assert np.array_equal(source.image(k, (width // 2, 0, width, 1 + height // 2)), whole[: 1 + height // 2, width // 2 :])


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    for k in range(100):  # more than are decoded ahead
        Image.fromarray(np.full((1 + k % 3, 2, 3), k, dtype=np.uint8)).save(tmp_path / f"{k}.png")
    source = open_source([Sample(str(k), f"{k}.png") for k in range(100)], tmp_path, SPEC, tmp_path / "cache")
    for k in range(100):
        assert source.image(k).tolist() == np.full((1 + k % 3, 2, 3), k).tolist()


def test_a_found_cache_decodes_nothing(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    open_source(samples, root, SPEC, tmp_path / "cache")
    expected = FileSource(samples, root, SPEC).image(0)
    state = os.stat(root / "0.png")
    (root / "0.png").write_bytes(b"x" * state.st_size)  # unreadable, of the same size and time
    os.utime(root / "0.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert np.array_equal(open_source(samples, root, SPEC, tmp_path / "cache").image(0), expected)


@pytest.mark.parametrize("name", ["2.png", "2_mask.png"])
def test_a_changed_file_is_decoded_anew(root: Path, samples: list[Sample], tmp_path: Path, name: str) -> None:
    before = open_source(samples, root, SPEC, tmp_path / "cache")
    shape = SIZES[2] if "mask" in name else (*SIZES[2], 3)
    Image.fromarray(np.full(shape, 7, dtype=np.uint8)).save(root / name)
    after = open_source(samples, root, SPEC, tmp_path / "cache")
    if "mask" in name:
        assert (after.mask(2) == 1).all()
        assert not np.array_equal(before.mask(2), after.mask(2))
    else:
        assert (after.image(2) == 7).all()
        assert not np.array_equal(before.image(2), after.image(2))


def test_a_file_changed_at_the_same_length_is_decoded_anew(tmp_path: Path) -> None:
    sample, values = Sample("a", "a.bmp"), []
    for value in (1, 2):
        Image.fromarray(np.full((2, 2, 3), value, dtype=np.uint8)).save(tmp_path / "a.bmp")
        os.utime(tmp_path / "a.bmp", ns=(0, value))  # two writes may fall within one tick of the clock
        values.append(int(open_source([sample], tmp_path, SPEC, tmp_path / "cache").image(0)[0, 0, 0]))
    assert values == [1, 2]


def test_other_classes_or_another_order_make_another_cache(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    first = open_source(samples, root, SPEC, tmp_path / "cache")
    merged = DatasetSpec(("sky", "rest"), default_palette(2), ids={0: 0, 7: 1, 9: 1, 255: 255})
    assert 2 not in open_source(samples, root, merged, tmp_path / "cache").mask(0)
    turned = open_source(samples[::-1], root, SPEC, tmp_path / "cache")
    assert np.array_equal(turned.image(0), first.image(2))
    assert np.array_equal(turned.mask(2), first.mask(0))


@pytest.mark.parametrize("damage", ["short", "empty", "no index", "torn index"])
def test_a_torn_cache_is_made_again(root: Path, samples: list[Sample], tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    open_source(samples, root, SPEC, cache)
    (binary,), (index,) = cache.glob("*.bin"), cache.glob("*.json")
    if damage == "short":
        binary.write_bytes(binary.read_bytes()[:-1])
    elif damage == "empty":
        binary.write_bytes(b"")
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text('{"sizes": [[5,')
    source, plain = open_source(samples, root, SPEC, cache), FileSource(samples, root, SPEC)
    assert isinstance(source, CachedSource)
    for k in range(3):
        assert np.array_equal(source.image(k), plain.image(k))
    assert np.array_equal(source.mask(2), plain.mask(2))


@pytest.mark.parametrize("name", ["0.png", "2.png"])
def test_a_broken_image_is_named_and_leaves_no_cache(root: Path, samples: list[Sample], tmp_path: Path, name: str) -> None:
    (root / name).write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"{name}: cannot be decoded as an image .*Replace or remove"):
        open_source(samples, root, SPEC, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or files(tmp_path / "cache") == []


def test_a_break_while_writing_leaves_no_cache(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    Image.fromarray(np.full(SIZES[2], 3, dtype=np.uint8)).save(root / "2_mask.png")  # a value no class claims
    with pytest.raises(DataError, match=r"2_mask\.png: value 3 belongs to no class"):
        open_source(samples, root, SPEC, tmp_path / "cache")
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize("cached", [True, False])
def test_a_missing_file_says_what_to_do_before_it_is_wanted(
    root: Path, samples: list[Sample], tmp_path: Path, cached: bool
) -> None:
    (root / "2_mask.png").unlink()
    with pytest.raises(DataError, match=r"2_mask\.png: no such file\. Run `cwbass split` again"):
        open_source(samples, root, SPEC, tmp_path / "cache" if cached else None)


@pytest.mark.parametrize("cached", [True, False])
def test_a_mask_of_another_size_names_both_sizes(root: Path, samples: list[Sample], tmp_path: Path, cached: bool) -> None:
    Image.fromarray(np.zeros((4, 8), dtype=np.uint8)).save(root / "0_mask.png")
    with pytest.raises(DataError, match=r"0_mask\.png: mask is 8x4 but its image 0\.png is 8x5 \(width x height\)"):
        open_source(samples, root, SPEC, tmp_path / "cache" if cached else None).mask(0)


def test_a_turned_photograph_fits_its_upright_mask(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(np.zeros((5, 8, 3), dtype=np.uint8)).save(root / "t.jpg", exif=exif)
    Image.fromarray(np.zeros((8, 5), dtype=np.uint8)).save(root / "t.png")
    source = FileSource([Sample("t", "t.jpg", "t.png")], root, SPEC)
    assert source.image(0).shape == (8, 5, 3)
    assert source.mask(0).shape == (8, 5)


@pytest.mark.parametrize("cached", [True, False])
def test_an_unlabelled_image_has_no_mask(root: Path, samples: list[Sample], tmp_path: Path, cached: bool) -> None:
    source = open_source(samples, root, SPEC, tmp_path / "cache" if cached else None)
    with pytest.raises(DataError, match="an unlabelled image has no mask"):
        source.mask(1)


def test_without_a_folder_or_samples_nothing_is_cached(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    assert isinstance(open_source(samples, root, SPEC, None), FileSource)
    assert len(open_source([], root, SPEC, tmp_path / "cache")) == 0
    assert not (tmp_path / "cache").exists()


def test_without_room_files_are_decoded_at_every_use(
    root: Path,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    needed = 5 * 8 * 4 + 1 * 3 + 12 * 3 * 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, (2 << 30) + needed - 1))
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_source(samples, root, SPEC, tmp_path / "cache"), FileSource)
    assert "no cache of decoded images" in caplog.text
    assert files(tmp_path / "cache") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, (2 << 30) + needed))
    assert isinstance(open_source(samples, root, SPEC, tmp_path / "cache"), CachedSource)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_the_disk_is_full_before_the_cache_is_whole_files_are_decoded_at_every_use(
    number: int,
    root: Path,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A quota, of which the free space says nothing."""

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cwbass.data.cache.os.fsync", full)
    source = open_source(samples, root, SPEC, tmp_path / "cache")
    assert isinstance(source, FileSource) and source.image(0).shape == (5, 8, 3)
    assert f"no cache of decoded images: {tmp_path / 'cache'}: {os.strerror(number)}" in caplog.text
    assert files(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made_names_the_key(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ParamsError, match=r"train\.cache: .*file: File exists\. Name a folder .*, or null, which decodes"):
        open_source(samples, root, SPEC, tmp_path / "file")


def age(folder: Path, days: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - days * 86400,) * 2)


def test_making_a_cache_deletes_those_that_nobody_has_opened_for_long(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old, used = open_source(samples[:1], root, SPEC, cache), open_source(samples[1:2], root, SPEC, cache)
    assert isinstance(old, CachedSource) and isinstance(used, CachedSource)
    before = old.image(0).copy()
    for name in ("notes.txt", "model.bin"):  # not ours
        (cache / name).write_text("mine")
    torn = cache / f"{'0' * 32}.{'1' * 32}.bin.tmp"  # of a process that was killed
    torn.write_bytes(b"x")
    age(cache, UNUSED_DAYS + 1)
    open_source(samples[1:2], root, SPEC, cache)  # found, and so used
    assert old.path.exists() and torn.exists()  # finding one deletes none
    new = open_source(samples[2:], root, SPEC, cache)
    assert isinstance(new, CachedSource)
    kept = {path.name for path in cache.iterdir()}
    assert kept == {"notes.txt", "model.bin"} | {path.stem + end for path in (used.path, new.path) for end in (".bin", ".json")}
    assert np.array_equal(old.image(0), before)  # whoever has it open reads on


def test_a_cache_of_some_days_is_kept(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_source(samples[:1], root, SPEC, cache)
    age(cache, UNUSED_DAYS - 1)
    open_source(samples[1:], root, SPEC, cache)
    assert len(files(cache)) == 4


def test_a_worker_gets_the_place_of_the_cache_and_not_its_bytes(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    source = open_source([Sample("a", "a.png")], tmp_path, SPEC, tmp_path / "cache")
    image = source.image(0)  # maps the file
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    assert np.array_equal(pickle.loads(packed).image(0), image)


def test_cached_images_cannot_be_written_to(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    image = open_source(samples, root, SPEC, tmp_path / "cache").image(0)
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0
