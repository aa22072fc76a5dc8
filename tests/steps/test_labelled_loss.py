"""What the parameters say of the labelled loss reaches it in every stage, the baseline's too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyRun, make_split, sections, smoke_params, training, warm
from torch import Tensor

from cwbass.config import LossConfig
from cwbass.data.manifest import Manifest
from cwbass.errors import ParamsError
from cwbass.losses import LABELED_LOSSES, labeled_loss
from cwbass.losses.supervised import HardPixels, balanced_class_weights, supervised_cross_entropy
from cwbass.params import Params, load_params, parse_yaml
from cwbass.steps.training import WarmupParams, start_run
from cwbass.training.resume import Resume

STEPS = {"steps": 4, "warmup_steps": 2, "epoch_steps": 2}


def losses(folder: Path) -> dict[str, float]:
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return {row["stage"]: row["loss_sup"] for row in rows}


def raised(logits: Tensor, mask: Tensor, *, by: float, **given: Any) -> Tensor:
    return supervised_cross_entropy(logits, mask, **given) + by


OHEM = {"ohem": {"threshold": 0.02, "min_share": 0.5}}


@pytest.mark.parametrize("changes", [{"class_balance": 1.0}, OHEM, {"loss": {"name": "raised", "options": {"by": 4.0}}}])
def test_it_changes_the_labelled_loss_of_every_stage(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LABELED_LOSSES, "raised", raised)
    plain, changed = smoke_params(**STEPS), smoke_params(**STEPS, **changes)
    make_split(TinyRun(tmp_path, shapes, plain))
    found = {}
    for name, params in (("plain", plain), ("changed", changed)):
        run = TinyRun(tmp_path, shapes, params)
        warm(run, tmp_path / name / "warmup")
        start = tmp_path / "plain" / "warmup" / "warmup.pt"  # the same weights for both
        resume = Resume(force=("train.class_balance", "train.ohem", "train.loss"))
        training(run, tmp_path / name / "train", warmup=start, resume=resume)
        found[name] = losses(tmp_path / name / "warmup") | losses(tmp_path / name / "train")
    assert found["plain"].keys() == found["changed"].keys() == {"warmup", "baseline", "train"}
    for stage, loss in found["plain"].items():
        assert loss != pytest.approx(found["changed"][stage], rel=1e-3), stage
        assert "loss" not in changes or found["changed"][stage] == pytest.approx(loss + 4, rel=1e-5)  # a constant moves nothing
        assert "ohem" not in changes or found["changed"][stage] > loss  # the hard half of the pixels


def test_a_run_says_what_a_labelled_pixel_counts(shapes: Path, tmp_path: Path) -> None:
    params = smoke_params(**STEPS, class_balance=1.0, ohem={"threshold": 0.7, "min_share": 0.25})
    manifest = make_split(TinyRun(tmp_path, shapes, params))
    nowhere = {"manifest": manifest, "data_root": shapes, "out_dir": tmp_path / "none", "work_dir": None, "resume": Resume()}
    run = start_run("warmup", sections(params, WarmupParams), **nowhere)
    assert run.hard_pixels == HardPixels(threshold=0.7, min_share=0.25)
    assert start_run("warmup", sections(smoke_params(**STEPS), WarmupParams), **nowhere).hard_pixels is None
    labeled = Manifest.read(manifest).labeled
    pixels = torch.tensor([sample.pixels for sample in labeled]).sum(0)
    assert run.class_weight is not None
    assert torch.equal(run.class_weight, balanced_class_weights(pixels.tolist(), 1.0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{}", "train.loss.options.by: is required by raised and not given"),
        ("{by: 1.0, too: 2}", "train.loss.options.too: is no option of raised"),
        ("{by: 1.0, ignore_index: 3}", "train.loss.options.ignore_index: is no option of raised"),  # the dataset says it
    ],
)
def test_options_of_a_loss_that_do_not_fit_it_are_named(options: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELED_LOSSES, "raised", raised)
    with pytest.raises(ParamsError) as error:
        load_params(parse_yaml(f"train: {{steps: 1, loss: {{name: raised, options: {options}}}}}", "params.yaml"), Params)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("entry", "seen"),
    [
        (lambda logits, mask, **given: logits.mean((1, 2, 3)), "shape [2], torch.float32"),
        (lambda logits, mask, **given: mask.sum(), "shape [], torch.int64"),
        (lambda logits, mask, **given: 0.5, "float"),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused_by_name(entry: Any, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELED_LOSSES, "wide", entry)
    loss = labeled_loss(LossConfig(name="wide"))
    with pytest.raises(ParamsError) as error:
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), ignore_index=255)
    assert str(error.value).startswith(f"train.loss: wide gives {seen}; a loss is one number, [] float.")


def test_a_loss_without_a_gradient_is_refused_where_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELED_LOSSES, "counted", lambda logits, mask, **given: (logits.argmax(1) != mask).float().mean())
    loss = labeled_loss(LossConfig(name="counted"))
    logits, mask = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ParamsError, match=r"^train\.loss: counted gives a number that has no gradient"):
        loss(logits, mask, ignore_index=255)
    with torch.no_grad():
        assert loss(logits, mask, ignore_index=255).item() == 0  # all are of class 0
