from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwbass.data.base import DatasetSpec, Sample
from cwbass.errors import DataError
from cwbass.evaluation.probes import (
    LEVELS,
    MAX_FRAMES,
    ProbeBook,
    choose_probes,
    draw_frame,
    draw_probe,
    frame_epochs,
)

SPEC = DatasetSpec(("sky", "road", "car"), ((10, 20, 30), (40, 50, 60), (70, 80, 90)))


def samples(kind: str, count: int) -> list[Sample]:
    return [Sample(f"{kind}{index}", f"{index}.jpg") for index in range(count)]


def picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_half_of_the_probes_are_of_the_slice_and_all_are_evenly_spread() -> None:
    found = choose_probes(samples("u", 10), samples("s", 6), 5)
    assert [(role, sample.id) for role, sample in found] == [
        ("unlabelled", "u0"), ("unlabelled", "u3"), ("unlabelled", "u6"), ("selection", "s0"), ("selection", "s3"),
    ]  # fmt: skip
    assert [sample.id for _, sample in choose_probes(samples("u", 3), [], 5)] == ["u0", "u1", "u2"]
    assert choose_probes(samples("u", 3), samples("s", 3), 0) == []


@pytest.mark.parametrize(("epochs", "count"), [(1, 1), (MAX_FRAMES, MAX_FRAMES), (MAX_FRAMES + 1, MAX_FRAMES), (997, MAX_FRAMES)])
def test_a_long_stage_gets_a_bounded_number_of_frames_from_its_first_epoch_to_its_last(epochs: int, count: int) -> None:
    found = frame_epochs(epochs)
    assert len(found) == count
    assert (min(found), max(found)) == (0, epochs - 1)


def test_the_pictures_of_a_frame_hold_the_numbers_themselves() -> None:
    label = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    confidence = np.array([[1.0, 0.5], [0.0, 0.9]], dtype=np.float32)
    kept = np.array([[True, False], [False, True]])
    near = np.array([[False, False], [True, True]])
    truth = np.array([[0, 1], [2, 0]], dtype=np.uint8)
    frame = draw_frame(label, confidence, kept, near, truth, SPEC)
    values = {name: np.asarray(picture(content)).tolist() for name, content in frame.pictures.items()}
    assert values == {
        "label": [[0, 1], [2, 2]],
        "kept": [[0, 3], [3, 2]],  # 3, the number of classes: no label
        "confidence": [[63, 32], [0, 57]],
        "zones": [[0, 1], [3, 2]],
    }
    assert LEVELS == 64
    assert frame.kept == 0.5
    assert frame.right == 0.5  # sky is, the kept car is sky
    drawn = picture(frame.pictures["kept"]).convert("RGBA")
    assert [drawn.getpixel(at) for at in ((0, 0), (1, 0))] == [(10, 20, 30, 255), (128, 128, 128, 0)]
    assert draw_frame(label, confidence, kept, near, np.full_like(truth, 255), SPEC).right is None
    assert draw_frame(label, confidence, np.zeros_like(kept), near, truth, SPEC).right is None


def test_no_picture_is_larger_than_its_bound_even_of_noise() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (600, 1000, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (600, 1000), dtype=np.uint8)
    noise = rng.random((600, 1000), dtype=np.float32)
    probe = draw_probe("selection", "a", image, label, SPEC)
    frame = draw_frame(label, noise, noise > 0.5, noise > 0.7, label, SPEC)
    assert probe.truth is not None
    pictures = [probe.image, probe.truth, *frame.pictures.values()]
    assert {picture(content).size for content in pictures} == {(256, 154)}
    assert sum(map(len, frame.pictures.values())) < 80_000  # 39,424 pixels, of at most 2 + 2 + 6 + 2 bits and what PNG adds


@pytest.fixture
def book() -> ProbeBook:
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    label = np.zeros((4, 5), dtype=np.uint8)
    frame = draw_frame(label, label.astype(np.float32), label == 0, label == 1, label, SPEC)
    probes = [draw_probe("unlabelled", "u/0", image, None, SPEC), draw_probe("selection", "s<1>", image, label, SPEC)]
    return ProbeBook(probes, {40: [replace(frame, right=None), frame], 80: [frame, frame]})


def test_a_book_reads_back_and_equal_books_are_equal_files(book: ProbeBook, tmp_path: Path) -> None:
    path = tmp_path / "probes.zip"
    path.write_bytes(book.serialize())
    again = ProbeBook.read(path)
    assert again == book
    assert again.serialize() == path.read_bytes()
    with zipfile.ZipFile(path) as file:
        assert {"index.json", "0/image.jpg", "1/truth.png", "1/00000040-zones.png"} <= set(file.namelist())


@pytest.mark.parametrize("damage", ["short", "schema", "missing"])
def test_a_damaged_book_is_an_error_that_names_the_file(book: ProbeBook, tmp_path: Path, damage: str) -> None:
    content = book.serialize()
    path = tmp_path / "probes.zip"
    if damage == "short":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "schema":
        path.write_bytes(content.replace(b'"schema": 1', b'"schema": 7'))
    with pytest.raises(DataError, match=r"probes\.zip holds no probe images"):
        ProbeBook.read(path)


def test_an_empty_book_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "probes.zip").write_bytes(ProbeBook().serialize())
    assert ProbeBook.read(tmp_path / "probes.zip") == ProbeBook()
