from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cwbass.data.base import read_raw_mask
from cwbass.evaluation import boundary, code_maps
from cwbass.evaluation.boundary import band_width, boundary_f1, confusion_and_bands, contour_counts, count_pairs
from cwbass.evaluation.code_maps import GAP, band, close_gaps, flat_contour, flatten, near_boundaries

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TOLERANCES = (1, 3, 5)


def codes(rows: list[str]) -> Tensor:
    """A code map from a picture: . is ignored, a digit is a class."""
    return torch.tensor([[0 if pixel == "." else int(pixel) + 1 for pixel in row] for row in rows], dtype=torch.uint8)


def band_counts(truth: Tensor, pred: Tensor, num_classes: int, width: int) -> Tensor:
    return confusion_and_bands(truth, pred, num_classes, width)[1]


def contour(code_maps: Tensor) -> Tensor:
    layout, flat = flatten(code_maps, 1)
    return torch.asarray(layout.inside(flat_contour(layout, flat)))


def picture(code_map: Tensor) -> list[str]:
    return ["".join("." if code == 0 else str(code - 1) for code in row) for row in code_map.tolist()]


def random_maps(seed: int, classes: int, shape: tuple[int, int] = (40, 53), ignored: float = 0.1) -> tuple[Tensor, Tensor]:
    """Two blobby code maps that agree in part, 0 at the same pixels."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=(classes, *shape)), (0, 3, 3)) for _ in range(2)]
    truth, pred = (field.argmax(0) + 1 for field in (fields[0], fields[0] + 0.5 * fields[1]))
    hidden = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    valid = hidden <= np.quantile(hidden, 1 - ignored)
    return torch.tensor(truth * valid, dtype=torch.uint8), torch.tensor(pred * valid, dtype=torch.uint8)


def plain_band(code_map: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Class by class, from the Chebyshev distance to the nearest pixel of another class."""
    result = np.zeros_like(code_map)
    for code in np.unique(code_map[code_map > 0]):
        other = (code_map != code) & (code_map != 0)
        if other.any():
            near = ndimage.distance_transform_cdt(~other, metric="chessboard") <= width
            result[near & (code_map == code)] = code
    return result


def plain_f1(truth: NDArray[np.uint8], pred: NDArray[np.uint8], code: int, tolerance: float) -> float:
    """F1 of one class from Euclidean distance transforms of contours, without ignored pixels."""

    def edge(code_map: NDArray[np.uint8]) -> NDArray[np.bool_]:
        mask = code_map == code
        return mask & ~ndimage.binary_erosion(mask, border_value=1)

    one, other = edge(truth), edge(pred)
    if not one.any() and not other.any():
        return float("nan")
    if not one.any() or not other.any():
        return 0.0
    recall = (ndimage.distance_transform_edt(~other)[one] <= tolerance).mean()
    precision = (ndimage.distance_transform_edt(~one)[other] <= tolerance).mean()
    return 2 * precision * recall / (precision + recall) if recall else 0.0


def test_band_width_is_two_percent_of_the_diagonal_and_at_least_one():
    assert band_width(300, 400) == 10  # diagonal 500
    assert band_width(1024, 2048) == 46  # 0.02 * 2289.7 = 45.8
    assert band_width(8, 8) == 1


def test_band_of_two_halves_is_as_wide_as_asked():
    halves = codes(["0000011111"] * 4)
    assert picture(band(halves, 1)) == ["....01...."] * 4
    assert picture(band(halves, 3)) == ["..000111.."] * 4


