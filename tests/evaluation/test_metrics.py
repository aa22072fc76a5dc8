from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cwbass.errors import DataError, ParamsError, WeightsError
from cwbass.evaluation.metrics import EvalResult, Scores

IGNORE = 255


def sure(labels: Tensor, num_classes: int) -> Tensor:
    """Probabilities 1 for the given classes. [H, W] -> [C, H, W]."""
    return F.one_hot(labels.long(), num_classes).permute(2, 0, 1).float()


def score(pairs: list[tuple[Tensor, Tensor]], num_classes: int, ignore_index: int = IGNORE) -> EvalResult:
    """Result of (prediction, mask) label maps."""
    scores = Scores(num_classes, ignore_index)
    for pred, mask in pairs:
        scores.update(sure(pred, num_classes), mask)
    return scores.result()


def random_image(seed: int, num_classes: int, shape: tuple[int, int] = (13, 17)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(num_classes, *shape, generator=generator)).softmax(0)
    mask = torch.randint(0, num_classes, shape, generator=generator, dtype=torch.uint8)
    mask[torch.rand(shape, generator=generator) < 0.2] = IGNORE
    return probs, mask


def test_hand_worked_numbers():
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, IGNORE, IGNORE]], dtype=torch.uint8)
    pred = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]])
    result = score([(pred, mask)], num_classes=2)
    assert result.confusion == ((2, 1), (1, 2))
    assert result.iou == (0.5, 0.5)  # 2 / (2 + 1 + 1)
    assert result.miou == 0.5
    assert result.pixel_accuracy == pytest.approx(4 / 6)


def test_miou_is_that_of_the_dataset_and_not_a_mean_over_images():
    # 91 pixels of class 1 over two images; the one in the second image is missed.
    first, second = torch.zeros(10, 10, dtype=torch.uint8), torch.zeros(10, 10, dtype=torch.uint8)
    first[:9] = 1
    second[0, 0] = 1
    result = score([(first, first), (torch.zeros(10, 10), second)], num_classes=2)
    assert result.iou[1] == pytest.approx(90 / 91)  # 0.989, where a mean over images says 0.5
    assert result.iou[0] == pytest.approx(109 / 110)


def test_absent_class_is_left_out_and_a_falsely_predicted_one_counts_as_zero():
    mask = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    pred = torch.tensor([[0, 0, 1, 2]])
    result = score([(pred, mask)], num_classes=4)
    assert result.iou[:3] == (1.0, 0.5, 0.0)
    assert math.isnan(result.iou[3])
    assert result.miou == 0.5  # of three classes
    values = result.to_dict(["sky", "road", "car", "boat"])
    assert values["absent_classes"] == ["boat"]
    assert values["per_class"]["boat"]["iou"] is None
    assert values["per_class"]["car"] == {"iou": 0.0, "boundary_iou": 0.0, "accuracy": None, "pixels": 0}
    assert values["per_class"]["road"]["accuracy"] == 0.5


def test_no_pixel_at_all_is_undefined_and_not_zero():
    result = score([(torch.zeros(3, 3), torch.full((3, 3), IGNORE, dtype=torch.uint8))], num_classes=2)
    values = result.to_dict(["a", "b"])
    assert values["images"] == 1
    for name in ("miou", "pixel_accuracy", "ece", "boundary_iou", "boundary_f1_1px"):
        assert values[name] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), num_classes=st.sampled_from([2, 3, 19, 21, 150]))
def test_equals_scikit_learn(seed: int, num_classes: int):
    images = [random_image(seed + offset, num_classes) for offset in range(3)]
    scores = Scores(num_classes, IGNORE, boundary=False)
    for probs, mask in images:
        scores.update(probs, mask)
    truth = np.concatenate([mask[mask != IGNORE].numpy() for _, mask in images])
    pred = np.concatenate([probs.argmax(0)[mask != IGNORE].numpy() for probs, mask in images])
    result = scores.result()
    assert np.array_equal(result.confusion, confusion_matrix(truth, pred, labels=range(num_classes)))
    present = np.union1d(truth, pred)
    assert result.miou == pytest.approx(jaccard_score(truth, pred, labels=present, average="macro"))
    assert [index for index, iou in enumerate(result.iou) if not math.isnan(iou)] == present.tolist()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), num_classes=st.sampled_from([2, 3, 21]))
