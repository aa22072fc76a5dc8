from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cwbass.errors import ParamsError
from cwbass.params import Params, load_params, parse_yaml, read_params
from pipeline.arguments import STEPS, pipeline_arguments

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("step", STEPS)
def test_a_text_holds_the_sections_of_its_step_and_no_other(step: str) -> None:
    text = pipeline_arguments(read_params(TOP / "params.yaml"))[f"{step}_params"]
    assert set(yaml.safe_load(text)) == set(STEPS[step].model_fields)


def test_a_step_reads_back_what_params_yaml_says() -> None:
    values = read_params(TOP / "params.yaml")
    whole = load_params(values, Params)
    for step, text in pipeline_arguments(values).items():
        if step != "data":
            read = load_params(parse_yaml(text, step), STEPS[step.removesuffix("_params")])
            for name in type(read).model_fields:
                assert getattr(read, name) == getattr(whole, name), (step, name)


def test_a_change_reaches_the_text_of_the_steps_that_depend_on_it_alone() -> None:
    def changed(override: str) -> set[str]:
        before, after = (pipeline_arguments(read_params(TOP / "params.yaml", sets)) for sets in ((), (override,)))
        return {name for name in before if before[name] != after[name]}

    assert changed("registry.min_miou=0.5") == {"register_params"}
    assert changed("method.recipe=paper") == {"train_params"}
    assert changed("eval.flip=true") == {"warmup_params", "train_params", "evaluate_params"}
    assert changed("data.root=elsewhere") == {"split_params", "warmup_params", "train_params", "data"}


def test_defaults_are_filled_in_so_that_a_changed_default_is_a_changed_text() -> None:
    texts = pipeline_arguments({"train": {"steps": 10}})
    assert "gallery: 6" in texts["evaluate_params"]


def test_a_typo_in_the_last_section_is_found_before_the_first_step() -> None:
    with pytest.raises(ParamsError, match=r"registry\.min_miuo: unknown key; did you mean 'min_miou'"):
        pipeline_arguments({"registry": {"min_miuo": 0.5}})
