from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from PIL import Image

from cwbass.data.base import DatasetSpec
from cwbass.evaluation.probes import MAX_FRAMES, ProbeBook
from cwbass.reporting.flight import compact, write_flight
from cwbass.reporting.html import write_report

EVIL = '</script><script>alert("1")</script>'


@pytest.fixture(scope="module")
def path(flight: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("flight") / "flight.html"
    write_flight(page, **flight)
    return page


def test_every_epoch_has_its_numbers_and_pictures_and_the_last_is_shown(path: Path) -> None:
    page = Page(path)
    assert page.headings == ["Images", "Classes", "Over time", "Thresholds after the warm-up"]
    frames = [(tag, attributes) for tag, attributes in page.tags if "data-frame" in attributes]
    assert {attributes["data-frame"] for _, attributes in frames} == {str(index) for index in range(18)}
    assert {attributes["data-frame"] for _, attributes in frames if "hidden" not in attributes} == {"17"}
    assert sum(tag == "img" for tag, _ in frames) == 2 * 4 * 18
    assert sum(tag == "tbody" for tag, _ in frames) == 18
    sliders = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [(each["max"], each["value"]) for each in sliders] == [("17", "17")]
    for words in ("epoch 18, step 4,000", "1.23M", "1M", "235k", "-2.1", "all classes", "the lowest threshold asked for"):
        assert words in page.text, words


def test_the_page_has_no_date_so_that_drawing_it_again_changes_nothing(path: Path) -> None:
    assert not re.search(r"\b20\d\d-\d\d|\b\d\d:\d\d\b", Page(path).text)


def test_charts_have_a_line_that_stands_at_the_last_epoch_and_knows_where_the_others_are(path: Path) -> None:
    cursors = [attributes for tag, attributes in Page(path).tags if tag == "line" and attributes.get("class") == "cursor"]
    assert len(cursors) == 7
    for cursor in cursors:
        places = str(cursor["data-at"]).split()
        assert len(places) == 18
        assert cursor["x1"] == cursor["x2"] == places[-1]
        assert (places[0], places[-1]) == ("46", "438")  # the edges of the plot


def test_the_page_lets_its_own_script_run_and_nothing_else(path: Path) -> None:
    page = Page(path)
    text = path.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]
    assert policies == [f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]
    assert "http://" not in text
    assert "https://" not in text
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert all(source.startswith("data:image/") for source in sources)
    with Image.open(io.BytesIO(base64.b64decode(sources[-1].split(",")[1]))) as truth:
        assert truth.size == (16, 12)


def test_names_of_users_are_escaped(flight: dict[str, Any], tmp_path: Path) -> None:
    names = (EVIL, *flight["spec"].class_names[1:])
    spec, sweep = replace(flight["spec"], class_names=names), replace(flight["sweep"], class_names=names)
    book = ProbeBook([replace(probe, id=EVIL) for probe in flight["probes"].probes], flight["probes"].frames)
    write_flight(tmp_path / "flight.html", name=EVIL, history=flight["history"], probes=book, sweep=sweep, spec=spec)
    page = Page(tmp_path / "flight.html")
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert page.text.count(EVIL) > 20


def test_what_was_not_recorded_is_said(flight: dict[str, Any], tmp_path: Path) -> None:
    supervised = [row for row in flight["history"] if row["stage"] != "train"]
    write_flight(tmp_path / "a.html", name="run", history=supervised, probes=None, sweep=None, spec=flight["spec"])
    text = Page(tmp_path / "a.html").text
    assert "No epoch made any" in text
    assert "No sweep was found." in text
    measured = ("selection_", "precision", "interior_precision", "boundary_precision", "student_gap", "disagreement")
    history = [{key: value for key, value in row.items() if not key.startswith(measured)} for row in flight["history"]]
    write_flight(tmp_path / "b.html", name="run", history=history, probes=ProbeBook(), sweep=None, spec=flight["spec"])
    text = Page(tmp_path / "b.html").text
    assert "No pictures were found" in text
    assert "There is no selection slice" in text


def test_a_slice_of_which_nothing_was_kept_is_still_a_slice(flight: dict[str, Any], tmp_path: Path) -> None:
    history = [
        {**row, **{key: None for key in row if "precision" in key and "per_class" not in key}} for row in flight["history"]
    ]
    write_flight(tmp_path / "flight.html", **{**flight, "history": history})
    text = Page(tmp_path / "flight.html").text
    assert "There is no selection slice" not in text
    assert "a dash stands where nothing was kept" in text


