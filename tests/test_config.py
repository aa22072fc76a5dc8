from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cwbass.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    RegistryConfig,
    Section,
    SplitConfig,
    SynthesizeConfig,
    TrainConfig,
)
from cwbass.methods import METHODS
from cwbass.methods.supervised import SupervisedConfig
from cwbass.params import Params

NAN, INF = float("nan"), float("inf")
FRACTION = ([0.0, 0.5, 1.0, 0, 1], [-0.001, 1.001, NAN, "0.5", None, True])
POSITIVE = ([1e-9, 1.0, 1000, 7], [0.0, -1.0, INF, NAN, "1"])
NOT_NEGATIVE = ([0.0, 1e9], [-1e-9, INF, NAN])
COUNT = ([1, 10**6], [0, -1, 1.0, "1", True, None])
COUNT_OR_NONE = ([1, None], [0, 1.5])

BOUNDS: list[tuple[type[Section], str, tuple[list[Any], list[Any]]]] = [
    (DataConfig, "ignore_index", ([0, 255], [-1, 256, 255.0])),
    (DataConfig, "colors", ([None, {}, {"sky": (0, 128, 255)}], [{"sky": (0, 0)}, {"sky": (0, 0, 256)}, {"sky": (-1, 0, 0)}])),
    (DataConfig, "merge", ([{}, {"road": ["lane", "curb"]}], [{"road": "lane"}, None])),
    (SynthesizeConfig, "seed", ([0, 1], [-1])),
    (SynthesizeConfig, "labeled", ([1], [0])),
    (SynthesizeConfig, "unlabeled", ([0], [-1])),
    (SynthesizeConfig, "height", ([32], [31])),
    (SynthesizeConfig, "width", ([32], [31])),
    (SplitConfig, "labeled", ([None, 1, 500, 0.01, 1.0], [0, -1, 0.0, 1.5, "1/8"])),
    (SplitConfig, "test", FRACTION),
    (SplitConfig, "selection", FRACTION),
    (SplitConfig, "min_selection", COUNT),
    (ModelConfig, "mean", ([(0.0, 0.5, 1.0)], [(0.5, 0.5), (0.5, 0.5, 1.5), (124, 116, 104)])),
    (ModelConfig, "std", ([(0.2, 0.2, 58.0)], [(0.2, 0.0, 0.2), (0.2, -0.2, 0.2), (0.2, INF, 0.2)])),
    (
        ModelConfig,
        "options",
        ([{}, {"encoder_output_stride": 8, "dropout": 0.1, "sizes": [1, 2]}], [{"a": None}, {"a": {"b": 1}}]),
    ),
    (AugmentConfig, "crop_size", ([8, 769], [7, 321.0])),
    (AugmentConfig, "scale", ([(0.5, 2.0), (1.0, 1.0)], [(0.0, 1.0), (2.0, 0.5), (1.0,)])),
    (AugmentConfig, "blur_sigma", ([(0.1, 2.0)], [(0.0, 2.0), (2.0, 0.1)])),
    (AugmentConfig, "hue", ([0.0, 0.5], [-0.1, 0.51])),
    *(
        (AugmentConfig, name, FRACTION)
        for name in ("hflip", "jitter", "brightness", "contrast", "saturation", "grayscale", "blur")
    ),
    (OptimizerConfig, "lr", POSITIVE),
    (OptimizerConfig, "encoder_lr_factor", NOT_NEGATIVE),
    (OptimizerConfig, "weight_decay", NOT_NEGATIVE),
    (OptimizerConfig, "poly_power", NOT_NEGATIVE),
    (OptimizerConfig, "reference_batch", COUNT_OR_NONE),
    (OptimizerConfig, "max_grad_norm", ([None, 0.5], [0.0, -1.0, INF])),
    (EvalConfig, "protocol", (["whole", "slide"], ["resize"])),
    (EvalConfig, "window", ([512], [15])),
    (EvalConfig, "stride", ([8, 341], [7])),
    (EvalConfig, "scales", ([[1.0], [0.5, 1.0, 2.0]], [[], [0.0], [1.0, -1.0]])),
    (EvalConfig, "weights", (["auto", "student", "teacher"], ["ema"])),
    (EvalConfig, "gallery", ([0, 6], [-1])),
    (RegistryConfig, "name", (["a", "cwbass-shapes", "v2"], ["", "-a", "a-", "Cwbass", "a_b", "a/b", "a\n", "ä"])),
    (RegistryConfig, "min_miou", FRACTION),
    (RegistryConfig, "min_gain", ([-1.0, 0.0, 1.0], [-1.01, 1.01, NAN])),
    (SupervisedConfig, "ema_decay", FRACTION),
]
TRAIN_BOUNDS: list[tuple[str, tuple[list[Any], list[Any]]]] = [
    ("warmup_steps", ([0, 99], [-1, 100, 101])),
    ("batch_labeled", COUNT),
    ("batch_unlabeled", COUNT),
    ("accumulate", COUNT),
    ("epoch_steps", COUNT_OR_NONE),
    ("early_stop", COUNT_OR_NONE),
    ("precision", (["auto", "float32", "bfloat16", "float16"], ["float8"])),
    ("device", (["auto", "cpu", "cuda"], ["cuda:1", "mps"])),
    ("workers", ([0, 8], [-1])),
    ("max_nonfinite", COUNT),
    ("baseline", ([True, False], ["yes", 1])),
]
GOOD = [(kind, field, value) for kind, field, (good, _) in BOUNDS for value in good]
BAD = [(kind, field, value) for kind, field, (_, bad) in BOUNDS for value in bad]


