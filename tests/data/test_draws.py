"""Stratified draws: exact numbers, coverage, groups, and how little a new file moves."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cwbass.data.base import Sample
from cwbass.data.draws import draw, group_of, stratified_places

VIDEO = re.compile(r"^(\w+?)_")


def sample(id: str, *pixels: int) -> Sample:
    return Sample(id, f"images/{id}.png", f"masks/{id}.png", pixels)


def of_one_class(classes: list[int], num_classes: int = 3) -> list[Sample]:
    """Images that show one class each: the stratum is the class."""
    return [sample(f"v{i}_0", *(int(c == k) for k in range(num_classes))) for i, c in enumerate(classes)]


def shown(samples: tuple[Sample, ...] | list[Sample]) -> set[int]:
    return {c for s in samples for c, n in enumerate(s.pixels or ()) if n}


POOLS = st.lists(st.lists(st.sampled_from([0, 0, 1, 9, 50]), min_size=4, max_size=4), min_size=1, max_size=30).map(
    lambda rows: [sample(f"v{i // 2}_{i}", *row) for i, row in enumerate(rows)]
)


@given(POOLS, st.data(), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_training_draw_is_exact_and_does_not_depend_on_file_order(
    pool: list[Sample], data: st.DataObject, seed: int, grouped: bool
) -> None:
    count = data.draw(st.integers(1, len(pool)))
    pattern = VIDEO if grouped else None
    drawn = draw(pool, count, seed=seed, pattern=pattern, hold_out=False)
    assert len(drawn) == len({s.id for s in drawn}) == count
    assert set(drawn) <= set(pool)
    assert draw(pool[::-1], count, seed=seed, pattern=pattern, hold_out=False) == drawn


@given(POOLS, st.integers(4, 30), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_class_is_drawn_once_there_are_as_many_images_as_classes(pool: list[Sample], count: int, seed: int) -> None:
    drawn = draw(pool, min(count, len(pool)), seed=seed, pattern=None, hold_out=False)
    assert shown(drawn) == shown(pool)


@given(POOLS, st.integers(1, 30), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_held_out_draw_keeps_groups_whole_and_leaves_every_class_behind(
    pool: list[Sample], count: int, seed: int, grouped: bool
) -> None:
    pattern = VIDEO if grouped else None
    drawn = draw(pool, count, seed=seed, pattern=pattern, hold_out=True)
    rest = [s for s in pool if s not in drawn]
    assert shown(rest) == shown(pool)
    assert not {group_of(s.id, pattern) for s in drawn} & {group_of(s.id, pattern) for s in rest}
    assert len(drawn) < 2 * count  # a group is taken only if that brings the number nearer


@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=60),
    st.integers(0, 2),
    st.sampled_from([0.1, 0.25, 0.5, 0.8]),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_a_stratum_gives_a_prefix_that_a_new_image_shifts_by_its_neighbours_only(
    classes: list[int], new: int, share: float, seed: int
) -> None:
    """In every stratum, what is drawn with and without one more image are prefixes of one order."""
    pool = of_one_class(classes)
    added = of_one_class([*classes, new])
    before = draw(pool, max(1, round(share * len(pool))), seed=seed, pattern=None, hold_out=False)
    after = draw(added, max(1, round(share * len(added))), seed=seed, pattern=None, hold_out=False)
    for c in range(3):
        old = {s.id for s in before if shown([s]) == {c}}
        kept = {s.id for s in after if shown([s]) == {c}} - {added[-1].id}
        assert old <= kept or kept <= old


def test_one_more_image_moves_few_old_ones() -> None:
    """Random content, 40 seeds: of 25 drawn images about one gives way (a new draw would change 19)."""
    rng = np.random.default_rng(0)
    dropped = []
    for seed in range(40):
        pool = [sample(f"v{i}_0", *(int(n) for n in rng.integers(0, 100, 5) * rng.integers(0, 2, 5))) for i in range(101)]
        before = {s.id for s in draw(pool[:-1], 25, seed=seed, pattern=None, hold_out=False)}
        after = {s.id for s in draw(pool, 25, seed=seed, pattern=None, hold_out=False)}
        dropped.append(len(before - after))
    assert np.mean(dropped) < 2
    assert max(dropped) <= 6


def test_strata_give_their_share() -> None:
    """60, 30 and 10 images of three strata: a fifth of each, give or take the one at the border."""
    pool = of_one_class([0] * 60 + [1] * 30 + [2] * 10)
    for seed in range(10):
        drawn = draw(pool, 20, seed=seed, pattern=None, hold_out=False)
        counts = [sum(shown([s]) == {c} for s in drawn) for c in range(3)]
        assert abs(counts[0] - 12) <= 1 and abs(counts[1] - 6) <= 1 and abs(counts[2] - 2) <= 1


def test_small_strata_are_drawn_as_often_as_large_ones() -> None:
    """40 images in one stratum and 40 in strata of their own: over seeds, half of the draw is from each."""
    one_stratum = of_one_class([0] * 40, num_classes=41)
    # They show the same classes, so none is drawn for a class of its own; another one leads in each.
    lone = [sample(f"w{i}_0", 1, *(50 if k == i else 1 for k in range(40))) for i in range(40)]
    draws = [draw(one_stratum + lone, 20, seed=seed, pattern=None, hold_out=False) for seed in range(50)]
    assert 8.5 < np.mean([sum(s.id.startswith("w") for s in drawn) for drawn in draws]) < 11.5


def test_places_follow_the_formula() -> None:
    """Two strata: groups of 1, 3 images (4 in all) and one of 2; (before + jitter x size) / all."""
    pixels = np.array([[5, 0], [0, 5], [7, 0]])
    shows = np.array([[1, 0], [0, 2], [3, 0]])
    places = stratified_places(pixels, shows, np.array([1, 2, 3]), np.array([0.5, 0.25, 0.5]))
    assert places.tolist() == [0.125, 0.25, 0.625]


def test_rarest_class_comes_before_everything_else() -> None:
    pool = [*of_one_class([0] * 50 + [1] * 10), sample("rare", 100, 0, 1)]
    for seed in range(5):
        assert [s.id for s in draw(pool, 1, seed=seed, pattern=None, hold_out=False)] == ["rare"]


def test_last_group_is_cut_to_the_count() -> None:
    pool = [sample(f"{video}_{i}", 1, 1) for video in "ab" for i in range(5)]
    drawn = draw(pool, 7, seed=0, pattern=VIDEO, hold_out=False)
    assert sorted(sum(s.id.startswith(v) for s in drawn) for v in "ab") == [2, 5]


def test_group_is_group_one_or_the_match_or_the_id() -> None:
    assert group_of("0001TP_006690", re.compile(r"^([^_]+)_")) == "0001TP"
    assert group_of("0001TP_006690", re.compile(r"^\d+")) == "0001"
    assert group_of("other", re.compile(r"^\d+")) == "other"
    assert group_of("b", re.compile(r"(a)|b")) == "b"  # group 1 takes no part in this match
