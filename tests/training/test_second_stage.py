from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cwbass.config import AugmentConfig, EvalConfig
from cwbass.data.base import Box, DatasetSpec, Sample, default_palette, read_image
from cwbass.data.cache import FileSource
from cwbass.data.offline import OfflineStream, PseudoLabels, write_pseudo_label
from cwbass.data.streams import UnlabeledStream, collate, index_at, make_loader
from cwbass.errors import DataError
from cwbass.evaluation.inference import Predictor
from cwbass.training.second_stage import agreement, measure_reliability, rank_by_reliability, reliability, write_pseudo_labels

CLASSES = 4
SPEC = DatasetSpec(tuple("abcd"), default_palette(CLASSES), ids={k: k for k in range(CLASSES)})
WIDE = DatasetSpec(tuple(str(k) for k in range(64)), default_palette(64), ids={k: k for k in range(64)})
AUGMENT = AugmentConfig(crop_size=16, scale=(0.5, 2.0))
SIZES = [(20, 30), (24, 24), (40, 17), (9, 50), (33, 21)]
PREDICTOR = Predictor(EvalConfig(), torch.device("cpu"), autocast_dtype=None)


def label_map(*rows: str) -> Tensor:
    return torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.uint8)


class Palette(nn.Module):
    """The class of a pixel is what ``shift`` makes of its red, with logits 0 and ln 27."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, image: Tensor) -> Tensor:
        label = (image[:, 0].long() + self.shift) % CLASSES
        return nn.functional.one_hot(label, CLASSES).permute(0, 3, 1, 2) * float(np.log(27))  # confidence 27 / 30


class Corner(nn.Module):
    """Class 1 in the left half, 0 in the right: not what the mirror image is told."""

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.zeros(1, CLASSES, *image.shape[2:])
        logits[:, 1, :, : image.shape[3] // 2] = 100.0
        logits[:, 0, :, image.shape[3] // 2 :] = 100.0
        return logits


class Arrays:
    """Images of noise; red and green are the row and the column of a pixel. Their masks are traps."""

    def __len__(self) -> int:
        return len(SIZES)

    def size(self, index: int) -> tuple[int, int]:
        return SIZES[index]

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        height, width = SIZES[index]
        image = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[..., 0], image[..., 1] = np.mgrid[:height, :width]
        left, top, right, bottom = box or (0, 0, width, height)
        return image[top:bottom, left:right]

    def mask(self, index: int) -> NDArray[np.uint8]:
        raise AssertionError("the mask of an unlabelled image was asked for")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (["0011"], ["0011"], 1.0),
        (["0011"], ["1100"], 0.0),
        (["0011"], ["0111"], (1 / 2 + 2 / 3) / 2),
        (["0003"], ["0000"], (3 / 4 + 0) / 2),  # named by one of them alone: counts as 0
        (["2222"], ["2222"], 1.0),  # classes that neither names are left out
        (["0123", "0123"], ["0123", "3210"], 1 / 3),  # each class: 1 of 3
    ],
)
def test_agreement_is_the_miou_of_classes_that_occur(one: list[str], other: list[str], expected: float) -> None:
    assert agreement(label_map(*one), label_map(*other), CLASSES) == pytest.approx(expected)
    assert agreement(label_map(*other), label_map(*one), CLASSES) == pytest.approx(expected)


def test_reliability_is_the_mean_agreement_with_the_last_prediction() -> None:
    last = label_map("0111")
    assert reliability([label_map("0011"), label_map("0111")], last, CLASSES) == pytest.approx((7 / 12 + 1) / 2)
    assert reliability([label_map("1000"), label_map("0011")], last, CLASSES) == pytest.approx((0 + 7 / 12) / 2)


def test_reliability_is_measured_on_the_networks_predictions() -> None:
    nets = Palette(shift=1), Palette(), Palette()
    found = measure_reliability(nets[:2], nets[2], Arrays(), num_classes=CLASSES, predictor=PREDICTOR)
    assert found == pytest.approx([0.5] * len(SIZES))  # one snapshot names no pixel alike, the other all
    for index, net in enumerate(nets):
        assert not list(net.parameters()), index


def test_the_most_reliable_come_first_and_equals_stay_in_order() -> None:
    assert rank_by_reliability([0.2, 0.9, 0.5, 0.9, 0.1]) == [1, 3, 2, 0, 4]
    assert rank_by_reliability([1.0, 1.0, 1.0]) == [0, 1, 2]


def test_labels_and_confidences_are_written_for_the_chosen_images_alone(tmp_path: Path) -> None:
    mean = write_pseudo_labels(Palette(), Arrays(), [3, 1], ["deep/d", "b"], tmp_path, spec=SPEC, predictor=PREDICTOR)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["confidence/b.png", "confidence/deep/d.png", "label/b.png", "label/deep/d.png"]
    with Image.open(tmp_path / "label" / "b.png") as file:
        assert (file.mode, file.size) == ("P", (24, 24))
        assert file.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
        assert np.array_equal(np.array(file), np.mgrid[:24, :24][0] % CLASSES)
    with Image.open(tmp_path / "confidence" / "b.png") as file:
        assert file.mode == "L"
        assert (np.array(file) == 230).all()  # 0.9 * 255 = 229.5
    assert mean == pytest.approx(0.9)


def test_mirrored_predictions_are_turned_back_before_they_are_averaged(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"spec": SPEC, "predictor": replace(PREDICTOR, config=EvalConfig(flip=True))}
    assert write_pseudo_labels(Palette(), Arrays(), [1], ["b"], tmp_path, **settings) == pytest.approx(0.9)
    # Left 1 and right 0, seen in a mirror, is left 0 and right 1: each half then has both at one half.
    assert write_pseudo_labels(Corner(), Arrays(), [1], ["b"], tmp_path, **settings) == pytest.approx(0.5)


def test_masks_of_unlabelled_images_are_never_opened(tmp_path: Path) -> None:
    samples = []
    for index in range(len(SIZES)):
        Image.fromarray(Arrays().image(index)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}_mask.png").write_bytes(b"poison")
        samples.append(Sample(str(index), f"{index}.png", f"{index}_mask.png"))
    source = FileSource(samples, tmp_path, SPEC)
    with pytest.raises(DataError, match="cannot be decoded"):
        source.mask(0)  # the trap is set
    ids = [sample.id for sample in samples]
    measure_reliability([Palette(1)], Palette(), source, num_classes=CLASSES, predictor=PREDICTOR)
    write_pseudo_labels(Palette(), source, range(len(ids)), ids, tmp_path / "out", spec=SPEC, predictor=PREDICTOR)
    stream = OfflineStream(PseudoLabels(source, range(len(ids)), ids, tmp_path / "out"), AUGMENT, ignore_index=255, seed=0)
    assert len([stream[position] for position in range(10)]) == 10


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[OfflineStream]:
    """A stream over images 4, 0 and 2 whose label is the row and whose confidence is the column of a pixel."""
    source, chosen, ids = Arrays(), [4, 0, 2], ["e", "a", "c"]
    for index, name in zip(chosen, ids, strict=True):
        rows, columns = (grid.astype(np.uint8) for grid in np.mgrid[: SIZES[index][0], : SIZES[index][1]])
        write_pseudo_label(tmp_path, name, rows, columns, WIDE)
    yield OfflineStream(PseudoLabels(source, chosen, ids, tmp_path), AUGMENT, ignore_index=255, seed=3)


def test_label_and_confidence_lie_where_their_pixels_lie(stream: OfflineStream) -> None:
    mirrored = set()
    for position in range(30):
        item = stream[position]
        weak, valid, label, confidence = item.weak, item.valid, item.pseudo_label, item.confidence
        assert label is not None
        assert confidence is not None
        # Red and green are the row and column too: the image is resampled smoothly, the label by nearest pixel.
        inner = valid.clone()
        inner[-3:], inner[:, -3:], inner[:3], inner[:, :3] = False, False, False, False
        for channel, found in ((0, label), (1, confidence)):
            assert (weak[channel].int() - found.int())[inner].abs().max() <= 2
        assert (label[~valid] == 255).all()
        assert (confidence[~valid] == 0).all()
        across = confidence[0][valid[0]].int()
        mirrored.add(bool(across[0] > across[-1]))
    assert mirrored == {True, False}


def test_the_labels_of_an_image_are_its_own(stream: OfflineStream) -> None:
    rows = {0: 33, 1: 20, 2: 40}  # of the three images, by place in the stream's list
    stream.places = True
    for position in range(30):
        index = index_at(position, 3, seed=3, stream="unlabeled")
        item = stream[position]
        assert item.pseudo_label is not None
        assert int(item.pseudo_label[item.valid].max()) < rows[index]
        assert item.place is not None
        assert item.place[0] == stream.labels.chosen[index]  # a place numbers all images
    for index in range(3):
        assert np.array_equal(stream.labels.mask(index), stream.labels.image(index)[..., 0])
        assert np.array_equal(stream.labels.confidence(index), stream.labels.image(index)[..., 1])


def test_the_views_are_those_of_the_stream_without_labels(tmp_path: Path) -> None:
    ids = [str(index) for index in range(len(SIZES))]
    write_pseudo_labels(Palette(), Arrays(), range(len(ids)), ids, tmp_path, spec=SPEC, predictor=PREDICTOR)
    labels = PseudoLabels(Arrays(), range(len(ids)), ids, tmp_path)
    with_labels = OfflineStream(labels, AUGMENT, ignore_index=255, seed=1, strong_views=2)
    without = UnlabeledStream(Arrays(), AUGMENT, seed=1, strong_views=2)
    for position in range(12):
        one, other = with_labels[position], without[position]
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("weak", "strong", "valid", "strong2"))


def test_batches_carry_bytes(stream: OfflineStream) -> None:
    settings: dict[str, Any] = {"start": 0, "stop": 2, "batch_size": 4, "workers": 0, "pin_memory": False}
    one, other = make_loader(stream, collate, **settings)
    for batch in (one, other):
        assert batch.weak.is_contiguous(memory_format=torch.channels_last)
        for tensor in (batch.pseudo_label, batch.confidence):
            assert tensor is not None
            assert (tensor.dtype, tensor.shape) == (torch.uint8, (4, 16, 16))
    assert torch.equal(other.pseudo_label[1], stream[5].pseudo_label)  # type: ignore[index, arg-type]


def test_a_label_of_another_size_than_its_image_is_named(stream: OfflineStream, tmp_path: Path) -> None:
    write_pseudo_label(tmp_path, "e", np.zeros((5, 6), np.uint8), np.zeros((5, 6), np.uint8), SPEC)
    with pytest.raises(DataError, match=r"label/e\.png has shape \[5, 6\] and its image \[33, 21\].*run `cwbass train` again"):
        stream.labels.mask(0)


@pytest.fixture
def files(tmp_path: Path) -> PseudoLabels:
    """An image of 20 x 30 pixels on disk, with its label."""
    Image.fromarray(Arrays().image(0)).save(tmp_path / "a.png")
    write_pseudo_label(tmp_path, "a", np.zeros(SIZES[0], np.uint8), np.zeros(SIZES[0], np.uint8), SPEC)
    return PseudoLabels(FileSource([Sample("a", "a.png", None)], tmp_path, SPEC), [0], ["a"], tmp_path)


def test_an_image_is_decoded_once_for_a_crop(files: PseudoLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []

    def read(path: Path, box: Box | None = None) -> NDArray[np.uint8]:
        decoded.append(path)
        return read_image(path, box)

    monkeypatch.setattr("cwbass.data.cache.read_image", read)
    stream = OfflineStream(files, AUGMENT, ignore_index=255, seed=0)
    for position in range(3):
        assert stream[position].weak.shape == (3, 16, 16)
    assert len(decoded) == 3


def test_an_image_that_is_changed_after_it_was_labelled_is_named(files: PseudoLabels) -> None:
    assert files.size(0) == SIZES[0]
    Image.fromarray(Arrays().image(1)).save(files.folder / "a.png")
    with pytest.raises(DataError, match=r"the image of a has shape \[24, 24\] and had \[20, 30\].*run `cwbass train` again"):
        files.image(0, (0, 0, 2, 2))
