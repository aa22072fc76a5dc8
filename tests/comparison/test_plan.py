from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cwbass.comparison.budget import Budget, Cost, MethodCost
from cwbass.comparison.plan import Cell, Plan, label_sets
from cwbass.comparison.variants import method_variants
from cwbass.errors import DataError, ParamsError
from cwbass.params import Params, load_params


def params(**train: Any) -> Params:
    return load_params({"seed": 5, "train": {"steps": 300, "warmup_steps": 100, "snapshots": 3, **train}}, Params)


def plan(out: Path, methods: str = "cw_bass", *, base: Params | None = None, **changes: Any) -> Plan:
    base = base or params()
    settings = {"budget": Budget("steps", 300), "seeds": [0, 1], "labels": label_sets(["1/4"]), **changes}
    return Plan(out, base, variants=method_variants(methods.split(","), base), **settings)


def join(plan: Plan) -> Plan:
    whole = plan.joined()
    whole.write()
    return whole


def costs(plan: Plan, **seconds: float) -> None:
    for name, value in seconds.items():
        file = plan.cost_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(MethodCost(Cost(value, 2, 1)).to_dict()))


def test_cells_come_group_by_group_so_that_a_stopped_grid_compares_like_with_like(tmp_path: Path) -> None:
    cells = [cell.id for cell in plan(tmp_path, labels=label_sets(["1/4", "7"])).cells()]
    assert cells[:3] == ["1-4/seed0/supervised", "1-4/seed0/cw_bass", "1-4/seed1/supervised"]
    assert cells[-1] == "7/seed1/cw_bass"
    assert len(cells) == 8


@pytest.mark.parametrize(
    ("text", "name", "labeled", "file"),
    [
        ("1/16", "1-16", 0.0625, None),
        ("0.125", "0.125", 0.125, None),
        ("93", "93", 93, None),
        ("ours=lists/a.txt", "ours", None, "lists/a.txt"),
    ],
)
def test_labels_are_shares_counts_or_lists(text: str, name: str, labeled: float | None, file: str | None) -> None:
    assert label_sets([text]) == {name: {"labeled": labeled, "labeled_list": file}}


def test_without_labels_they_are_those_of_the_parameters(tmp_path: Path) -> None:
    base = load_params({"train": {"steps": 9}, "split": {"labeled": 17}}, Params)
    cell = Cell("as-given", 0, "cw_bass")
    assert plan(tmp_path, base=base, labels=label_sets([])).cell_params(cell).split.labeled == 17


@pytest.mark.parametrize("text", ["1/0", "half", "a/b", ""])
def test_other_labels_are_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="write a share"):
        label_sets([text])


@pytest.mark.parametrize("texts", [["1-4=ids.txt", "1/4"], ["1/4", "1-4=ids.txt"]])
def test_a_list_and_a_share_of_one_name_are_refused(texts: list[str]) -> None:
    with pytest.raises(ParamsError, match="--labels names 1-4 twice"):
        label_sets(texts)
    assert list(label_sets(["1/4", "1/4"])) == ["1-4"]


def test_a_share_out_of_range_is_refused_by_the_parameters(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"split\.labeled"):
        plan(tmp_path, labels=label_sets(["5/4"])).cell_params(Cell("5-4", 0, "cw_bass"))


def test_a_cell_has_its_seed_labels_method_and_steps_and_all_else_as_given(tmp_path: Path) -> None:
    base = params()
    made = plan(tmp_path, "cw_bass,fixmatch", base=base, budget=Budget("steps", 600)).cell_params(Cell("1-4", 1, "fixmatch"))
    assert (made.seed, made.split.labeled, made.method.name) == (1, 0.25, "fixmatch")
    assert (made.train.steps, made.train.warmup_steps, made.train.baseline) == (600, 200, True)
    changed = {"seed", "split", "method", "train"}
    assert made.model_dump(exclude=changed) == base.model_dump(exclude=changed)


def test_methods_of_as_many_steps_share_the_warm_up_from_which_the_baseline_goes_on(tmp_path: Path) -> None:
    made = plan(tmp_path, "cw_bass,fixmatch")
    cells = [Cell("1-4", 0, name) for name in ("supervised", "cw_bass", "fixmatch")]
    assert {made.warmup_folder(cell) for cell in cells} == {tmp_path / "1-4/seed0/warmup-300"}
    assert len({made.warmup_params(cell).model_dump_json() for cell in cells}) == 1
    assert made.warmup_params(cells[1]).train.baseline


def test_a_method_of_fewer_steps_has_a_warm_up_of_its_own_without_a_baseline(tmp_path: Path) -> None:
    made = plan(tmp_path, budget=Budget("minutes", 1))
    assert made.unmeasured() == ["supervised", "cw_bass"]
    costs(made, supervised=0.1, cw_bass=0.25)
    assert made.unmeasured() == []
    cell = Cell("1-4", 0, "cw_bass")
    # 60 s: 100 steps of 0.1 s and 200 of 0.25 s
    assert (made.length("supervised").steps, made.length("cw_bass").steps) == (600, 300)
    train = made.warmup_params(cell).train
    assert (train.steps, train.warmup_steps, train.baseline, train.snapshots) == (300, 100, False, 0)
    assert made.warmup_folder(cell).name == "warmup-300"
    assert made.cell_params(cell).train.snapshots == 3