def test_ece_and_calibration_equal_a_plain_numpy_loop(seed: int, num_classes: int):
    probs, mask = random_image(seed, num_classes)
    scores = Scores(num_classes, IGNORE, boundary=False)
    scores.update(probs, mask)
    result = scores.result()
    valid = mask.numpy() != IGNORE
    confidence = probs.amax(0).numpy()[valid].astype(np.float64)
    right = (probs.argmax(0).numpy() == mask.numpy())[valid]
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = 0.0
    for index in range(15):
        inside = bins == index
        assert result.calibration.count[index] == inside.sum()
        if inside.any():
            assert result.calibration.confidence[index] == pytest.approx(confidence[inside].mean())
            assert result.calibration.accuracy[index] == pytest.approx(right[inside].mean())
            ece += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        else:
            assert math.isnan(result.calibration.accuracy[index])
    assert result.ece == pytest.approx(ece)


def test_ece_by_hand():
    # Four pixels predicted as class 0 with 0.9, of which two are right: |0.9 - 0.5|.
    probs = torch.tensor([0.9, 0.1]).view(2, 1, 1).expand(2, 1, 4)
    scores = Scores(2, IGNORE)
    scores.update(probs, torch.tensor([[0, 1, 0, 1]], dtype=torch.uint8))
    assert scores.result().ece == pytest.approx(0.4)


def test_reliability_counts_by_predicted_class_and_confidence():
    confidence = torch.tensor([[0.655, 0.655, 1.0, 0.501]])
    probs = torch.stack((confidence, 1 - confidence))
    probs[:, 0, 3] = probs[:, 0, 3].flip(0)  # the last pixel is predicted as class 1
    scores = Scores(2, IGNORE)
    scores.update(probs, torch.tensor([[0, 1, 0, IGNORE]], dtype=torch.uint8))
    scores.update(probs, torch.tensor([[0, IGNORE, 1, 1]], dtype=torch.uint8))
    reliability = scores.result().reliability
    assert reliability.total.shape == reliability.correct.shape == (2, 100)
    assert {(c, n): reliability.total[c, n].item() for c, n in reliability.total.nonzero().tolist()} == {
        (0, 65): 3, (0, 99): 2, (1, 50): 1,
    }  # fmt: skip
    assert {(c, n): reliability.correct[c, n].item() for c, n in reliability.correct.nonzero().tolist()} == {
        (0, 65): 2, (0, 99): 1, (1, 50): 1,
    }  # fmt: skip


def test_boundary_scores_add_up_over_images_before_they_are_divided():
    def halves(at: int) -> Tensor:
        mask = torch.zeros(20, 30, dtype=torch.uint8)
        mask[:, at:] = 1
        return mask

    # Diagonal 36, band 1 px: bands agree in the first image (20 px) and are disjoint in the second (40 px a class).
    result = score([(halves(15), halves(15)), (halves(17), halves(15))], num_classes=2)
    assert result.boundary_iou_per_class == pytest.approx([20 / 60] * 2)
    assert result.boundary_iou == pytest.approx(1 / 3)
    # Within 1 px half of the contour pixels match, within 3 all do.
    assert result.boundary_f1 == {1: pytest.approx(0.5), 3: pytest.approx(1.0), 5: pytest.approx(1.0)}


def test_boundary_scores_are_none_where_not_asked_for():
    scores = Scores(2, IGNORE, boundary=False)
    mask = torch.tensor([[0, 1]], dtype=torch.uint8)
    scores.update(sure(mask, 2), mask)
    values = scores.result().to_dict(["a", "b"])
    assert values["miou"] == 1.0
    assert values["boundary_iou"] is values["boundary_f1_3px"] is values["per_class"]["a"]["boundary_iou"] is None


@pytest.mark.parametrize("ignore_index", [255, 2, 0, 254])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_prediction_under_ignored_pixels_changes_nothing(ignore_index: int, dtype: torch.dtype):
    probs, mask = random_image(3, 3)
    mask = mask.to(dtype)
    mask[mask == 255] = ignore_index
    other = torch.where(mask == ignore_index, probs.roll(1, 0), probs)
    assert (other != probs).any()
    results = []
    for values in (probs, other):
        scores = Scores(3, ignore_index)
        scores.update(values, mask)
        results.append(scores.result().to_dict(["a", "b", "c"]))
    assert results[0] == results[1]
    assert sum(map(sum, results[0]["confusion"]["matrix"])) == int((mask != ignore_index).sum())


