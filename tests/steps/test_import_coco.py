"""`cwbass import`: from COCO's JSON to a dataset that the check accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cwbass.config import DataConfig, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.base import read_mask
from cwbass.data.check import check_dataset
from cwbass.errors import DataError
from cwbass.steps.import_coco import import_coco

BOX = [1, 1, 4, 1, 4, 3, 1, 3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a, b and site/c of 6 x 4 pixels."""
    (tmp_path / "data/images/site").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.jpg", "site/c.png")):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data/images" / name)
    return tmp_path / "data"


def coco(root: Path, *, names: tuple[str, ...] = ("a.png", "b.jpg", "site/c.png"), annotated: int = 2, size: int = 6) -> Path:
    """A file of those images, the first ``annotated`` of which show a tree."""
    path = root.parent / "coco.json"
    images = [{"id": i, "file_name": name, "height": 4, "width": size} for i, name in enumerate(names)]
    trees = [{"id": i, "image_id": i, "category_id": 4, "segmentation": [BOX]} for i in range(annotated)]
    path.write_text(json.dumps({"categories": [{"id": 4, "name": "tree"}], "images": images, "annotations": trees}))
    return path


def listed(root: Path) -> Any:
    return list_dataset(DataConfig(root=str(root)), SplitConfig(), root)


def test_what_is_written_is_a_dataset_that_the_check_accepts(root: Path) -> None:
    report = import_coco(coco(root), root=root)
    assert report.to_dict() == {
        "root": str(root),
        "classes": ["background", "tree"],
        "masks": 2,
        "without_objects": 1,
        "not_found": 0,
    }
    listing = listed(root)
    assert listing.spec.class_names == ("background", "tree")
    assert {sample.id: sample.mask for sample in listing.train} == {"a": "masks/a.png", "b": "masks/b.png", "site/c": None}
    assert read_mask(root / "masks/a.png", listing.spec).tolist() == [[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6]
    assert not [finding for finding in check_dataset(listing, None, root, {}).findings if finding.severity == "error"]


def test_images_without_objects_may_be_background_and_the_rest_ignored(root: Path) -> None:
    assert import_coco(coco(root), root=root, empty=True, background="").masks == 3
    spec = listed(root).spec
    assert spec.class_names == ("tree",)
    assert (read_mask(root / "masks/site/c.png", spec) == 255).all()
    assert read_mask(root / "masks/b.png", spec)[1].tolist() == [255, 0, 0, 0, 255, 255]


def test_a_second_file_lists_the_test_images(root: Path) -> None:
    import_coco(coco(root, names=("a.png", "b.jpg"), annotated=2), root=root)
    import_coco(coco(root, names=("site/c.png",), annotated=1), root=root, list_file="test.txt")
    listing = listed(root)
    assert [sample.id for sample in listing.test] == ["site/c"] and [sample.id for sample in listing.train] == ["a", "b"]


def test_a_list_may_lie_in_a_new_folder_and_names_by_path_what_would_read_as_a_comment(root: Path) -> None:
    (root / "images/a.png").rename(root / "images/#a.png")
    import_coco(coco(root, names=("#a.png", "b.jpg"), annotated=2), root=root, list_file="lists/test.txt")
    assert (root / "lists/test.txt").read_text() == "b\nimages/#a.png\n"


def test_images_that_are_not_there_are_counted_and_passed_over(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = import_coco(coco(root, names=("a.png", "gone.png", f"{'x' * 300}.png"), annotated=3), root=root)
    assert (report.masks, report.not_found) == (1, 2)
    assert "images: 2 of the 3 annotated images, the first gone.png" in caplog.text
    assert not (root / "masks/gone.png").exists()


def test_objects_that_cover_no_pixel_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As shares of the sides, coordinates all lie within the first pixel."""
    path = coco(root)
    values = json.loads(path.read_text())
    values["annotations"][1]["segmentation"] = [[0.2, 0.2, 0.9, 0.2, 0.9, 0.9, 0.2, 0.9]]
    values["annotations"].append({"id": 7, "image_id": 0, "category_id": 4, "segmentation": [[50, 50, 60, 50, 60, 60]]})
    path.write_text(json.dumps(values))
    import_coco(path, root=root)
    assert (
        "2 of 3 objects cover one pixel at most, the first annotation 7 of a.png: see that coordinates are pixels" in caplog.text
    )


def test_a_mask_that_an_earlier_import_left_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    import_coco(coco(root), root=root)
    assert not caplog.messages
    import_coco(coco(root, annotated=1), root=root, overwrite=True)
    assert caplog.messages == [
        f"1 image has no object, but a mask of before, the first {root / 'masks/b.png'}: delete what is out of date."
    ]


def test_masks_that_are_there_are_kept(root: Path) -> None:
    import_coco(coco(root), root=root)
    before = {path: path.read_bytes() for path in sorted(root.rglob("*.*"))}
    with pytest.raises(DataError, match=r"masks/a\.png is there already\. Delete it, or say --overwrite\."):
        import_coco(coco(root, annotated=1), root=root)
    assert {path: path.read_bytes() for path in sorted(root.rglob("*.*"))} == before
    assert import_coco(coco(root), root=root, overwrite=True).masks == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"names": ("x.png", "y.png")}, r"names x\.png, and no such image is in .*images, nor any of the others"),
        ({"size": 7}, r"images/a\.png is 6x4, but was annotated at 7x4 \(width x height\)"),
    ],
)
def test_a_file_of_other_images_is_refused(root: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        import_coco(coco(root, **settings), root=root)
    assert not (root / "masks").exists()


def test_a_size_that_is_wrong_further_on_leaves_nothing_behind(root: Path) -> None:
    Image.new("RGB", (9, 9)).save(root / "images/b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg is 9x9, but was annotated at 6x4"):
        import_coco(coco(root), root=root)
    assert not (root / "masks").exists() and not (root / "classes.txt").exists()


def test_a_class_list_that_is_there_keeps_its_colours(root: Path) -> None:
    (root / "classes.txt").write_text("background 0 0 0\ntree 0 200 0\n")
    import_coco(coco(root), root=root)
    assert (root / "classes.txt").read_text() == "background 0 0 0\ntree 0 200 0\n"


def test_other_classes_than_those_of_the_folder_are_refused(root: Path) -> None:
    (root / "classes.txt").write_text("background\nroad\n")
    with pytest.raises(DataError, match=r"classes\.txt lists background, road; coco\.json gives background, tree"):
        import_coco(coco(root), root=root)
    assert not (root / "masks").exists()


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data/images: no such folder\. Put the images of coco\.json there"):
        import_coco(coco(tmp_path / "data"), root=tmp_path / "data")


def test_a_name_that_a_class_list_would_read_otherwise_is_refused(root: Path) -> None:
    path = coco(root)
    path.write_text(path.read_text().replace('"tree"', '"lane 1 2 3"'))
    with pytest.raises(DataError, match=r"a category of background, lane 1 2 3 cannot stand in classes\.txt"):
        import_coco(path, root=root)
    assert not (root / "masks").exists() and not (root / "classes.txt").exists()