@pytest.mark.parametrize("hidden", [0, 2])  # pixels of the border that an annotator left out
def test_only_pixels_near_a_boundary_are_left(hidden: int):
    row = torch.tensor([0] * 10 + [1] * 10, dtype=torch.uint8)
    row[10 - hidden // 2 : 10 + hidden // 2] = 255
    left = near_boundaries(row.expand(4, 20), 3, 255)
    assert left[0].tolist() == [255] * 7 + row[7:13].tolist() + [255] * 7


def test_contour_is_the_inner_line_of_each_class():
    square = codes(["00000", "01110", "01110", "01110", "00000"])
    assert picture(contour(square)) == [".000.", "01110", "01.10", "01110", ".000."]


def test_frame_of_the_image_is_no_boundary():
    flat = codes(["2222"] * 4)
    assert picture(band(flat, 3)) == ["...."] * 4
    assert picture(contour(flat)) == ["...."] * 4


@pytest.mark.parametrize("strip", [1, 3, 2 * GAP + 2])
def test_border_of_an_ignored_region_is_no_boundary(strip: int):
    mask = codes(["0" * 6 + "." * strip + "0" * 6] * 9)
    assert band(mask, 3).max() == 0
    assert contour_counts(mask, mask, 1, TOLERANCES).sum() == 0


def test_gap_between_two_classes_is_closed_half_from_each_side():
    assert picture(close_gaps(codes(["00....11"] * 3))) == ["00001111"] * 3


def test_gap_wider_than_both_sides_can_grow_stays_open():
    wide = codes(["00" + "." * (2 * GAP + 1) + "11"] * 3)
    assert picture(close_gaps(wide)) == ["00" + "0" * GAP + "." + "1" * GAP + "11"] * 3
    assert contour_counts(wide, wide, 2, TOLERANCES).sum() == 0


def test_perfect_prediction_around_a_hidden_border_scores_one_and_a_distant_one_does_not():
    truth = codes(["0" * 12 + "...." + "1" * 12] * 10)
    assert boundary_f1(contour_counts(truth, truth, 2, TOLERANCES)).tolist() == [[1.0, 1.0]] * 3
    late = truth.clone()
    late[:, 16:20] = 1  # class 0 goes on 4 pixels beyond the gap: 6 from its middle
    assert boundary_f1(contour_counts(truth, late, 2, TOLERANCES)).tolist() == [[0.0, 0.0]] * 3


def test_band_counts_of_a_border_moved_by_one():
    truth, pred = codes(["0000011111"] * 4), codes(["0000111111"] * 4)
    # Width 1: column 4 is truth's band of class 0, columns 5 of class 1; the prediction's are 3 and 4.
    assert band_counts(truth, pred, 2, width=1).tolist() == [[0, 0], [8, 8]]
    # Width 2: class 0 has columns 3-4 and 2-3, class 1 has 5-6 and 4-5: one of three in common.
    assert band_counts(truth, pred, 2, width=2).tolist() == [[4, 4], [12, 12]]


@pytest.mark.parametrize(("shift", "expected"), [(0, [1, 1, 1]), (1, [1, 1, 1]), (2, [0, 1, 1]), (4, [0, 0, 1]), (6, [0, 0, 0])])
def test_f1_of_a_border_moved_sideways(shift: int, expected: list[float]):
    truth = codes(["0" * 12 + "1" * 12] * 10)
    pred = codes(["0" * (12 + shift) + "1" * (12 - shift)] * 10)
    assert boundary_f1(contour_counts(truth, pred, 2, TOLERANCES)).tolist() == [[e, e] for e in expected]


def test_tolerance_is_a_euclidean_disk():
    def dot(y: int, x: int) -> Tensor:
        mask = torch.ones(20, 20, dtype=torch.uint8)
        mask[y, x] = 2
        return mask

    ranks = {(dy, dx): contour_counts(dot(8, 8), dot(8 + dy, 8 + dx), 2, TOLERANCES)[0, :, 1].argmax() for dy, dx in
             [(0, 1), (1, 1), (0, 3), (2, 2), (3, 1), (3, 4), (4, 4)]}  # fmt: skip
    # (1, 1) is 1.41 away, (3, 1) 3.16, (3, 4) 5 and (4, 4) 5.66.
    assert {key: int(rank) for key, rank in ranks.items()} == {
        (0, 1): 0, (1, 1): 1, (0, 3): 1, (2, 2): 1, (3, 1): 2, (3, 4): 2, (4, 4): 3,
    }  # fmt: skip


def test_f1_of_hand_counted_contours():
    # Class 0: 6 of 8 true pixels within 1 px, 6 of 12 predicted ones: 2 * 0.75 * 0.5 / 1.25. Class 1 is only predicted.
    counts = torch.tensor([[[6, 0, 0], [2, 0, 0]], [[6, 0, 0], [6, 5, 0]]])
    f1 = boundary_f1(counts)
    assert f1[0, :2].tolist() == pytest.approx([0.6, 0.0])
    assert f1[0, 2].isnan()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), width=st.integers(1, 12), ignored=st.sampled_from([0.0, 0.1, 0.4]))