def second_stage(flight: dict[str, Any]) -> list[dict[str, Any]]:
    """Two epochs of each retraining, which count their own steps: pixels alone, as they are recorded."""
    row = next(row for row in flight["history"] if row["stage"] == "train")
    pixels = ("seen_", "kept_", "retention", "mean_confidence", "confidence_", "pseudo_", "labeled_", "selection_")
    bare = {key: value for key, value in row.items() if key.startswith(pixels)}
    return [
        {**bare, "stage": stage, "epoch": epoch, "step": step}
        for stage in ("retrain_reliable", "retrain_all")
        for epoch, step in enumerate((300, 500))
    ]


def test_a_method_whose_first_stage_makes_no_labels_shows_its_retrainings(flight: dict[str, Any], tmp_path: Path) -> None:
    first = [{"stage": "train", "epoch": 0, "step": 600, "loss": 1.0, "selection_miou": 0.1}]
    write_flight(tmp_path / "flight.html", **{**flight, "history": first + second_stage(flight), "probes": ProbeBook()})
    page = Page(tmp_path / "flight.html")
    assert "No epoch made any" not in page.text
    assert "retraining on reliable images, epoch 2, step 500" in page.text
    assert "retraining on all images, epoch 2, step 500" in page.text
    assert "that on reliable images begins at 600; that on all images begins at 1,100." in page.text
    assert "No pictures were found." in page.text
    assert "where nothing was kept. A retraining learns from labels" in page.text
    (cursor, *_) = [attributes for tag, attributes in page.tags if attributes.get("class") == "cursor"]
    # 900, 1100, 1400 and 1600 on an axis from 46 to 438
    assert cursor["data-at"] == "46 158 326 438"


def test_a_retraining_goes_on_from_the_first_stage_and_shows_its_last_pictures(flight: dict[str, Any], tmp_path: Path) -> None:
    write_flight(tmp_path / "flight.html", **{**flight, "history": flight["history"] + second_stage(flight)})
    page = Page(tmp_path / "flight.html")
    assert "epoch 18, step 4,000" in page.text
    assert "that on reliable images begins at 4,000; that on all images begins at 4,500." in page.text
    frames = {attributes["data-frame"] for _, attributes in page.tags if "data-frame" in attributes}
    assert frames == {str(index) for index in range(22)}
    pictures: dict[str, list[str]] = {}
    for tag, attributes in page.tags:
        if tag == "img" and "data-frame" in attributes:
            pictures.setdefault(str(attributes["data-frame"]), []).append(str(attributes["src"]))
    assert pictures["21"] == pictures["18"] == pictures["17"]


def test_a_cursor_stands_in_the_newest_column_where_its_moment_has_none(flight: dict[str, Any], tmp_path: Path) -> None:
    """Rows of a retraining have no precision; with many classes, precision is a strip with a column for each row that has it."""
    names = tuple(f"class {index}" for index in range(9))
    spec = DatasetSpec(names, tuple((index, index, 0) for index in range(9)))
    history = [
        {key: (value * 2)[:9] if isinstance(value, list) else value for key, value in row.items()}
        for row in flight["history"] + second_stage(flight)
    ]
    write_flight(tmp_path / "flight.html", **{**flight, "history": history, "spec": spec, "probes": None, "sweep": None})
    cursors = [attributes for _, attributes in Page(tmp_path / "flight.html").tags if attributes.get("class") == "cursor"]
    strip = next(cursor for cursor in cursors if len(set(str(cursor["data-at"]).split()[17:])) == 1)
    assert strip["x1"] == "429.17"  # the last of 18 columns, over 318 units from 120 on


def test_a_long_run_of_many_classes_stays_small(flight: dict[str, Any], tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(150))
    spec = DatasetSpec(names, tuple((index, index, 0) for index in range(150)))
    row = next(row for row in flight["history"] if row["stage"] == "train")
    keys = [key for key, value in row.items() if isinstance(value, list)]
    wide = {**row, **{key: (row[key] * 150)[:150] for key in keys}}
    history = [{**wide, "epoch": index, "step": 100 * (index + 1)} for index in range(200)]
    write_flight(tmp_path / "flight.html", name="run", history=history, probes=None, sweep=None, spec=spec)
    assert (tmp_path / "flight.html").stat().st_size < 5_000_000
    page = Page(tmp_path / "flight.html")
    assert sum(tag == "tbody" for tag, _ in page.tags) == MAX_FRAMES
    assert f"stands at {MAX_FRAMES} of 200 epochs" in page.text


def test_the_report_leads_to_the_page(run: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", **run, flight="flight.html")
    assert [attributes["href"] for tag, attributes in Page(tmp_path / "report.html").tags if tag == "a"] == ["flight.html"]


@pytest.mark.parametrize(("count", "said"), [(0, "0"), (999, "999"), (1000, "1k"), (45_300, "45.3k"), (1_074_000, "1.07M")])
def test_pixels_are_counted_in_few_characters(count: int, said: str) -> None:
    assert compact(count) == said