def test_state_does_not_grow_with_images():
    def tensors(scores: Scores) -> list[tuple[int, ...]]:
        named = [scores.confusion.confmat, *(value for value in vars(scores).values() if isinstance(value, Tensor))]
        return [tuple(tensor.shape) for tensor in named]

    scores = Scores(3, IGNORE)
    before = tensors(scores)
    for seed in range(7):
        scores.update(*random_image(seed, 3, shape=(9 + seed, 11)))
    assert tensors(scores) == before
    assert scores.result().images == 7
    assert len(before) == 5


def test_order_of_images_does_not_matter():
    images = [random_image(seed, 5) for seed in range(4)]
    results = []
    for order in (images, images[::-1]):
        scores = Scores(5, IGNORE)
        for probs, mask in order:
            scores.update(probs, mask)
        results.append(scores.result())
    assert results[0].confusion == results[1].confusion
    assert results[0].boundary_f1 == results[1].boundary_f1
    assert results[0].ece == pytest.approx(results[1].ece)


def test_deterministic_mode_gives_the_same_counts_and_makes_no_table_of_pixels(monkeypatch: pytest.MonkeyPatch):
    probs, mask = random_image(0, 21, shape=(300, 400))
    expected = Scores(21, IGNORE)
    expected.update(probs, mask)

    def too_large(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("torchmetrics counts deterministically through a [pixels, C * C] table")

    monkeypatch.setattr(sys.modules[multiclass_confusion_matrix.__module__], "_bincount", too_large)
    torch.use_deterministic_algorithms(True)
    try:
        scores = Scores(21, IGNORE)
        scores.update(probs, mask)
    finally:
        torch.use_deterministic_algorithms(False)
    assert scores.result().confusion == expected.result().confusion


def test_json_has_every_number_and_survives_a_round_trip():
    scores = Scores(3, IGNORE)
    for seed in range(2):
        scores.update(*random_image(seed, 3))
    values = scores.result().to_dict(["a", "b", "c"])
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values) == [
        "images", "miou", "pixel_accuracy", "boundary_iou", "boundary_f1_1px", "boundary_f1_3px", "boundary_f1_5px", "ece",
        "per_class", "absent_classes", "confusion", "calibration",
    ]  # fmt: skip
    assert values["confusion"]["class_names"] == ["a", "b", "c"]
    assert sum(values["calibration"]["count"]) == sum(map(sum, values["confusion"]["matrix"]))


@pytest.mark.parametrize(("value", "dtype"), [(3, torch.uint8), (254, torch.uint8), (70_000, torch.int64), (-7, torch.int64)])
def test_mask_value_of_no_class_is_named(value: int, dtype: torch.dtype):
    mask = torch.zeros(2, 2, dtype=dtype)
    mask[1, 1] = value
    with pytest.raises(DataError, match=rf"holds {value}, but classes are 0\.\.2 and 255 is ignored"):
        Scores(3, IGNORE).update(sure(torch.zeros(2, 2), 3), mask)


def test_other_number_of_classes_is_named():
    with pytest.raises(ParamsError, match="network gives 19 classes and the dataset has 21"):
        Scores(21, IGNORE).update(torch.full((19, 2, 2), 1 / 19), torch.zeros(2, 2, dtype=torch.uint8))


def test_other_size_is_named():
    with pytest.raises(DataError, match="mask is 3x2 and the probabilities are 2x3"):
        Scores(2, IGNORE).update(torch.full((2, 3, 2), 0.5), torch.zeros(2, 3, dtype=torch.uint8))


def test_probabilities_that_are_not_finite_are_refused():
    probs = torch.full((2, 2, 2), 0.5)
    probs[:, 0, 0] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        Scores(2, IGNORE).update(probs, torch.zeros(2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("num_classes", [0, 256])
def test_more_classes_than_a_mask_holds_are_refused(num_classes: int):
    with pytest.raises(ParamsError, match=f"{num_classes} classes cannot be scored"):
        Scores(num_classes, IGNORE)