def test_band_counts_equal_a_distance_transform_per_class(seed: int, classes: int, width: int, ignored: float):
    truth, pred = random_maps(seed, classes, ignored=ignored)
    one, other = plain_band(truth.numpy(), width), plain_band(pred.numpy(), width)
    expected = [
        [int(((one == code) & (other == code)).sum()) for code in range(1, classes + 1)],
        [int(((one == code) | (other == code)).sum()) for code in range(1, classes + 1)],
    ]
    assert band_counts(truth, pred, classes, width).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6))
def test_f1_equals_a_distance_transform_per_class(seed: int, classes: int):
    truth, pred = random_maps(seed, classes, ignored=0.0)
    f1 = boundary_f1(contour_counts(truth, pred, classes, TOLERANCES))
    for row, tolerance in enumerate(TOLERANCES):
        expected = [plain_f1(truth.numpy(), pred.numpy(), code, tolerance) for code in range(1, classes + 1)]
        assert f1[row].tolist() == pytest.approx(expected, nan_ok=True)


def plain_rings(one: NDArray[np.uint8], other: NDArray[np.uint8], classes: int) -> list[list[int]]:
    """Pixels of ``one`` by the first tolerance within which ``other`` has their code, from a distance transform per class."""
    counts = np.zeros((len(TOLERANCES) + 1, classes), dtype=int)
    for code in range(1, classes + 1):
        away = ndimage.distance_transform_edt(other != code) if (other == code).any() else np.full(other.shape, np.inf)
        rank = np.searchsorted(TOLERANCES, away[one == code])
        counts[:, code - 1] = np.bincount(rank, minlength=len(TOLERANCES) + 1)
    return counts.tolist()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), ignored=st.sampled_from([0.0, 0.1, 0.4]))
def test_contour_counts_equal_a_distance_transform_per_class(seed: int, classes: int, ignored: float):
    truth, pred = random_maps(seed, classes, ignored=ignored)
    one, other = (contour(close_gaps(code_map)).numpy() for code_map in (truth, pred))
    expected = [plain_rings(one, other, classes), plain_rings(other, one, classes)]
    assert contour_counts(truth, pred, classes, TOLERANCES).tolist() == expected


@pytest.mark.parametrize("rows", [1, 11, 30, 119])
def test_contours_are_counted_by_strips_as_at_once(rows: int, monkeypatch: pytest.MonkeyPatch):
    truth, pred = random_maps(5, 4, shape=(120, 53), ignored=0.3)
    whole = contour_counts(truth, pred, 4, TOLERANCES)
    monkeypatch.setattr(boundary, "_STRIP", rows * 53)
    assert torch.equal(contour_counts(truth, pred, 4, TOLERANCES), whole)


def test_several_maps_at_once_are_as_one_at_a_time():
    maps = torch.stack(random_maps(3, 5, ignored=0.2))
    for each in (contour, close_gaps, lambda codes: band(codes, 4)):
        assert torch.equal(each(maps), torch.stack([each(code_map) for code_map in maps]))


