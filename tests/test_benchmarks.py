"""The table of costs: what its ratios mean, and that the training step's rows have the right images in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import other_data, peak
from benchmarks.cases import lite0, network_passes
from benchmarks.harness import Goal, Pair, Row, Samples, Unavailable, at_least, at_most, choose, line, run
from benchmarks.rows import all_rows
from benchmarks.rows.losses import step_without_networks
from cwbass.config import DataConfig
from cwbass.data import LAYOUTS


def row(measured, goal: Goal | None = None, name: str = "a.b") -> Row:
    def measure(repeats: int) -> Pair | Samples:
        if isinstance(measured, Exception):
            raise measured
        return measured

    return Row(name, "ours", "theirs", goal, measure)


def test_at_most_compares_ours_over_against_by_the_median_repeat():
    samples = Samples([1.0, 2.0, 30.0], [1.0, 1.0, 10.0])  # 1, 2 and 3 times
    found = run(row(samples, at_most(2.0))).to_dict()
    assert (found["ratio"], found["reached"], found["goal"]) == (2.0, True, "at most 2")
    assert not run(row(samples, at_most(1.9))).to_dict()["reached"]
    assert found["spread"] == [1.0, 3.0]


def test_at_least_is_how_many_times_as_fast_ours_is():
    found = run(row(Samples([1.0, 1.0, 2.0], [4.0, 3.0, 4.0]), at_least(3.0))).to_dict()  # 4, 3 and 2 times
    assert (found["ratio"], found["reached"]) == (3.0, True)


def test_without_anything_to_compare_with_the_goal_is_on_ours():
    found = run(row(Samples([0.2, 0.3, 0.4], None), at_most(0.3))).to_dict()
    assert (found["ours"], found["ratio"], found["reached"]) == (0.3, None, True)


def test_a_row_without_a_goal_neither_reaches_nor_misses_it():
    assert run(row(Samples([2.0], [1.0]))).to_dict()["reached"] is None


@pytest.mark.parametrize(("warm_seconds", "warm_calls"), [(0.1, 8), (100.0, 4)])
def test_calls_are_timed_in_turn_by_the_clock_of_the_pair_after_warm_ups(warm_seconds: float, warm_calls: int):
    now, calls = [0.0], []

    def spend(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += warm_seconds if len(calls) <= warm_calls else seconds

    pair = Pair(lambda: spend("ours", 3), lambda: spend("against", 2), calls=2, clock=lambda: now[0])
    found = run(row(pair), repeats=2).to_dict()
    assert (found["ours"], found["against"], found["ratio"]) == (3.0, 2.0, 1.5)
    assert calls[warm_calls:] == ["ours", "ours", "against", "against", "against", "against", "ours", "ours"]


def test_what_cannot_be_measured_says_why():
    result = run(row(Unavailable("no djpeg: apt-get install libjpeg-turbo-progs"), at_most(1)))
    assert result.to_dict()["reached"] is None
    assert "no djpeg: apt-get install libjpeg-turbo-progs" in line(result)


def test_rows_are_chosen_by_their_names_or_the_beginnings_of_them():
    rows = [row(None, name=name) for name in ("step.a", "step.a.b", "step.c", "data.a")]
    for only, names in {
        "step.a": ["step.a"],
        "step": ["step.a", "step.a.b", "step.c"],
        "data, step.a.": ["step.a.b", "data.a"],
    }.items():
        assert [found.name for found in choose(rows, only)] == names
    with pytest.raises(ValueError, match="no row begins with 'stp'"):
        choose(rows, "stp")


def test_the_names_of_all_rows_are_different():
    names = [found.name for found in all_rows()]
    assert len(set(names)) == len(names)


def test_the_softmax_beside_the_losses_is_over_the_maps_that_the_step_reads():
    step, softmax = step_without_networks(replace(lite0(), size=32, labeled=2, unlabeled=3))
    assert step().isfinite()
    teacher, student = softmax()
    assert teacher.shape == (3, 11, 32, 32)
    assert student.shape == (2 + 3 + 3, 11, 32, 32)  # unlabelled images are decoded twice


def test_the_network_alone_sees_as_many_images_as_the_step():
    case = replace(lite0(), size=32, labeled=2, unlabeled=3)
    method, images = case.method(), {"teacher": [0, 0], "student": [0, 0]}
    for name, net in method.networks().items():
        for place, part in enumerate((net.net.encoder, net.net.segmentation_head)):

            def count(_, args, seen=images[name], place=place):
                seen[place] += args[0].shape[0]

            part.register_forward_pre_hook(count)
    network_passes(case, method)()
    assert images == {"teacher": [3, 3], "student": [2 + 3, 2 + 3 + 3]}  # encoded, decoded


def test_peak_explains_itself_and_refuses_to_measure_nothing(capsys):
    with pytest.raises(SystemExit) as asked:
        peak.main(["--help"])
    assert (asked.value.code, '"ours lite0"' in capsys.readouterr().out) == (0, True)
    with pytest.raises(SystemExit) as ended:
        peak.main([])
    assert (ended.value.code, "are required" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("name", list(other_data.DATASETS))
def test_the_other_datasets_show_their_classes_as_rarely_as_they_say(name: str):
    classes, draw = other_data.DATASETS[name]
    samples = [draw(np.random.default_rng([0, index])) for index in range(12)]
    pixels = np.bincount(np.concatenate([mask.ravel() for _, mask in samples]), minlength=len(classes))
    assert len(pixels) == len(classes) and pixels.all()
    share = pixels / pixels.sum()
    rarest = {"landcover": "road", "cells": "large", "defects": "defect"}[name]
    assert share[classes.index(rarest)] < 0.06
    assert {image.shape for image, _ in samples} == {(other_data.SIDE, other_data.SIDE, 3)}
    again, mask = draw(np.random.default_rng([0, 3]))
    assert np.array_equal(again, samples[3][0]) and np.array_equal(mask, samples[3][1])


def test_the_other_datasets_are_folders_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(other_data, "IMAGES", {"train": 2, "unlabeled": 3, "test": 1})
    other_data.write("cells", tmp_path)
    files = LAYOUTS["folder"](tmp_path, DataConfig(layout="folder", root=str(tmp_path)))
    assert sorted(files.masks) == ["test0000", "train0000", "train0001"]
    assert len(files.images) == 6 and list(files.spec.class_names) == ["ground", "round", "long", "large"]
