"""COCO's JSON: shapes worked by hand, the order of painting, and what a file may not say."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cwbass.data.coco import class_values, decode_counts, mask_name, paint, read_coco
from cwbass.errors import DataError

BOX = [1, 1, 4, 1, 4, 3, 1, 3]  # columns 1 to 3, rows 1 and 2


def content(**changes: Any) -> dict[str, Any]:
    """An image of 6 x 4 pixels, two categories, and a box of the second."""
    whole = {
        "categories": [{"id": 7, "name": "tree"}, {"id": 3, "name": "road"}],
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 7, "segmentation": [BOX]}],
    }
    return {**whole, **changes}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "coco.json"
    path.write_text(json.dumps(content(**changes)))
    return path


def objects(*pairs: tuple[int, Any]) -> list[dict[str, Any]]:
    return [{"id": i, "image_id": 1, "category_id": c, "segmentation": shape} for i, (c, shape) in enumerate(pairs)]


def painted(folder: Path, *pairs: tuple[int, Any]) -> list[str]:
    file = read_coco(written(folder, annotations=objects(*pairs)))
    return ["".join(map(str, row)) for row in paint(file, file.images[0], [1, 2], 0)[0]]


def test_classes_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    file = read_coco(written(tmp_path))
    assert file.names == ("road", "tree")
    assert [(image.name, image.height, image.width) for image in file.images] == [("a.jpg", 4, 6)]
    assert paint(file, file.images[0], [1, 2], 0)[0].dtype == np.uint8
    assert painted(tmp_path, (7, [BOX])) == ["000000", "022200", "022200", "000000"]


def test_what_lies_on_a_large_object_stays_visible_whatever_the_order(tmp_path: Path) -> None:
    small, large = (3, [[2, 1, 3, 1, 3, 2, 2, 2]]), (7, [BOX])
    expected = ["000000", "021200", "022200", "000000"]
    assert painted(tmp_path, small, large) == painted(tmp_path, large, small) == expected


def test_of_two_objects_as_large_as_each_other_the_later_one_is_seen(tmp_path: Path) -> None:
    assert painted(tmp_path, (7, [BOX]), (3, [BOX]))[1] == "011100"
    assert painted(tmp_path, (3, [BOX]), (7, [BOX]))[1] == "022200"


def test_runs_go_down_the_columns(tmp_path: Path) -> None:
    # Of 24 pixels in columns of 4: five outside, two inside (rows 1 and 2 of column 1), two outside, two inside, 13 outside.
    plain = {"counts": [5, 2, 2, 2, 13], "size": [4, 6]}
    expected = ["000000", "022000", "022000", "000000"]
    assert painted(tmp_path, (7, plain)) == expected
    assert painted(tmp_path, (7, {**plain, "counts": "5220;"})) == expected


def test_a_compressed_code_by_hand() -> None:
    # A character is 48 and five bits, and 32 where more follow. 5, 2 and 2 stand as they are, the fourth run as its
    # difference from the second (0), the fifth from the third: 13 - 2 = 11 = ";".
    assert decode_counts("5220;") == [5, 2, 2, 2, 13]
    # 100 = 4 + 3 * 32: "T" (48 + 32 + 4), "3". The fourth run is 7 less than the second, -7: 25 with the sign's bit, "I".
    assert decode_counts("T3:0I") == [100, 10, 0, 3]


@given(arrays(np.uint8, (4, 6), elements=st.integers(0, 2)))
def test_any_label_map_comes_back_from_the_runs_of_its_classes(label: np.ndarray) -> None:
    shapes = []
    for value, category in ((1, 3), (2, 7)):
        column_by_column = np.concatenate(([0], np.equal(label.T, value).ravel(), [2]))
        ends = np.flatnonzero(np.diff(column_by_column))
        runs = np.diff(np.concatenate(([0], ends))).tolist()
        shapes.append((category, {"counts": runs, "size": [4, 6]}))
    with TemporaryDirectory() as folder:
        assert painted(Path(folder), *shapes) == ["".join(map(str, row)) for row in label]


@pytest.mark.parametrize(("code", "says"), [("5 ", "the character ' '"), ("5T", "an end within a run")])
def test_a_broken_code_says_where(code: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_counts(code)


@pytest.mark.parametrize(
    ("background", "listed", "values"),
    [
        ("background", ("background", "road", "tree"), [1, 2]),
        ("tree", ("tree", "road"), [1, 0]),
        ("", ("road", "tree"), [0, 1]),
    ],
)
def test_the_background_is_the_first_class_one_of_the_file_or_none(
    background: str, listed: tuple[str, ...], values: list[int]
) -> None:
    assert class_values(Path("x"), ("road", "tree"), background) == (listed, values)


def test_there_are_at_most_255_classes() -> None:
    names = [f"c{i}" for i in range(255)]
    assert len(class_values(Path("x"), names, "")[0]) == 255
    with pytest.raises(DataError, match=r"x has 255 categories; masks hold 1 to 255 classes, the background among them"):
        class_values(Path("x"), names, "background")


def test_a_mask_lies_where_its_image_does() -> None:
    assert mask_name(Path("x"), "site 2/b.v1.jpg") == "site 2/b.v1.png"
    for outside in ("/etc/a.jpg", "../a.jpg", "b/../../a.jpg", "."):
        with pytest.raises(DataError, match="does not lie below the folder of images"):
            mask_name(Path("x"), outside)


IMAGE = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": [{**IMAGE, "height": 0}]}, r"images\.0\.height: input should be greater than 0, not 0\. Export it again"),
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.jpg"}]}, "the image id 1 comes twice"),
        ({"images": [IMAGE, {**IMAGE, "id": 2, "file_name": "a.png"}]}, r"the mask 'a\.png' is that of two images"),
        ({"categories": [{"id": 3, "name": "road"}, {"id": 7, "name": "road"}]}, "the category 'road' comes twice"),
        ({"annotations": [{"image_id": 9, "category_id": 7}]}, "annotation number 1: no image has the id 9"),
        ({"annotations": [{"id": "x", "image_id": 1, "category_id": 8}]}, "annotation x: no category has the id 8"),
        ({"annotations": {}}, "annotations: input should be a valid list, not {}"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\.0\.category_id: field required\. Export"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(DataError, match=says) as caught:
        read_coco(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"coco\.json: no such file\. Name the JSON that the annotation tool exported"):
        read_coco(tmp_path / "coco.json")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([], "has no segmentation"),
        ([[1, 1, 4, 1]], "a polygon of 4 numbers"),
        ([[1, 1, 4, 1, 4, 3, 1]], "a polygon of 7 numbers"),
        ({"counts": [5, 2], "size": [4, 6]}, "a run-length code of 7 pixels and size 4 x 6; its image is 4 high and 6 wide"),
        ({"counts": [24], "size": [6, 4]}, "a run-length code of 24 pixels and size 6 x 4"),
        ({"counts": "T", "size": [4, 6]}, "an end within a run in a run-length code"),
        ({"counts": "", "size": [4, 6]}, "a run-length code of 0 pixels"),
    ],
)
def test_a_shape_that_cannot_be_drawn_names_the_annotation(tmp_path: Path, shape: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"coco\.json, annotation 0.*{says}"):
        painted(tmp_path, (7, shape))