@pytest.mark.parametrize("name", ["split", "warmup-300", "costs", "unfinished", "lock", "plan.json"])
def test_a_name_of_the_comparisons_own_folders_is_refused(tmp_path: Path, name: str) -> None:
    base, message = params(), f"'{name}' is what a folder or file of the comparison itself is called"
    variants = {**method_variants(["cw_bass"], base), name: base.method}
    with pytest.raises(ParamsError, match=message):
        Plan(tmp_path, base, Budget("steps", 300), variants, [0], label_sets([]))
    with pytest.raises(ParamsError, match=message):
        plan(tmp_path, labels=label_sets([f"{name}=ids.txt"]))


def test_more_seeds_labels_and_methods_join_a_folder(tmp_path: Path) -> None:
    join(plan(tmp_path, "unimatch"))
    whole = join(plan(tmp_path, "cw_bass", seeds=[1, 2], labels=label_sets(["9"])))
    assert (list(whole.variants), whole.seeds, list(whole.labels)) == (
        ["supervised", "unimatch", "cw_bass"],
        [0, 1, 2],
        ["1-4", "9"],
    )
    assert Plan.read(tmp_path) == whole
    assert whole.reference == "unimatch"  # whatever joins: numbers that were read before stay as they were


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["1/2", "0.5"], "0.5 are the labels of 1-2"),
        (["a=x.txt", "b=x.txt"], "b are the labels of a"),
        (["07", "7"], "7 are the labels of 07"),
    ],
)
def test_labels_under_two_names_are_refused(tmp_path: Path, texts: list[str], names: str) -> None:
    with pytest.raises(ParamsError, match=f"--labels {names}, under another name"):
        join(plan(tmp_path, labels=label_sets(texts)))
    assert not (tmp_path / "plan.json").exists()
    join(plan(tmp_path, labels=label_sets(texts[:1])))
    with pytest.raises(ParamsError, match=f"--labels {names}, under another name"):
        join(plan(tmp_path, labels=label_sets(texts[1:])))
    join(plan(tmp_path, labels=label_sets(texts[:1])))  # the same again goes on


def test_one_image_is_not_all_of_them_though_1_is_equal_to_one(tmp_path: Path) -> None:
    assert list(join(plan(tmp_path, labels=label_sets(["1", "1/1"]))).labels) == ["1", "1-1"]


def test_what_is_given_already_is_not_planned_again_under_a_name(tmp_path: Path) -> None:
    base = load_params({**params().model_dump(mode="json"), "split": {"labeled": 0.25}}, Params)
    join(plan(tmp_path, base=base, labels=label_sets([])))
    with pytest.raises(ParamsError, match="--labels 1-4 are the labels of as-given"):
        join(plan(tmp_path, base=base, labels=label_sets(["1/4"])))


def test_what_changes_no_number_may_differ_between_two_calls(tmp_path: Path) -> None:
    join(plan(tmp_path))
    whole = join(plan(tmp_path, base=params(workers=2, cache="elsewhere")))
    assert (whole.params.train.workers, whole.params.train.cache) == (2, "elsewhere")
    assert Plan.read(tmp_path) == whole


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budget": Budget("steps", 400)}, 'budget: "steps=300" there, "steps=400" now'),
        ({"base": params(batch_labeled=8)}, r"params\.train\.batch_labeled: 4 there, 8 now"),
        ({"labels": {"1-4": {"labeled": 0.3, "labeled_list": None}}}, r"labels\.1-4\.labeled: 0.25 there, 0.3 now"),
    ],
)
def test_a_folder_of_another_comparison_is_refused_with_both_values(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    join(plan(tmp_path))
    with pytest.raises(DataError, match=line) as caught:
        join(plan(tmp_path, **changes))
    assert caught.value.exit_code == 4
    assert str(tmp_path / "plan.json") in str(caught.value)


def test_a_method_with_other_numbers_is_refused_under_the_same_name(tmp_path: Path) -> None:
    join(plan(tmp_path))
    other = load_params({**params().model_dump(mode="json"), "method": {"name": "cw_bass", "recipe": "paper"}}, Params)
    with pytest.raises(DataError, match=r'variants\.cw_bass\.recipe: "cwbass" there, "paper" now'):
        join(plan(tmp_path, base=other))


def test_plans_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"train\.epochs=null"):
        plan(tmp_path, base=load_params({"train": {"epochs": 3}}, Params))
    with pytest.raises(ParamsError, match="at least one method beside supervised"):
        plan(tmp_path, "supervised")
    with pytest.raises(ParamsError, match=r"eval\.weights is teacher, but fixmatch has no teacher"):
        plan(tmp_path, "supervised,fixmatch", base=load_params({"eval": {"weights": "teacher"}}, Params))
    with pytest.raises(ParamsError, match=r"'\.\./x' names a folder"):
        plan(tmp_path, labels=label_sets(["../x=list.txt"]))
    with pytest.raises(ParamsError, match="--cell 1-4/seed9/cw_bass is none of"):
        plan(tmp_path).cell("1-4/seed9/cw_bass")


@pytest.mark.parametrize(("text", "message"), [("{}", "has schema None"), ("[", "is no JSON"), ('{"schema": 1}', "is no plan")])
def test_a_broken_plan_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match=message):
        Plan.read(tmp_path)