@pytest.mark.parametrize(("kind", "field", "value"), GOOD)
def test_value_on_or_inside_the_bounds_is_taken(kind: type[Section], field: str, value: Any) -> None:
    assert getattr(kind(**{field: value}), field) == value


@pytest.mark.parametrize(("kind", "field", "value"), BAD)
def test_value_outside_the_bounds_is_refused(kind: type[Section], field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind(**{field: value})
    assert field in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, (good, _) in TRAIN_BOUNDS for value in good])
def test_training_value_on_or_inside_the_bounds_is_taken(field: str, value: Any) -> None:
    assert getattr(TrainConfig(steps=100, **{field: value}), field) == value


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, (_, bad) in TRAIN_BOUNDS for value in bad])
def test_training_value_outside_the_bounds_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        TrainConfig(steps=100, **{field: value})


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "epochs": 5}, {"steps": 0}, {"epochs": 0}, {"steps": None, "epochs": None}])
def test_budget_is_exactly_one_positive_number(budget: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"steps or epochs|greater than or equal to 1"):
        TrainConfig(**budget)


def test_warmup_may_be_longer_than_a_number_of_epochs() -> None:
    assert TrainConfig(epochs=2, warmup_steps=1000).warmup_steps == 1000


def test_windows_must_overlap_only_where_there_are_windows() -> None:
    assert EvalConfig(protocol="whole", window=64, stride=65).stride == 65
    assert EvalConfig(protocol="slide", window=64, stride=64).stride == 64
    with pytest.raises(ValidationError, match="stride is 65 and window 64: pixels between windows would never be seen"):
        EvalConfig(protocol="slide", window=64, stride=65)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Params().train.steps = 5
    with pytest.raises(ValidationError, match="frozen"):
        Params().seed = 5


def test_every_field_says_what_it_is() -> None:
    def walk(kind: type[Section]) -> list[str]:
        names = []
        for name, field in kind.model_fields.items():
            nested = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Section) else None
            names += walk(nested) if nested else [] if field.description else [f"{kind.__name__}.{name}"]
        return names

    kinds = {kind for kind, *_ in BOUNDS} | {TrainConfig} | {method.config_cls for method in METHODS.values()}
    assert [
        name for kind in sorted(kinds, key=lambda kind: kind.__name__) for name in walk(kind) if not name.endswith(".name")
    ] == []


def test_methods_published_numbers_stay_beside_the_projects_own() -> None:
    method: Any = Params().method
    assert (method.name, method.recipe) == ("cw_bass", "cwbass")
    assert method.paper.threshold.rule == "logistic"
    assert method.paper.gamma == 1.0
    assert method.terms is method.cwbass
