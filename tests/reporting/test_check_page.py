from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from cwbass.config import DataConfig, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.check import CheckReport
from cwbass.params import SplitSections
from cwbass.reporting.check import write_check
from cwbass.steps.check import check_data


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three labelled images of 4 x 4 pixels: half sky and half road; all road; a mask with a value of no class. One without mask."""
    root, names = tmp_path / "streets", ["a", "b", "<c>", "bare"]
    (root / "classes.txt").parent.mkdir()
    (root / "classes.txt").write_text("sky\nroad\n")
    rng = np.random.default_rng(0)
    for name in names:
        save(root / "images" / f"{name}.png", rng.integers(0, 256, (4, 4, 3)))
    half = np.zeros((4, 4))
    half[2:] = 1
    half[3, 3] = 255
    save(root / "masks" / "a.png", half)
    save(root / "masks" / "b.png", np.ones((4, 4)))
    save(root / "masks" / "<c>.png", np.full((4, 4), 7))
    return root


def checked(root: Path) -> CheckReport:
    params = SplitSections(data=DataConfig(root=str(root)), split=SplitConfig(labeled=2, test=1, selection=0.0))
    return check_data(params, list_dataset(params.data, params.split, root), data_root=root)


def test_roles_say_what_their_masks_show(root: Path) -> None:
    facts = checked(root).to_dict()["roles"]
    pixels = {name: sum(role["pixels"][name] for role in facts.values()) for name in ("sky", "road")}
    shown = {name: sum(role["shown_by"][name] for role in facts.values()) for name in ("sky", "road")}
    assert pixels == {"sky": 8, "road": 7 + 16}  # and one pixel is ignored
    assert shown == {"sky": 1, "road": 2}
    assert sum(role["images"] for role in facts.values()) == 4


def test_the_page_names_what_is_wrong_and_draws_the_masks_that_can_be_read(root: Path, tmp_path: Path) -> None:
    report = checked(root)
    write_check(tmp_path / "out" / "check.html", report, name=root.name, root=root)
    page = Page(tmp_path / "out" / "check.html")
    assert page.headings == ["Findings", "Classes", "Masks"]
    assert f"{len(report.errors)} error" in page.text
    assert all(finding.message in page.text for finding in report.findings)  # <c>.png: escaped, and no tag
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert sorted(pictures) == sorted(
        text.format(name=f"{sample.id}, {role}")
        for role, facts in report.roles.items()
        for sample in facts.examples
        for text in ("Photograph {name}", "Truth of {name}, classes in colours")
    )
    assert {sample.id for facts in report.roles.values() for sample in facts.examples} == {"a", "b"}
    assert all(str(attributes["src"]).startswith("data:") for tag, attributes in page.tags if tag == "img")
