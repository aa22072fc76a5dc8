from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from threads import in_threads
from torch import Tensor, nn

from cwbass.config import EvalConfig
from cwbass.data.base import DatasetSpec, Sample, default_palette
from cwbass.errors import DataError
from cwbass.evaluation.evaluate import evaluate
from cwbass.evaluation.inference import Predictor
from cwbass.evaluation.metrics import EvalResult
from cwbass.evaluation.selection import ImageConfusions
from cwbass.world import World

SPEC = DatasetSpec(("dark", "light"), default_palette(2), ids={0: 0, 1: 1, 255: 255})
PREDICTOR = Predictor(EvalConfig(), torch.device("cpu"), autocast_dtype=None)


class Threshold(nn.Module):
    """Class 1 where the image is light; remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.calls: list[tuple[bool, bool, tuple[int, ...]]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), tuple(image.stride())))
        light = image.float().mean(1) - 127.5
        return torch.stack((-light, light), dim=1)


def write(root: Path, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Sample:
    Image.fromarray(image).save(root / f"{name}.png")
    Image.fromarray(mask).save(root / f"{name}_mask.png")
    return Sample(name, f"{name}.png", f"{name}_mask.png")


def write_many(root: Path, count: int) -> list[Sample]:
    """Images of different sizes whose masks are right but for one pixel each."""
    samples = []
    for index in range(count):
        mask = np.zeros((10 + index, 12), dtype=np.uint8)
        mask[:, 6:] = 1
        image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        mask[0, 0] = 1
        mask[-1, -1] = 255
        samples.append(write(root, f"image{index}", image, mask))
    return samples


def run(
    samples: list[Sample], root: Path, net: nn.Module | None = None, *, predictor: Predictor = PREDICTOR, **others: object
) -> EvalResult:
    return evaluate(net or Threshold(), samples, root=root, spec=SPEC, predictor=predictor, **others)  # type: ignore[arg-type]


def test_seven_images_count_seven_and_every_pixel_once(tmp_path: Path):
    result = run(write_many(tmp_path, 7), tmp_path)
    heights = [10 + index for index in range(7)]
    assert result.images == 7
    # Class 1 has one missed pixel an image, and one ignored.
    assert result.confusion == ((6 * sum(heights) - 7, 0), (7, 6 * sum(heights) - 7))
    assert result.iou[0] == pytest.approx((6 * 91 - 7) / (6 * 91))


def test_callback_gets_every_image_in_order_with_its_own_probabilities(tmp_path: Path):
    samples, seen = write_many(tmp_path, 7), []

    def on_image(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8], probs: Tensor) -> None:
        seen.append(sample.id)
        assert np.array_equal(probs.argmax(0).numpy(), image[..., 0] > 127)
        assert mask[-1, -1] == 255

    run(samples, tmp_path, on_image=on_image)
    assert seen == [sample.id for sample in samples]


def test_files_are_read_ahead_by_other_threads_but_only_a_few(tmp_path: Path):
    lock, started, threads = threading.Lock(), 0, set()
    samples = [Sample(str(index), "", "") for index in range(40)]

    def read(sample: Sample, root: Path, spec: DatasetSpec) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        nonlocal started
        with lock:
            started += 1
            threads.add(threading.current_thread())
        return np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)

    ahead = []
    run(samples, tmp_path, read=read, on_image=lambda sample, *_: ahead.append(started - int(sample.id)))
    assert started == 40
    assert threading.main_thread() not in threads
    assert max(ahead) <= 6


def test_network_runs_in_eval_mode_without_gradients_on_channels_last_and_is_left_as_found(tmp_path: Path):
    net = Threshold().train()
    net.frozen.eval()
    run(write_many(tmp_path, 2), tmp_path, net)
    assert [(training, grad) for training, grad, _ in net.calls] == [(False, False)] * 2
    assert all(stride[1] == 1 for _, _, stride in net.calls)
    assert (net.training, net.scale.training, net.frozen.training) == (True, True, False)


def test_modes_are_restored_after_an_error(tmp_path: Path):
    net = Threshold().train()
    with pytest.raises(DataError, match=r"gone\.png"):
        run([*write_many(tmp_path, 1), Sample("gone", "gone.png", "gone_mask.png")], tmp_path, net)
    assert net.training


def test_lower_precision_is_used_where_asked_for(tmp_path: Path):
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.dtypes: list[torch.dtype] = []

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.conv(image.float())
            self.dtypes.append(logits.dtype)
            return logits

    net, samples, seen = Conv(), write_many(tmp_path, 1), []
    for dtype in (None, torch.bfloat16):
        predictor = replace(PREDICTOR, autocast_dtype=dtype)
        run(samples, tmp_path, net, predictor=predictor, on_image=lambda *given: seen.append(given[-1].dtype))
    assert net.dtypes == [torch.float32, torch.bfloat16]
    assert seen == [torch.float32] * 2


def test_mask_of_another_size_names_both(tmp_path: Path):
    sample = write(tmp_path, "photo", np.zeros((4, 6, 3), dtype=np.uint8), np.zeros((6, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"photo_mask\.png: mask is 4x6 but its image photo\.png is 6x4 \(width x height\)"):
        run([sample], tmp_path)


def test_sample_without_a_mask_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="photo: has no mask"):
        run([Sample("photo", "photo.png")], tmp_path)


def test_an_empty_list_is_an_error_and_not_a_score(tmp_path: Path):
    with pytest.raises(DataError, match="no images to score"):
        run([], tmp_path)


@pytest.mark.parametrize("window", [16, 64])
def test_sliding_scores_equal_whole_scores(tmp_path: Path, window: int):
    samples = write_many(tmp_path, 7)
    whole = run(samples, tmp_path)
    config = EvalConfig(protocol="slide", window=window, stride=8)
    slide = run(samples, tmp_path, predictor=replace(PREDICTOR, config=config))
    assert slide.confusion == whole.confusion
    assert slide.boundary_f1 == whole.boundary_f1


@pytest.mark.parametrize("processes", [2, 3, 9])  # seven images: not a multiple of any, and fewer than nine
def test_processes_count_every_image_exactly_once(tmp_path: Path, processes: int) -> None:
    samples = write_many(tmp_path, 7)
    alone = ImageConfusions(255)
    expected = run(samples, tmp_path, on_image=lambda sample, image, mask, probs: alone.add(probs, mask))

    def part(world: World) -> tuple[EvalResult, list[str], ImageConfusions]:
        names: list[str] = []
        confusions = ImageConfusions(255)

        def count(sample: Sample, image: object, mask: NDArray[np.uint8], probs: Tensor) -> None:
            names.append(sample.id)
            confusions.add(probs, mask)

        result = run(samples, tmp_path, on_image=count, world=world)
        confusions.add_up(world)
        return result, names, confusions

    found = in_threads(processes, part)
    assert expected.images == 7
    assert sorted(name for _, names, _ in found for name in names) == [sample.id for sample in samples]
    for result, _, confusions in found:
        assert result.to_dict(SPEC.class_names) == expected.to_dict(SPEC.class_names)
        assert torch.equal(result.reliability.total, expected.reliability.total)
        assert all(np.array_equal(a, b) for a, b in zip(confusions.matrices, alone.matrices, strict=True))
        assert confusions.standard_error() == alone.standard_error()
