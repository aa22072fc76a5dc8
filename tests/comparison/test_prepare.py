"""What is asked for is checked before it is written down, and nothing that is refused stands in the way of the next call."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import changed, smoke_params

from cwbass.comparison.plan import Plan
from cwbass.comparison.run import _split_job
from cwbass.comparison.variants import method_variants
from cwbass.errors import CwbassError, DataError, ParamsError
from cwbass.params import Params
from cwbass.steps.compare import Comparison, asked_plan, prepare
from cwbass.steps.split import SplitParams, split


def params(data: Path) -> Params:
    return changed(smoke_params(), "data", root=str(data))


def ask(
    data: Path, out: Path, methods: str = "fixmatch", *, seeds: str = "0", labels: str = "4", budget: str = "steps=16"
) -> Comparison:
    base = params(data)
    variants = method_variants(methods.split(","), base)
    wanted = {"seeds": seeds.split(","), "labels": labels.split(","), "budget": budget}
    return prepare(asked_plan(base, variants, **wanted, out_dir=out))


def ids(folder: Path, *names: str) -> str:
    """A list of labelled images as ``--labels`` takes it."""
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    return f"A={folder / 'ids.txt'}"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"budget": "steps=1"}, "steps=1 is too small for supervised: two steps of it take 2 steps"),
        (
            {"methods": "st_plus_plus", "budget": "steps=6"},
            "steps=6 is too small for st_plus_plus: .* pays for 1, and 3 are needed",
        ),
        ({"labels": "x=missing.txt"}, r"split\.labeled_list: no file missing\.txt"),
        ({"labels": "5/4"}, r"split\.labeled: is 1\.25"),
        ({"labels": "999"}, r"split\.labeled is 999, but beside the test set only 12 images have masks"),
        ({"labels": "A=ids.txt,A=other.txt"}, "--labels names A twice"),
    ],
)
def test_what_is_refused_leaves_no_plan_and_the_next_call_goes(
    shapes: Path, tmp_path: Path, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(CwbassError, match=message):
        ask(shapes, tmp_path, **asked)
    assert not (tmp_path / "plan.json").exists()
    assert [cell.id for cell in ask(shapes, tmp_path).plan.cells()] == ["4/seed0/supervised", "4/seed0/fixmatch"]


def test_cells_on_several_machines_are_refused_before_their_baselines_have_trained(tmp_path: Path) -> None:
    base = params(tmp_path)
    several = base.model_copy(update={"train": base.train.model_copy(update={"nodes": 2})})
    with pytest.raises(ParamsError, match=r"train\.nodes is 2, .* Set train\.nodes: 1"):
        asked_plan(several, method_variants(["fixmatch"], base), seeds=[], labels=[], budget=None, out_dir=tmp_path)


def test_a_list_that_was_mended_after_it_was_refused_is_taken(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="test_00000"):
        ask(shapes, tmp_path / "out", labels=ids(tmp_path, "test_00000"))
    assert ask(shapes, tmp_path / "out", labels=ids(tmp_path, "train_00000")).plan.lists_sha256.keys() == {"A"}


def test_a_list_that_was_edited_is_refused_for_more_seeds_and_another_order_of_it_is_not(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ask(shapes, out, labels=ids(tmp_path, "train_00000", "train_00001"))
    ask(shapes, out, labels=ids(tmp_path, "train_00001", "# a comment", "train_00000"), seeds="1")
    with pytest.raises(DataError, match=r"ids in the list \(SHA-256\)\.A: .* there, .* now"):
        ask(shapes, out, labels=ids(tmp_path, "train_00000"), seeds="2")
    assert list(Plan.read(out).seeds) == [0, 1]


def test_images_that_were_added_are_noticed(shapes: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(shapes, data)
    ask(data, out)
    shutil.copy(data / "unlabeled/unlabeled_00000.jpg", data / "unlabeled/more.jpg")
    with pytest.raises(
        DataError,
        match=rf"names of the dataset's files and classes \(SHA-256\): .* there, .* now\n  which is to say of {data}: other images, masks",
    ):
        ask(data, out, seeds="1")


def test_images_that_came_and_went_are_named_once_a_split_is_drawn(shapes: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(shapes, data)
    plan = ask(data, out).plan
    cell = next(plan.cells())
    group = plan.group_params(cell)
    split(SplitParams(**group.model_dump(include=set(SplitParams.model_fields))), data_root=data, out_dir=plan.split_folder(cell))
    for turn in (0, 1):
        (data / f"unlabeled/unlabeled_0000{turn}.jpg").rename(data / f"unlabeled/more{turn}.jpg")
    (data / "unlabeled/more1.jpg").unlink()
    said = "2 images are gone, the first unlabeled/unlabeled_00000.jpg; 1 image is new, the first unlabeled/more0.jpg"
    with pytest.raises(DataError, match=f"which is to say of {data}: {said}\n"):
        ask(data, out, seeds="1")


def test_a_folder_that_was_planned_before_there_were_digests_is_joined(shapes: Path, tmp_path: Path) -> None:
    ask(shapes, tmp_path)
    replace(Plan.read(tmp_path), listing_sha256=None, lists_sha256={}).write()
    digest = ask(shapes, tmp_path, seeds="1").plan.listing_sha256
    assert digest is not None and Plan.read(tmp_path).listing_sha256 == digest


def test_a_seed_counts_once(shapes: Path, tmp_path: Path) -> None:
    found = ask(shapes, tmp_path, seeds="0,00,1,0")
    assert [cell["seed"] for cell in found.listing()] == [0, 0, 1, 1]


def test_a_method_that_joins_a_budget_of_passes_with_another_seed_is_measured_beside_the_others(
    shapes: Path, tmp_path: Path
) -> None:
    """Costs are looked for where the first call wrote them. Batches are of two labelled and two unlabelled images."""
    ask(shapes, tmp_path, "fixmatch", seeds="0", budget="passes=120")
    found = ask(shapes, tmp_path, "mean_teacher", seeds="1", budget="passes=120")
    # half of the steps are the warm-up's, of 2 images: 60 x 2; 15 x 2 + 15 x 6; 12 x 2 + 12 x (4 + 4)
    steps = {name: found.plan.length(name).steps for name in found.plan.variants}
    costs = {name: found.plan.cost(name) for name in found.plan.variants}
    assert {name: (cost.step.passes, cost.step.passes_no_grad) for name, cost in costs.items() if cost} == {
        "supervised": (2, 0),
        "fixmatch": (6, 0),
        "mean_teacher": (4, 4),
    }
    assert steps == {"supervised": 60, "fixmatch": 30, "mean_teacher": 24}
    assert [cell.id for cell in found.asked.cells()] == ["4/seed1/supervised", "4/seed1/mean_teacher"]
    assert all(cost is not None and cost.step.seconds is None for cost in costs.values())  # no step was timed


def test_a_plan_that_another_process_writes_is_waited_for_and_joined(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(shapes, tmp_path / "other", "unimatch")
    (tmp_path / "out").mkdir()
    code = (
        "import fcntl, os, subprocess; lock = os.open('lock', os.O_RDWR | os.O_CREAT); fcntl.flock(lock, fcntl.LOCK_EX); "
        "subprocess.Popen(['sleep', '1.5'], pass_fds=(lock,))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", check=True)
    threading.Timer(1.0, shutil.copy, (tmp_path / "other" / "plan.json", tmp_path / "out")).start()
    ask(shapes, tmp_path / "out", "fixmatch")
    assert "another process is at work" in caplog.text
    planned = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert list(planned["variants"]) == ["supervised", "unimatch", "fixmatch"]


@pytest.mark.parametrize("split", [False, True])
def test_a_split_that_an_earlier_version_did_not_finish_is_drawn(tmp_path: Path, split: bool) -> None:
    # Which wrote its parameters where the step writes its own, and the step writes over nobody else's.
    (tmp_path / "params.yaml").write_text("seed: 1")
    if split:
        (tmp_path / "manifest.json").write_text("{}")
    job = _split_job(Params(), tmp_path)
    assert (tmp_path / "params.yaml").exists() == split
    assert job.arguments[:3] == ["split", "--params", str(tmp_path / "given.yaml")]
