from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cwbass.config import Section, TrainConfig
from cwbass.errors import ParamsError
from cwbass.methods import METHODS, OFFLINE
from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.methods.offline import OfflineCwBass
from cwbass.params import (
    Params,
    apply_overrides,
    dump_origins,
    dump_params,
    flatten,
    json_schema,
    load_params,
    parse_yaml,
    read_params,
)

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]
CW_BASS = "method: {name: cw_bass, "
NAMES = ", ".join(map(repr, METHODS))
OF_MEAN_TEACHER = "ema_decay, name, unsup_weight, views"


def load(text: str) -> Params:
    return load_params(parse_yaml(text, "params.yaml"), Params)


def message(text: str) -> str:
    with pytest.raises(ParamsError) as caught:
        load(text)
    return str(caught.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_file_is_valid(path: Path) -> None:
    params = load_params(read_params(path), Params)
    assert params.method.name == "cw_bass"


def test_a_second_stage_that_is_registered_nowhere_is_refused_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnConfig(CwBassConfig):
        name: Literal["own"] = "own"  # type: ignore[assignment]

    class Own(CwBass):
        config_cls = OwnConfig

    monkeypatch.setitem(METHODS, "own", Own)
    own = {"method": {"name": "own", "cwbass": {"second_stage": {"enabled": True}}}}
    with pytest.raises(ParamsError) as caught:
        load_params(own, Params)
    assert str(caught.value) == (
        "method.cwbass.second_stage: asks for a second stage, and own has none in cwbass.methods.OFFLINE; "
        "register one there under that name, or set method.cwbass.second_stage.enabled: false"
    )
    monkeypatch.setitem(OFFLINE, "own", OfflineCwBass)
    assert load_params(own, Params).method.retraining is not None


def test_empty_file_is_the_defaults() -> None:
    assert load("") == Params()
    assert Params().method.recipe == "cwbass"


def test_key_that_is_left_out_keeps_its_default() -> None:
    params = load("train: {steps: 7, optimizer: {lr: 0.5}}")
    assert (params.train.optimizer.lr, params.train.optimizer.weight_decay) == (0.5, 0.0001)


def test_block_of_a_recipe_may_set_one_term_alone() -> None:
    params = load(CW_BASS + "cwbass: {gamma: 2}, paper: {gamma: 3, threshold: {beta: 9}}}")
    assert params.method.cwbass == Params().method.cwbass.model_copy(update={"gamma": 2.0})
    assert params.method.paper.gamma == 3
    assert params.method.paper.threshold == Params().method.paper.threshold.model_copy(update={"beta": 9.0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {steps: 3}", "trian: unknown key; did you mean 'train'?"),
        ("train: {stpes: 3, steps: 3}", "train.stpes: unknown key; did you mean 'steps'?"),
        ("train: {steps: 3, optimizer: {leraning_rate: 1}}", "train.optimizer.leraning_rate: unknown key"),
        (
            "train: {steps: 3, optimizer: {weigth_decay: 1}}",
            "train.optimizer.weigth_decay: unknown key; did you mean 'weight_decay'?",
        ),
        (CW_BASS + "recipie: paper}", "method.recipie: unknown key; did you mean 'recipe'?"),
        (CW_BASS + "cwbass: {gama: 1}}", "method.cwbass.gama: unknown key; did you mean 'gamma'?"),
        (CW_BASS + "cwbass: {threshold: {rul: strict}}}", "method.cwbass.threshold.rul: unknown key; did you mean 'rule'?"),
        (CW_BASS + "paper: {boundary: {wieght: 0}}}", "method.paper.boundary.wieght: unknown key; did you mean 'weight'?"),
        ("method: {name: mean_teacher, recipe: paper}", "method.recipe: unknown key; mean_teacher takes " + OF_MEAN_TEACHER),
        (
            "method: {name: mean_teacher, cw_bass: {gamma: 1}}",
            "method.cw_bass: unknown key; mean_teacher takes " + OF_MEAN_TEACHER,
        ),
        ("method: {name: fixmatch, threshold: {floor: 1}}", "method.threshold.floor: unknown key"),
        ("qqq: 1", "qqq: unknown key"),
        ("1: 2", "1: unknown key"),
    ],
)
def test_unknown_key_is_named_with_its_place_and_the_nearest_that_exists(text: str, expected: str) -> None:
    assert message(text).splitlines() == [expected]


def test_every_wrong_key_has_its_line() -> None:
    assert message("seed: -1\ntrian: 1\nmodel: {arhc: unet}\ntrain: {steps: 3, workers: x}").splitlines() == [
        "seed: is -1, should be greater than or equal to 0",
        "model.arhc: unknown key; did you mean 'arch'?",
        "train.workers: is 'x', should be a valid integer",
        "trian: unknown key; did you mean 'train'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train: {steps: 1, optimizer: {lr: 1e-3}}",
            "train.optimizer.lr: is '1e-3', should be a valid number (YAML reads 1e-3 as text; write 0.001)",
        ),
        ("train: {steps: 1e3}", "train.steps: is '1e3', should be a valid integer (YAML reads 1e3 as text; write 1000)"),
        ("train: {steps: '5'}", "train.steps: is '5', should be a valid integer (YAML reads 5 as text; write 5)"),
        ("train: {steps: 1, optimizer: {lr: nan}}", "train.optimizer.lr: is 'nan', should be a valid number"),
        ("model: {encoder: 50}", "model.encoder: is 50, should be a valid string"),
        ("eval: {flip: 1}", "eval.flip: is 1, should be a valid boolean"),
        ("warmup: {ema_decay: 1.5}", "warmup.ema_decay: is 1.5, should be 'auto' or be less than or equal to 1"),
        ("eval: {weights: techer}", "eval.weights: is 'techer', should be 'auto', 'student' or 'teacher'"),
        ("eval: {scales: [1, a]}", "eval.scales.1: is 'a', should be a valid number"),
        ("model: {mean: [0.5, 0.5]}", "model.mean.2: is required and not given"),
        ("model: {mean: [0.5, 0.5, 128]}", "model.mean.2: is 128, should be less than or equal to 1"),
        (
            "data: {classes: [road, ' ']}",
            "data.classes.1: is ' ', which nobody can read in a table; write the name of the class",
        ),
        ("data: {classes: ['']}", "data.classes.0: is '', which nobody can read in a table"),
        ("data: {merge: {'': [road]}}", "data.merge.'': is '', which nobody can read in a table"),
        ("data: {colors: {' ': [0, 0, 0]}}", "data.colors.' ': is ' ', which nobody can read in a table"),
        ("data: {colors: {sky: [0, 0, 256]}}", "data.colors.sky.2: is 256, should be less than or equal to 255"),
        ("train:", "train: is null, should be an object"),
        ("method: 3", "method: is 3, should be an object"),
        ("method: {recipe: paper}", f"method.name: is required and not given; choose one of {NAMES}"),
        ("method: {name: fixmach}", f"method.name is 'fixmach'; choose one of {NAMES}"),
        (CW_BASS + "cwbass: {gamma: -1}}", "method.cwbass.gamma: is -1, should be greater than or equal to 0"),
        (CW_BASS + "cwbass: {threshold: {rule: fixed}}}", "method.cwbass.threshold.rule: is 'fixed', should be "),
        (
            CW_BASS + "cwbass: {threshold: {low: 0.96}}}",
            "method.cwbass.threshold: low is 0.96 and high is 0.95; the first must not exceed the second",
        ),
        ("augment: {scale: [2, 0.5]}", "augment.scale: is [2, 0.5]; the first number must not exceed the second"),
        ("augment: {blur_sigma: [2, 1]}", "augment.blur_sigma: is [2, 1]; the first number must not exceed the second"),
        ("method: {name: cps, area: [0.5, 0.25]}", "method.area: is [0.5, 0.25]; the first number must not exceed the second"),
        ("method: {name: mgd, area: [0.5, 0.25]}", "method.area: is [0.5, 0.25]; the first number must not exceed the second"),
        ("warmup: {name: cw_bass}", "warmup.name is 'cw_bass'; choose one of 'supervised'"),
        ("split: {labeled: 0}", "split.labeled: is 0, should be greater than or equal to 1"),
        ("data: {layout: coco}", "data.layout: is 'coco', should be one of folder, pascal_voc, cityscapes"),
        ("train: {steps: 1, optimizer: {name: SGD}}", "train.optimizer.name: is 'SGD', should be one of sgd, adamw"),
        ("train: {steps: 1, optimizer: {schedule: cos}}", "train.optimizer.schedule: is 'cos', should be one of poly"),
        ("eval: {postprocess: crf}", "eval.postprocess: is 'crf', should be one of those that a plugin adds, and there is none"),
        (
            "train: {steps: 1, optimizer: {options: {momentum: 0.5}}}",
            "train.optimizer.options.momentum: is no option of adamw or poly",
        ),
    ],
)
def test_wrong_value_is_named_with_what_was_seen_and_what_should_be(text: str, expected: str) -> None:
    assert message(text).startswith(expected)


