from __future__ import annotations

from typing import Any

import pytest
import yaml

from cwbass.config import DataConfig, ModelConfig, TrainConfig
from cwbass.errors import ParamsError
from cwbass.markdown import markdown_text
from cwbass.params import Params, load_params
from cwbass.registry.model_card import model_card

CONFIG = {"classes": ["sky", "road", "cyclist", "boat"]}
METRICS: dict[str, Any] = {
    "miou": 0.75, "baseline_miou": 0.7, "miou_gain": 0.05, "ece": 0.021, "images": 1200, "seed": 3,
    "pixel_accuracy": 0.9, "boundary_iou": None, "weights": "teacher", "protocol": "whole image", "split_hash": "ab" * 32,
    "per_class": {
        "sky": {"iou": 0.95, "baseline_iou": 0.94, "pixels": 750},
        "road": {"iou": 0.8, "baseline_iou": 0.85, "pixels": 200},
        "cyclist": {"iou": 0.499, "baseline_iou": 0.31, "pixels": 50},
        "boat": {"iou": None, "baseline_iou": None, "pixels": 0},
    },
    "absent_classes": ["boat"],
    "split": {"counts": {"labeled": 46, "unlabeled": 1313}, "notes": ["Drawn with seed 3 | stratified."]},
}  # fmt: skip
PROVENANCE = {
    "created": "2026-01-02T03:04:05+00:00",
    "git": {"revision": "c0ffee", "dirty": True},
    "checkpoint": {"sha256": "cd" * 32, "stage": "train", "step": 4000},
    "versions": {"torch": "2.6.0"},
}
PARAMS = Params(
    seed=3,
    data=DataConfig(root="data/camvid", layout="pascal_voc"),
    model=ModelConfig(arch="fpn", encoder="resnet18", weights="imagenet"),
    train=TrainConfig(steps=4000, warmup_steps=400, batch_labeled=4, batch_unlabeled=8, accumulate=2),
)


def card(config: dict[str, Any] = CONFIG, params: Params = PARAMS, **changes: Any) -> str:
    return model_card("road-scenes", config=config, metrics=METRICS | changes, provenance=PROVENANCE, params=params)


def section(text: str, title: str) -> list[str]:
    """Lines of a section, with a plain hyphen for the dash of no number and for the minus sign."""
    text = text.replace("\N{EN DASH}", "-").replace("\N{MINUS SIGN}", "-")
    return text.split(f"\n## {title}\n\n")[1].split("\n## ")[0].rstrip().splitlines()


def front_matter(text: str) -> dict[str, Any]:
    empty, matter, _ = text.split("---\n", 2)
    assert empty == ""
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def test_front_matter_holds_the_scores_as_fractions() -> None:
    matter = front_matter(card())
    assert matter["library_name"] == "cwbass"
    [model] = matter["model-index"]
    [result] = model["results"]
    assert model["name"] == "road-scenes"
    assert result["dataset"] == {"name": "camvid", "type": "camvid", "split": "test", "revision": "ab" * 32}
    assert {score["type"]: score["value"] for score in result["metrics"]} == {"mean_iou": 0.75, "accuracy": 0.9, "ece": 0.021}


@pytest.mark.parametrize(
    ("license", "matter", "said"),
    [
        (
            None,
            {"license": "unknown"},
            "Not stated. State it as an SPDX expression, say `Apache-2.0`, with `registry.license` in",
        ),
        ("Apache-2.0", {"license": "apache-2.0"}, "Apache-2.0. Weights inherit"),
        ("MIT OR CC-BY-4.0", {"license": "other", "license_name": "MIT OR CC-BY-4.0"}, "MIT OR CC-BY-4.0. Weights inherit"),
        ("LicenseRef-Ours", {"license": "other", "license_name": "LicenseRef-Ours"}, "LicenseRef-Ours. Weights inherit"),
    ],
)
def test_the_licence_is_the_one_that_was_stated_or_is_said_to_be_missing(
    license: str | None, matter: dict[str, str], said: str
) -> None:
    text = model_card("m", config=CONFIG, metrics=METRICS, provenance=PROVENANCE, params=PARAMS, license=license)
    found = front_matter(text)
    assert {key: value for key, value in found.items() if key.startswith("license")} == matter
    (line,) = section(text, "Licence")
    assert line.startswith(said)


@pytest.mark.parametrize("license", ["Apache 2.0", "", "MIT\nevil: true", "MIT AND", "'MIT'"])
def test_a_licence_that_is_no_spdx_expression_is_refused(license: str) -> None:
    with pytest.raises(ParamsError, match=r"^registry\.license: "):
        load_params({"registry": {"license": license}}, Params)


def test_the_hub_reads_the_front_matter() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    data = hub.ModelCard(card()).data
    assert data.model_name == "road-scenes"
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "mean_iou": 0.75, "accuracy": 0.9, "ece": 0.021,
    }  # fmt: skip
    assert {result.dataset_revision for result in data.eval_results} == {"ab" * 32}