@pytest.mark.parametrize("side", [2, 181, 182, 256])  # 181 ** 2 fits 16 bits, and 182 ** 2 does not
def test_pairs_are_counted(side: int):
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, side, (50, 60), generator=generator, dtype=torch.uint8) for _ in range(2))
    expected = np.zeros((side, side), dtype=int)
    np.add.at(expected, (one.numpy().ravel(), other.numpy().ravel()), 1)
    assert np.array_equal(count_pairs(one, other, side).numpy(), expected)


@pytest.mark.parametrize("classes", [3, 89, 90, 255])  # 4 * 90 ** 2 fits 16 bits, and 4 * 91 ** 2 does not
def test_classes_that_meet_are_counted_with_the_bands(classes: int):
    truth, pred = random_maps(2, 3, ignored=0.2)
    truth, pred = ((code_map + classes - 3) * code_map.clamp(max=1) for code_map in (truth, pred))  # the highest codes
    confusion, _ = confusion_and_bands(truth, pred, classes, 2)
    assert torch.equal(confusion, count_pairs(truth, pred, classes + 1)[1:, 1:])


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), classes=st.sampled_from([8, 9, 17, 40]))
def test_contours_of_more_classes_than_a_word_has_bits_are_counted(seed: int, classes: int):
    noise = torch.tensor(np.random.default_rng(seed).integers(1, classes + 1, (2, 30, 34), dtype=np.uint8))
    one, other = contour(noise).numpy()
    expected = [plain_rings(one, other, classes), plain_rings(other, one, classes)]
    assert contour_counts(*noise, classes, TOLERANCES).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_torch_counts_on_other_devices_what_numpy_counts_on_a_cpu(seed: int, monkeypatch: pytest.MonkeyPatch):
    truth, pred = random_maps(seed, 10, ignored=0.2)
    calls = (lambda: contour_counts(truth, pred, 10, TOLERANCES), lambda: band_counts(truth, pred, 10, 4), lambda: contour(pred))
    by_numpy = [call() for call in calls]
    monkeypatch.setattr(code_maps, "_library", lambda maps: torch)
    assert all(torch.equal(call(), other) for call, other in zip(calls, by_numpy, strict=True))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_truth_and_prediction_change_places_and_maps_turn_without_a_difference(seed: int):
    truth, pred = random_maps(seed, 4)
    contours = contour_counts(truth, pred, 4, TOLERANCES)
    assert torch.equal(contours.flip(0), contour_counts(pred, truth, 4, TOLERANCES))
    assert torch.equal(band_counts(truth, pred, 4, 3), band_counts(pred.T, truth.T, 4, 3))
    assert torch.equal(contours, contour_counts(truth.T.contiguous(), pred.T.contiguous(), 4, TOLERANCES))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 2)])
def test_images_smaller_than_the_reach_are_counted(shape: tuple[int, int]):
    truth = torch.ones(shape, dtype=torch.uint8)
    truth[-1, -1] = 2
    pixels = [shape[0] * shape[1] - 1, 1]
    intersection, union = band_counts(truth, truth, 2, width=20).tolist()
    assert intersection == union == (pixels if pixels[0] else [0, 0])  # one pixel alone has no boundary


def test_255_classes_fit():
    truth = torch.tensor([[254, 255]], dtype=torch.uint8)  # classes 253 and 254
    assert band_counts(truth, truth, 255, 1)[0, -3:].tolist() == [0, 1, 1]
    assert contour_counts(truth, truth, 255, TOLERANCES)[0, 0, -3:].tolist() == [0, 1, 1]


def test_voc_masks_have_contours_though_void_hides_them():
    path = SHARED / "fixtures" / "voc" / "SegmentationClass" / "vocval_000001.png"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    mask = torch.from_numpy(read_raw_mask(path)) + 1
    assert int((contour(mask) > 0).sum()) == 0
    counts = contour_counts(mask, mask, 21, TOLERANCES)
    assert counts[:, 0].sum() > 5000
    assert counts[:, 1:].sum() == 0