def test_long_value_is_shortened() -> None:
    assert message(f"seed: {'x' * 500}") == f"seed: is '{'x' * 56}..., should be a valid integer"


@pytest.mark.parametrize("budget", ["", "steps: 5, epochs: 5, "])
def test_budget_is_either_steps_or_epochs(budget: str) -> None:
    assert message(f"train: {{{budget}workers: 0}}") == "train: give either steps or epochs, not both and not neither"


@pytest.mark.parametrize("budget", ["steps", "epochs"])
def test_one_budget_is_enough(budget: str) -> None:
    assert getattr(load(f"train: {{{budget}: 5}}").train, budget) == 5


def test_step_takes_its_sections_alone_but_knows_all_names() -> None:
    class TrainParams(Section):
        train: TrainConfig = TrainConfig(steps=1)

    assert load_params({"train": {"steps": 9}, "model": {"arch": 3}}, TrainParams).train.steps == 9
    with pytest.raises(ParamsError, match=r"^modle: unknown key; did you mean 'model'\?$"):
        load_params({"train": {"steps": 9}, "modle": {}}, TrainParams)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [("seed: 1\nmodel: {}\nseed: 2", "seed", 3), ("train:\n  steps: 5\n  steps: 6", "steps", 3), ("a: [{b: 1, b: 1}]", "b", 1)],
)
def test_key_given_twice_is_refused_with_its_line(text: str, key: str, line: int) -> None:
    with pytest.raises(
        ParamsError, match=rf"^p\.yaml cannot be read as YAML: key '{key}' is given twice; keep one at line {line},"
    ):
        parse_yaml(text, "p.yaml")