def test_scores_stand_beside_the_baseline_in_per_cent() -> None:
    lines = section(card(), "Scores")
    assert lines[0].startswith(
        "In per cent, over all pixels of 1,200 test images together. Protocol: whole image. Weights: teacher."
    )
    assert "| mIoU | 75.0 | 70.0 | +5.0 |" in lines
    assert "| Pixel accuracy | 90.0 | - | - |" in lines
    assert not any("Boundary IoU" in line for line in lines)  # was not measured
    assert lines[-1] == "Calibration: confidence and accuracy differ by 2.1 points on average (ECE)."


def test_every_class_has_its_share_and_iou() -> None:
    assert section(card(), "Classes") == [
        "| Index | Class | Share of test pixels | IoU | Baseline IoU | Change |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0 | sky | 75.0 | 95.0 | 94.0 | +1.0 |",
        "| 1 | road | 20.0 | 80.0 | 85.0 | -5.0 |",
        "| 2 | cyclist | 5.0 | 49.9 | 31.0 | +18.9 |",
        "| 3 | boat | 0.0 | - | - | - |",
    ]


def test_the_label_budget_is_told() -> None:
    lines = section(card(), "Data")
    assert "| Dataset | camvid (pascal\\_voc) |" in lines
    assert "| Images: labeled | 46 |" in lines
    assert "| Images: unlabeled | 1,313 |" in lines
    assert f"| Split | {'ab' * 32} |" in lines
    assert lines[-1] == "- Drawn with seed 3 \\| stratified."


def test_the_recipe_counts_whole_batches() -> None:
    lines = section(card(), "Recipe")
    assert "| Method | cw\\_bass (cwbass) |" in lines
    assert "| Batch | 8 labelled + 16 unlabelled crops |" in lines  # accumulate 2
    assert "| Length | 4000 steps |" in lines
    by_epochs = PARAMS.model_copy(update={"train": TrainConfig(epochs=7)})
    assert "| Length | 7 epochs |" in section(card(params=by_epochs), "Recipe")


def test_limitations_name_weak_and_unknown_classes() -> None:
    assert section(card(), "Limitations") == [
        "- Every score is of one run with seed 3 on one split; another seed or other images give other numbers.",
        "- Weak classes, IoU below 50%: cyclist (49.9).",
        "- Classes nothing is known of, for want of test pixels or of a measurement: boat.",
    ]


def test_a_champion_to_compare_with_is_not_called_supervised() -> None:
    given = card(baseline_method="cw_bass", miou_gain=-0.1)
    assert any("The baseline is another model." in line for line in section(given, "Scores"))
    assert "No supervised baseline" in section(given, "Limitations")[-1]


def test_limitations_tell_what_the_baseline_says() -> None:
    assert "higher mIoU" in section(card(miou_gain=-0.001), "Limitations")[-1]
    assert "No supervised baseline" in section(card(miou_gain=None), "Limitations")[-1]


def test_who_calls_the_network_is_told_the_protocol_of_the_scores() -> None:
    text = card(protocol="slide:512/341 scale:0.5,1 flip")
    assert "mirror images of the scores' protocol (slide:512/341 scale:0.5,1 flip) are up to" in section(text, "Loading")[-1]


def test_provenance_names_the_checkpoint_and_the_commit() -> None:
    lines = section(card(), "Provenance")
    assert "| Git revision | c0ffee, with uncommitted changes |" in lines
    assert f"| Checkpoint (SHA-256) | {'cd' * 32} |" in lines
    assert "| Stage, step | train, 4000 |" in lines
    assert "| torch | 2.6.0 |" in lines


def test_the_least_metrics_make_a_card_that_says_what_is_missing() -> None:
    least = {"miou": 0.4, "split_hash": "ab" * 32, "weights": "student"}
    text = model_card("m", config=CONFIG, metrics=least, provenance={}, params=Params())
    assert "Protocol: not recorded" in text
    assert section(text, "Scores")[-1] == "Calibration was not measured."
    assert "| 3 | boat | - | - | - | - |" in section(text, "Classes")
    assert "sky, road, cyclist, boat." in text
    assert "| Git revision | not in a repository |" in text
    assert [score["value"] for score in front_matter(text)["model-index"][0]["results"][0]["metrics"]] == [0.4]


def test_names_cannot_break_the_card() -> None:
    nasty = "a|b\n\n---\n# <img src=x> [c](http://d) `e`"
    text = card({"classes": [nasty]}, per_class={nasty: {"iou": 0.1, "pixels": 5}})
    [row] = section(text, "Classes")[2:]
    assert row == r"| 0 | a\|b --- # \<img src=x\> \[c\](http://d) \`e\` | 100.0 | 10.0 | - | - |"
    assert "<img" not in text.replace(r"\<img", "")
    assert front_matter(text)["library_name"] == "cwbass"


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [("road", "road"), ("traffic_light", r"traffic\_light"), ("a \t\n b", "a b"), ("back\\slash", r"back\\slash"), (3, "3")],
)
def test_plain_text_stays_plain(plain: object, escaped: str) -> None:
    assert markdown_text(plain) == escaped
