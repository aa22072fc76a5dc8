"""Every pair of variants, against a plain loop over resamples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cwbass.comparison.pairs import Pairs
from cwbass.comparison.plan import Cell
from cwbass.comparison.results import Result
from cwbass.evaluation.per_image import PerImage
from cwbass.evaluation.statistics import draw_images

NAMES = ("a", "b", "c")
IMAGES, RESAMPLES = 6, 90


def class_scores(matrices: NDArray[np.int64], draw: NDArray[np.int64]) -> list[float | None]:
    """IoU of each class, pixel counts added up one by one."""
    hits, unions = [0] * 3, [0] * 3
    for matrix, times in zip(matrices.tolist(), draw.tolist(), strict=True):
        for truth in range(3):
            for said in range(3):
                count = times * matrix[truth][said]
                hits[truth] += count * (truth == said)
                for one in {truth, said}:
                    unions[one] += count
    return [hit / union if union else None for hit, union in zip(hits, unions, strict=True)]


def mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


@pytest.fixture(scope="module")
def variants() -> dict[str, dict[int, Result]]:
    rng = np.random.default_rng(0)
    found: dict[str, dict[int, Result]] = {}
    for name, seeds in (("one", (0, 1, 2)), ("two", (0, 1)), ("three", (1, 2))):
        for seed in seeds:
            matrices = rng.integers(0, 9, (IMAGES, 3, 3))
            matrices[2:, 2] = matrices[2:, :, 2] = 0  # two images alone have class c
            whole = class_scores(matrices, np.ones(IMAGES, dtype=np.int64))
            metrics = {"miou": mean(whole), "per_class": {each: {"iou": iou} for each, iou in zip(NAMES, whole, strict=True)}}
            images = PerImage(tuple("uvwxyz"), NAMES, matrices)
            found.setdefault(name, {})[seed] = Result(Cell("all", seed, name), Path("out"), metrics, images, "1", 1.0, 1.0, None)
    return found


def test_each_pair_is_compared_over_the_seeds_and_resamples_of_both(variants: dict[str, dict[int, Result]]) -> None:
    draws = draw_images(IMAGES, resamples=RESAMPLES)
    matrix = Pairs(variants, draws).matrix()
    assert {name: list(others) for name, others in matrix.items()} == {
        "one": ["two", "three"], "two": ["one", "three"], "three": ["one", "two"]
    }  # fmt: skip
    for (name, other), seeds in {("one", "two"): [0, 1], ("three", "one"): [1, 2], ("two", "three"): [1]}.items():
        ours, theirs = ([variants[each][seed].images.matrices for seed in seeds] for each in (name, other))
        plain = [
            mean([mean(class_scores(one, draw)) - mean(class_scores(two, draw)) for one, two in zip(ours, theirs, strict=True)])
            for draw in draws
        ]
        found = matrix[name][other]
        assert found is not None
        assert list(found["each"]) == seeds
        assert found["value"] == pytest.approx(mean([variants[name][s].miou - variants[other][s].miou for s in seeds]))
        assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])))
        mirrored = matrix[other][name]
        assert mirrored is not None
        assert (mirrored["low"], mirrored["high"]) == pytest.approx((-found["high"], -found["low"]))


def test_a_class_is_compared_on_the_resamples_that_show_it(variants: dict[str, dict[int, Result]]) -> None:
    draws = draw_images(IMAGES, resamples=RESAMPLES)
    classes = Pairs(variants, draws).classes("three", "two")
    ours, theirs = (variants[each][1].images.matrices for each in ("three", "two"))
    for index, name in enumerate(NAMES):
        pairs = [(class_scores(ours, draw)[index], class_scores(theirs, draw)[index]) for draw in draws]
        plain = [one - two for one, two in pairs if one is not None and two is not None]
        assert (len(plain) < RESAMPLES) == (name == "c")
        found = classes[name]
        assert found is not None
        assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])))
        whole = [class_scores(each, np.ones(IMAGES, dtype=np.int64))[index] for each in (ours, theirs)]
        assert found["value"] == pytest.approx(whole[0] - whole[1])


def test_a_class_that_one_image_has_gets_no_interval(variants: dict[str, dict[int, Result]]) -> None:
    alone = {name: {1: variants[name][1]} for name in ("one", "two")}
    for name, cells in alone.items():
        matrices = cells[1].images.matrices.copy()
        matrices[1:, 2] = matrices[1:, :, 2] = 0
        alone[name] = {1: replace(cells[1], images=replace(cells[1].images, matrices=matrices))}
    classes = Pairs(alone, draw_images(IMAGES, resamples=RESAMPLES)).classes("one", "two")
    bounds = {name: None if found is None else (found["low"], found["high"]) for name, found in classes.items()}
    assert bounds["c"] == (None, None)
    assert bounds["a"] is not None
    assert bounds["a"][0] < bounds["a"][1]


def test_nothing_is_compared_with_itself_or_with_what_is_missing(variants: dict[str, dict[int, Result]]) -> None:
    pairs = Pairs(variants, draw_images(IMAGES, resamples=2))
    assert pairs.classes("one", "one") == pairs.classes("one", "four") == {}