def test_merged_mapping_may_be_overridden() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}"
    assert parse_yaml(text, "p.yaml") == {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b: c", "cannot be read as YAML: mapping values are not allowed here"),
        ("a: [1", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read as YAML: could not determine a constructor"),
        ("? [1]\n: 2", "cannot be read as YAML"),
        ("- 1", "holds list, not a mapping of sections"),
        ("just text", "holds str, not a mapping of sections"),
        ("a: 2020-01-01", "holds a value that no parameter takes"),
        ("a: .inf", "holds a value that no parameter takes"),
        ("a: &a [*a]", "holds a value that no parameter takes"),
        ("a: !!binary aGk=", "holds a value that no parameter takes"),
        ('a: !!int ""', "holds a value that no parameter takes"),
        ("a: !!bool maybe", "holds a value that no parameter takes"),
        ("a: !!timestamp soon", "holds a value that no parameter takes"),
        ('a: "\\ud800"', "holds a value that no parameter takes"),
        ("a: 0x" + "f" * 5000, "holds a value that no parameter takes"),
        ("a: " + "[" * 500 + "]" * 500, "holds a value that no parameter takes"),
    ],
)
def test_text_that_is_no_mapping_of_plain_values_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse_yaml(text, "p.yaml")
    assert str(caught.value).startswith(f"p.yaml {problem}")


def test_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"nowhere\.yaml: no such file. Name the parameters with --params FILE"):
        read_params(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(ParamsError, match=r"latin\.yaml cannot be read as text"):
        read_params(tmp_path / "latin.yaml")
    with pytest.raises(ParamsError, match="cannot be read as text"):
        read_params(tmp_path)


def test_overrides_are_yaml_below_dotted_keys(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("seed: 1\ntrain: {steps: 5}\n")
    values = read_params(
        path,
        [
            *("seed=2", "train.optimizer.lr=0.5", "eval.scales=[0.5, 1]", "model.weights=null", "data.root=a=b", "seed=3"),
            "augment=\n  hflip: 0.25  # a value of two lines\n  blur: 0",
        ],
    )
    assert values == {
        "seed": 3,
        "train": {"steps": 5, "optimizer": {"lr": 0.5}},
        "eval": {"scales": [0.5, 1]},
        "model": {"weights": None},
        "data": {"root": "a=b"},
        "augment": {"hflip": 0.25, "blur": 0},
    }


@pytest.mark.parametrize("override", ["seed", "=3", " =3", ""])
def test_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ParamsError, match=r"is not of the form dotted\.key=value, e\.g\. --set train\.steps=500"):
        apply_overrides({}, [override])


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed.x=1", "--set seed.x: seed is a value, not a section. Set seed itself."),
        ("train.optimizer.lr=[1", "--set train.optimizer.lr cannot be read as YAML"),
        ("train={steps: 1, steps: 2}", "--set train cannot be read as YAML: key 'steps' is given twice"),
        ("train=.nan", "--set train holds a value that no parameter takes"),
        (
            "seed=1\nfoo: 2",
            "--set seed gives foo beside its value. Give each key a --set of its own; write a mapping as {a: 1, b: 2}.",
        ),
        ("seed=\n3: 2\nb: 1", "--set seed gives 3, b beside its value."),
    ],
)
def test_override_that_cannot_be_applied_is_named(override: str, problem: str) -> None:
    with pytest.raises(ParamsError) as caught:
        apply_overrides({"seed": 1}, [override])
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("override", ["trian.steps=3", "train..steps=3", "train.=3", "method.cwbass.gama=3"])
def test_override_of_an_unknown_key_is_found_when_it_is_loaded(override: str) -> None:
    values = apply_overrides({"train": {"steps": 5}, "method": {"name": "cw_bass"}}, [override])
    with pytest.raises(ParamsError, match="unknown key"):
        load_params(values, Params)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_dumped_loads_to_the_same(path: Path) -> None:
    params = load_params(read_params(path), Params)
    assert load(dump_params(params)) == params


