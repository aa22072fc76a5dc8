"""What follows an image's probabilities, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TinyRun
from torch import Tensor, nn

from cwbass.config import EvalConfig
from cwbass.data.manifest import Manifest
from cwbass.errors import ParamsError
from cwbass.evaluation import POSTPROCESS, postprocessed
from cwbass.evaluation.inference import Predictor, predict_probs
from cwbass.params import Params, json_schema, load_params
from cwbass.steps.evaluate import EvaluateParams, describe_protocol, evaluate
from cwbass.steps.thresholds import _measure
from cwbass.training.identity import decisive


def first_where_red(probs: Tensor, image: Tensor, *, red: int = 128) -> Tensor:
    """Class 0 wherever the image is red enough."""
    certain = torch.zeros_like(probs)
    certain[0] = 1
    return torch.where(image[0] >= red, certain, probs)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSTPROCESS, "first_where_red", first_where_red)


class ByGreen(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cat((image[:, 1:2].float() * 0, image[:, 1:2].float() / 64), 1)


def test_it_is_given_the_mean_over_all_views_and_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    config = EvalConfig(flip=True, postprocess="first_where_red", postprocess_options={"red": 50})
    found = Predictor(config, torch.device("cpu"), autocast_dtype=None).probs(ByGreen(), image)
    plain = predict_probs(ByGreen(), torch.from_numpy(image).permute(2, 0, 1)[None], config)[0]
    red = torch.from_numpy(image[..., 0] >= 50)
    assert red.any() and not red.all()
    assert torch.equal(found[:, ~red], plain[:, ~red])
    assert torch.equal(found[:, red], torch.tensor([[1.0], [0.0]]).expand(2, int(red.sum())))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda probs, image: probs[:, :-1], r"of shape \[2, 3, 5\] for \[2, 4, 5\]"),
        (lambda probs, image: probs.log() * 0, "that are not finite"),
    ],
)
def test_what_gives_no_probabilities_is_named(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor], said: str) -> None:
    monkeypatch.setitem(POSTPROCESS, "broken", broken)
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    with pytest.raises(ParamsError, match=rf"eval\.postprocess: broken gives probabilities {said}"):
        postprocessed(torch.stack((torch.zeros(4, 5), torch.ones(4, 5))), image, EvalConfig(postprocess="broken"))


def test_scores_are_of_what_it_gives_and_say_so(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = EvalConfig(gallery=0, postprocess="first_where_red", postprocess_options={"red": 0})
    files: dict[str, Any] = {"checkpoint": tiny_run.train, "manifest": tiny_run.manifest, "data_root": tiny_run.data}
    metrics = evaluate(EvaluateParams(eval=config), **files).metrics
    names = list(metrics["per_class"])
    assert all(not metrics["per_class"][name]["iou"] for name in names[1:])
    assert metrics["per_class"][names[0]]["iou"] == pytest.approx(metrics["pixel_accuracy"])
    assert metrics["protocol"] == "whole scale:1 first_where_red(red=0)"
    plain = json.loads((tiny_run.reports / "metrics.json").read_text())
    assert plain["protocol"] == "whole scale:1"


def test_thresholds_are_measured_of_the_network_alone_as_pseudo_labels_are_made(tiny_run: TinyRun) -> None:
    checkpoint = tiny_run.warmup / "warmup.pt"
    split, own = Manifest.read(tiny_run.manifest), tiny_run.params.eval
    after = own.model_copy(
        update={"postprocess": "first_where_red", "postprocess_options": {"red": 0}, "flip": True, "scales": [0.5, 1.0, 1.5]}
    )
    predictors = (Predictor(config, torch.device("cpu"), autocast_dtype=None) for config in (own, after))
    plain, other = (_measure(checkpoint, split, tiny_run.data, predictor) for predictor in predictors)
    assert torch.equal(other.reliability.total, plain.reliability.total)
    scored = evaluate(  # whose scores are those of the step
        EvaluateParams(eval=after), checkpoint=checkpoint, manifest=tiny_run.manifest, data_root=tiny_run.data
    )
    assert sum(each["iou"] > 0 for each in scored.metrics["per_class"].values() if each["iou"] is not None) == 1


def test_names_and_options_are_checked_where_parameters_are_loaded() -> None:
    with pytest.raises(ParamsError, match=r"eval\.postprocess: is 'crf', should be one of .*first_where_red"):
        load_params({"eval": {"postprocess": "crf"}}, EvaluateParams)
    own = {"postprocess": "first_where_red", "postprocess_options": {"blue": 3}}
    with pytest.raises(ParamsError, match=r"eval\.postprocess_options\.blue: is no option of first_where_red"):
        load_params({"eval": own}, Params)
    with pytest.raises(ParamsError, match=r"eval\.postprocess_options\.red: eval\.postprocess is null"):
        load_params({"eval": {"postprocess_options": {"red": 3}}}, Params)
    assert json_schema()["$defs"]["EvalConfig"]["properties"]["postprocess"]["enum"] == [*POSTPROCESS, None]


def test_without_one_protocol_and_identity_are_what_they_were() -> None:
    assert describe_protocol(EvalConfig(flip=True)) == "whole scale:1 flip"
    keys = decisive(Params().model_dump(mode="json"))
    assert not any(key.startswith("eval.postprocess") for key in keys)
