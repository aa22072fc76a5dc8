from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page

from cwbass.data.base import DatasetSpec
from cwbass.reporting.gallery import GalleryItem
from cwbass.reporting.html import write_report

SECTIONS = ["Scores", "Classes", "Gallery", "Training", "Checkpoints", "Mistakes and confidence", "Data"]


@pytest.fixture(scope="module")
def full(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    write_report(path, **run)
    return path


def test_a_full_run_fills_every_section(full: Path) -> None:
    page = Page(full)
    assert page.headings == SECTIONS
    assert page.text.split()[:7] == ["CW-BASS", "trained", "on", "camvid,", "seed", "0:", "report"]
    for words in ("74.3%", "71.7%", "+2.6", "58.3%", "68.8%", "4.3%", "3fa1c09be2d4", "recipe: cwbass"):
        assert words in page.text
    assert "not measured" not in page.text


def test_how_sure_the_gain_is_stands_with_the_scores(run: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", **{**run, "metrics": run["metrics"] | {"miou_gain_interval": [0.012, 0.041]}})
    said = "network and test. 95 % of resampled test images put the gain in mIoU between +1.2 and +4.1; another seed may do otherwise."
    assert said in Page(tmp_path / "report.html").text


def test_the_page_has_no_date_so_that_drawing_it_again_changes_nothing(full: Path) -> None:
    assert not re.search(r"\b20\d\d-\d\d|\b\d\d:\d\d\b", Page(full).text)


def test_the_page_asks_nothing_of_the_network(full: Path) -> None:
    page = Page(full)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    addresses = [
        attributes[key] for _, attributes in page.tags for key in ("src", "href", "srcset", "action") if key in attributes
    ]
    assert len(addresses) == 6 * 7
    assert all(address is not None and address.startswith("data:image/") for address in addresses)
    assert "http://" not in full.read_text(encoding="utf-8")
    assert "https://" not in full.read_text(encoding="utf-8")
    policies = [attributes.get("content") for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_pictures_and_charts_have_a_text_for_those_who_do_not_see_them(full: Path) -> None:
    page = Page(full)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") == "true" for attributes in drawings)
    assert all(attributes.get("scope") in ("col", "row", "colgroup") for tag, attributes in page.tags if tag == "th")


def test_user_text_is_escaped_everywhere(run: dict[str, Any], tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    names = (evil, *run["spec"].class_names[1:])
    rename = dict(zip(run["spec"].class_names, names, strict=True))
    metrics = run["metrics"] | {
        "per_class": {rename[name]: values for name, values in run["metrics"]["per_class"].items()},
        "absent_classes": [evil], "protocol": evil, "weights": evil, "checkpoints": {evil: {"miou": 0.5}},
        "split": {"counts": {evil: 3}, "notes": [evil]},
        "confusion": run["metrics"]["confusion"] | {"class_names": list(names)},
    }  # fmt: skip
    write_report(
        tmp_path / "report.html",
        name=evil,
        metrics=metrics,
        history=[{**row, "retention_per_class": [0.0] * 7} for row in run["history"]],
        gallery=[replace(run["gallery"][0], title=evil)],
        spec=replace(run["spec"], class_names=names),
        params_text=evil,
    )
    page = Page(tmp_path / "report.html")
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) > 10


def test_six_images_stay_below_three_megabytes_even_of_noise(run: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(index: int) -> GalleryItem:
        image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        truth, ours, theirs, pseudo = rng.integers(0, 7, (4, 60, 80), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        return GalleryItem(f"noise {index}", image, truth, ours, theirs, pseudo, rng.random((480, 640), dtype=np.float32))

    path = tmp_path / "report.html"
    write_report(path, **(run | {"gallery": [noise(index) for index in range(6)]}))
    assert path.stat().st_size < 3_000_000


def test_a_lone_evaluation_says_what_it_lacks(run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(
        path,
        name="lone",
        metrics={"miou": 0.5, "per_class": {"sky": {"iou": 0.5}}},
        history=[],
        gallery=[],
        spec=run["spec"],
        params_text="",
    )
    page = Page(path)
    assert page.headings == SECTIONS
    for sentence in (
        "No supervised baseline was scored",
        "No training history was given",
        "No images were chosen",
        "No other checkpoints were scored",
        "Confidence was not recorded",
        "No confusion matrix was recorded",
        "The split was not given",
    ):
        assert sentence in page.text
    assert "gain" not in [attributes.get("class") for _, attributes in page.tags]
    assert "supervised only" not in page.text


def test_nothing_at_all_still_gives_a_page(run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, name="lone", metrics={}, history=[], gallery=[], spec=run["spec"], params_text="")
    assert "No score was measured." in Page(path).text


def test_no_selection_slice_is_said_in_place_of_the_curves(run: dict[str, Any], tmp_path: Path) -> None:
    absent = ("precision", "precision_per_class", "selection_miou", "selection_miou_student")
    history = [{key: value for key, value in row.items() if key not in absent} for row in run["history"]]
    path = tmp_path / "report.html"
    write_report(path, **(run | {"history": history}))
    page = Page(path)
    assert "No selection slice: precision of the pseudo-labels was not measured." in page.text
    assert "mIoU was not measured during training" in page.text


def test_a_class_that_is_predicted_though_no_test_image_shows_it_is_told(run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    sentence = "Not in the test set, but predicted there, so that their IoU is 0 and counts in the mean: ghost."
    write_report(path, **run)
    assert sentence not in Page(path).text
    per_class = run["metrics"]["per_class"] | {"ghost": {"iou": 0.0, "pixels": 0}}
    write_report(path, **(run | {"metrics": run["metrics"] | {"per_class": per_class}}))
    assert sentence in Page(path).text


def test_concerns_stand_above_the_scores(run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, **(run | {"history": [{**row, "nonfinite": 1} for row in run["history"]]}))
    page = Page(path)
    assert page.headings[0] == "Worth a second look"
    assert "38 steps had a loss that was not finite" in page.text  # 2 epochs of warm-up, 18 of each branch


def test_many_classes_leave_out_the_wall_of_numbers(run: dict[str, Any], tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(150))
    spec = DatasetSpec(names, tuple((index, index, 0) for index in range(150)))
    matrix = (np.eye(150, dtype=int) * 9 + 1).tolist()
    history = [{**row, "retention_per_class": [0.5] * 150} for row in run["history"] if row["stage"] == "train"]
    history = [{key: value for key, value in row.items() if key not in ("threshold", "precision_per_class")} for row in history]
    path = tmp_path / "report.html"
    write_report(
        path,
        name="lone",
        metrics={
            "per_class": {name: {"iou": 0.4} for name in names},
            "confusion": {"class_names": names, "matrix": matrix},
        },
        history=history,
        gallery=[],
        spec=spec,
        params_text="",
    )
    assert "With 150 classes the matrix itself is left to metrics.json." in Page(path).text
    assert path.stat().st_size < 400_000
