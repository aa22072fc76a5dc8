from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from cwbass.comparison.variants import CHANGES, PLAIN, TERMS, ablation_variants, chosen, method_variants, own_variants
from cwbass.errors import ParamsError
from cwbass.methods import METHODS
from cwbass.methods.base import MethodConfig
from cwbass.methods.cw_bass import PAPER, CwBassConfig, CwBassTerms
from cwbass.methods.supervised import Supervised
from cwbass.params import Params, flatten, load_params

PARAMS = load_params({"method": {"name": "cw_bass", "cwbass": {"unsup_weight": 0.7}}, "warmup": {"ema_decay": 0.9}}, Params)
# What each term changes in the recipe, and to what.
OFF = {
    "soft-labels": {"labels": "hard"},
    "threshold": {"threshold.rule": "strict", "threshold.strict": 0.0},
    "confidence-weight": {"gamma": 0.0},
    "decay": {"decay.rule": "none"},
    "boundary": {"boundary.weight": 0.0},
    "strong-views": {"views": "same"},
    "cutmix": {"cutmix": 0.0},
    "classmix": {"classmix": 0.0},
    "feature-drop": {"feature_drop": 0.0},
    "shared-statistics": {"norm": "labeled"},
    "fade": {"fade": 0.0},
}


def changes(name: str) -> dict[str, object]:
    """In what a variant differs from the recipe of the parameters."""
    variants = ablation_variants(PARAMS)
    recipe, variant = (flatten(terms_of(variants[each]).model_dump()) for each in ("cwbass", name))
    return {key: variant[key] for key in variant if variant[key] != recipe[key]}


def terms_of(config: object) -> CwBassTerms:
    assert isinstance(config, CwBassConfig)
    return config.terms


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_switched_off_alone_or_stays_alone(term: str) -> None:
    assert changes(f"no-{term}") == OFF[term]
    assert changes(f"only-{term}") == {key: value for other, off in OFF.items() if other != term for key, value in off.items()}


def test_plain_has_every_term_off_and_the_recipes_stay_as_the_parameters_have_them() -> None:
    assert changes(PLAIN) == {key: value for off in OFF.values() for key, value in off.items()}
    variants = ablation_variants(PARAMS)
    assert terms_of(variants["cwbass"]).unsup_weight == 0.7
    assert terms_of(variants["paper"]) == PAPER
    assert len(variants) == 4 + 2 * len(TERMS) + len(CHANGES)


def test_the_method_of_the_parameters_keeps_its_section_and_others_have_their_defaults() -> None:
    variants = method_variants(["unimatch", "cw_bass", "supervised"], PARAMS)
    assert list(variants) == ["supervised", "unimatch", "cw_bass"]
    assert variants["cw_bass"] is PARAMS.method
    assert variants["supervised"] is PARAMS.warmup
    assert variants["unimatch"] == type(variants["unimatch"])(name="unimatch")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ParamsError, match=r"--methods names unimach; choose from supervised, cw_bass, mean_teacher"):
        method_variants(["unimach"], PARAMS)
    with pytest.raises(ParamsError, match=r"--variants names no-such; choose from supervised, cwbass, paper"):
        chosen(ablation_variants(PARAMS), ["no-such"])


def test_a_choice_of_variants_keeps_supervised() -> None:
    assert list(chosen(ablation_variants(PARAMS), ["paper"])) == ["supervised", "paper"]


def test_a_variant_of_a_method_differs_in_the_keys_that_it_names() -> None:
    texts = [
        "tau0=unimatch threshold.tau=0",
        "unimatch=unimatch cutmix=1.0 view_weight=0.5",
        "paper=cw_bass recipe=paper",
        "louder=cw_bass",
    ]
    variants = own_variants([*texts, 'boxes=cps area="[0.1, 0.2]"'], PARAMS)
    assert list(variants) == ["tau0", "unimatch", "paper", "louder", "boxes"]
    plain = flatten(method_variants(["unimatch"], PARAMS)["unimatch"].model_dump())
    assert flatten(variants["tau0"].model_dump()) == {**plain, "threshold.tau": 0.0}
    assert flatten(variants["unimatch"].model_dump()) == {**plain, "cutmix": 1.0, "view_weight": 0.5}
    assert variants["paper"].model_dump() == {**PARAMS.method.model_dump(), "recipe": "paper"}
    assert variants["louder"] == PARAMS.method  # of which the parameters have the section
    assert variants["boxes"].model_dump()["area"] == (0.1, 0.2)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["tau0"], "write NAME=METHOD KEY=VALUE ..., as in 'tau0=unimatch threshold.tau=0'"),
        (["tau0=unimatch 'x"], "write NAME=METHOD"),
        (["tau0=unimach"], "--variant tau0 is of method unimach; choose from supervised, cw_bass"),
        (["tau0=unimatch threshold.tua=0"], "--variant tau0: method.threshold.tua"),
        (["tau0=unimatch threshold.tau=2"], "--variant tau0: method.threshold.tau"),
        (["tau0=unimatch tau"], "--variant tau0: --set 'method.tau' is not of the form"),
        (["fixmatch=unimatch"], "--variant fixmatch: the name is taken"),
        (["supervised=supervised"], "--variant supervised: the name is taken"),
        (["a=unimatch", "a=fixmatch"], "--variant a: the name is taken"),
    ],
)
def test_a_variant_that_is_none_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(ParamsError) as error:
        own_variants(texts, PARAMS)
    assert said in str(error.value)


def test_the_variants_that_the_docs_name_for_cityscapes_are_what_each_method_says_was_published_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    found = own_variants(re.findall(r"--variant '([^']+)'", page), PARAMS)
    numbers = {name: flatten(method.model_dump(exclude_defaults=True)) for name, method in found.items()}
    assert {name: {key: value for key, value in each.items() if key != "name"} for name, each in numbers.items()} == {
        "fixmatch": {"threshold.tau": 0.0},
        "unimatch": {"threshold.tau": 0.0},
        "corrmatch": {"tau": 0.0, "momentum": 1.0},
        "dssn": {"rule": "all"},
        "cps": {"unsup_weight": 5.0},
    }


class OwnConfig(MethodConfig):
    name: Literal["own"] = "own"
    depth: int
    width: float = 2.0
    terms_off: ClassVar[Mapping[str, Sequence[str]]] = {"deep": ["depth=0"], "wide": ["width=1.0"]}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setitem(METHODS, "own", type("Own", (Supervised,), {"config_cls": OwnConfig}))
    return load_params({"method": {"name": "own", "depth": 5}}, Params)


def test_a_method_that_names_its_terms_is_taken_apart_by_them(own: Params) -> None:
    variants = ablation_variants(own)
    assert list(variants) == ["supervised", "own", "no-deep", "no-wide", "plain", "only-deep", "only-wide"]
    numbers = [(config.depth, config.width) for config in variants.values() if isinstance(config, OwnConfig)]
    assert numbers == [(5, 2.0), (0, 2.0), (5, 1.0), (0, 1.0), (5, 1.0), (0, 2.0)]


def test_the_only_term_of_a_method_has_one_row(own: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnConfig, "terms_off", {"deep": ["depth=0"]})
    assert list(ablation_variants(own)) == ["supervised", "own", "no-deep"]


def test_a_method_without_defaults_for_all_its_keys_is_told_by_them(own: Params) -> None:
    with pytest.raises(ParamsError, match=r"method\.depth: is required and not given"):
        method_variants(["own"], PARAMS)
    assert method_variants(["own"], own)["own"] is own.method