def test_the_schema_for_editors_offers_the_names_of_the_registries() -> None:
    sections = json_schema()["$defs"]
    assert sections["DataConfig"]["properties"]["layout"]["enum"] == ["folder", "pascal_voc", "cityscapes"]
    optimizer = sections["OptimizerConfig"]["properties"]
    assert (optimizer["name"]["enum"], optimizer["schedule"]["enum"]) == (["sgd", "adamw"], ["poly"])


def test_each_value_says_what_gave_it() -> None:
    values = {"train": {"steps": 50, "warmup_steps": 5, "optimizer": {"lr": 0.5}}, "augment": {"scale": [0.5, 2.0]}}
    origins = {"params.yaml": values, "--set": {"train": {"steps": 60}}}
    text = dump_origins(load_params(apply_overrides(copy.deepcopy(values), ["train.steps=60"]), Params), origins)
    lines = [line.strip() for line in text.splitlines()]
    assert {"steps: 60  # --set", "warmup_steps: 5  # params.yaml", "lr: 0.5  # params.yaml"} <= set(lines)
    assert {"scale: [0.5, 2.0]  # params.yaml", "weight_decay: 0.0001  # default"} <= set(lines)
    assert [line.split("#")[1] for line in lines if "#" in line].count(" --set") == 1


def test_an_empty_section_gives_no_value() -> None:
    text = dump_origins(Params(), {"params.yaml": {"augment": {}}})
    assert "crop_size: 96  # default" in text and "params.yaml" not in text


@pytest.mark.parametrize("name", METHODS)
def test_a_method_needs_nothing_but_its_name(name: str) -> None:
    params = load(f"method: {{name: {name}}}")
    assert type(params.method) is METHODS[name].config_cls
    assert load(dump_params(params)) == params


def test_flatten_joins_keys_and_keeps_empty_mappings() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_every_resolved_key_can_be_overridden_with_its_own_value() -> None:
    flat = flatten(Params().model_dump(mode="json"))
    overrides = [f"{key}={json.dumps(value)}" for key, value in flat.items()]
    assert load_params(apply_overrides({}, overrides), Params) == Params()


DEFAULTS: dict[str, Any] = Params().model_dump(mode="json")
PLACES = [tuple(key.split(".")) for key in flatten(DEFAULTS)] + [(name,) for name in DEFAULTS]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["1e-3", "auto", ".", "255"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=5
)


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES, key=st.none() | st.text(max_size=8))
@example(place=("method", "name"), value="supervised", key=None)
@example(place=("split", "labeled"), value=0.5, key=None)
@example(place=("data",), value={"\r": None}, key=None)
def test_any_change_of_the_defaults_is_valid_or_a_params_error(place: tuple[str, ...], value: Any, key: str | None) -> None:
    values = copy.deepcopy(DEFAULTS)
    section = values
    for part in place[:-1]:
        section = section[part]
    section[place[-1] if key is None else key] = value
    try:
        params = load_params(values, Params)
    except ParamsError as error:
        assert all(line.split(":")[0].strip() for line in str(error).splitlines() if key is None)  # a line names its place
    else:
        assert load(dump_params(params)) == load(dump_origins(params, {})) == params


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:-? \n[]{},&*!|>'\"#%@<0.1etr", max_size=40))
@example("a: !!set {b, c}")
@example("a: !!omap [b: 1]")
@example("--- 1\n--- 2")
def test_any_text_is_a_mapping_or_a_params_error(text: str) -> None:
    try:
        values = parse_yaml(text, "p.yaml")
    except ParamsError as error:
        assert str(error).startswith("p.yaml ")
    else:
        assert all(isinstance(key, str) for key in values)
