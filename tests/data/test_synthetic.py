from __future__ import annotations

import colorsys
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwbass.data import synthetic
from cwbass.data.base import default_palette
from cwbass.data.synthetic import CLASS_NAMES, IGNORE, SHAPES, VERSION, Grid, draw_sample, write_shapes
from cwbass.errors import DataError, ParamsError

SETTINGS = {"seed": 7, "labeled": 3, "unlabeled": 2, "test": 1, "size": (40, 48)}


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write(root: Path, **changes: object) -> Path:
    write_shapes(root, **{**SETTINGS, **changes})  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return np.stack([draw_sample(0, "test", index, (96, 96))[1] for index in range(200)])  # [200, 96, 96]


def test_layout_holds_exactly_these_files(tmp_path: Path) -> None:
    root = write(tmp_path / "nested" / "shapes")

    assert sorted(digests(root)) == [
        "classes.txt",
        "images/test_00000.jpg",
        "images/train_00000.jpg",
        "images/train_00001.jpg",
        "images/train_00002.jpg",
        "masks/test_00000.png",
        "masks/train_00000.png",
        "masks/train_00001.png",
        "masks/train_00002.png",
        "shapes.json",
        "test.txt",
        "train.txt",
        "unlabeled/unlabeled_00000.jpg",
        "unlabeled/unlabeled_00001.jpg",
    ]
    assert (root / "train.txt").read_text() == "train_00000\ntrain_00001\ntrain_00002\n"
    assert (root / "test.txt").read_text() == "test_00000\n"
    assert (root / "classes.txt").read_text().split() == [
        "background", "disc", "box", "triangle", "ring", "cross", "star", "pole"
    ]  # fmt: skip
    marker = json.loads((root / "shapes.json").read_text())
    assert marker["settings"] == {
        "seed": 7, "labeled": 3, "unlabeled": 2, "test": 1, "height": 40, "width": 48, "version": VERSION
    }  # fmt: skip
    assert marker["license"].startswith("CC0-1.0")


def test_images_are_rgb_and_masks_are_palette_files_of_the_same_size(tmp_path: Path) -> None:
    root = write(tmp_path / "shapes")

    for path in [*root.glob("images/*"), *root.glob("unlabeled/*")]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (48, 40))
    for path in root.glob("masks/*"):
        with Image.open(path) as mask:
            assert (mask.mode, mask.size) == ("P", (48, 40))
            colours = np.array(mask.convert("RGB"))
            expected = np.array(default_palette(256), dtype=np.uint8)[np.array(mask)]
            np.testing.assert_array_equal(colours, expected)


def test_mask_file_is_the_drawn_mask(tmp_path: Path) -> None:
    root = write(tmp_path / "shapes")

    with Image.open(root / "masks" / "train_00002.png") as mask:
        np.testing.assert_array_equal(np.array(mask), draw_sample(7, "train", 2, (40, 48))[1])


def test_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    assert digests(write(tmp_path / "a")) == digests(write(tmp_path / "b"))


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    first, second = digests(write(tmp_path / "a")), digests(write(tmp_path / "b", seed=8))

    assert first.keys() == second.keys()
    same = {name for name in first if first[name] == second[name]}
    assert same == {"classes.txt", "train.txt", "test.txt"}


def test_a_larger_dataset_begins_with_the_smaller_one(tmp_path: Path) -> None:
    small, large = digests(write(tmp_path / "a")), digests(write(tmp_path / "b", labeled=5, unlabeled=4, test=2))

    pictures = {name for name in small if "/" in name}
    assert len(pictures) == 10
    assert {name: large[name] for name in pictures} == {name: small[name] for name in pictures}


def test_roles_and_indices_draw_different_images() -> None:
    keys = [("train", 0), ("train", 1), ("unlabeled", 0), ("test", 0)]
    drawn = {draw_sample(7, role, index, (40, 48))[0].tobytes() for role, index in keys}  # type: ignore[arg-type]

    assert len(drawn) == 4


def test_the_global_random_state_plays_no_part() -> None:
    np.random.seed(1)
    first = draw_sample(7, "train", 0, (40, 48))[0]
    np.random.seed(2)
    np.testing.assert_array_equal(draw_sample(7, "train", 0, (40, 48))[0], first)


def test_masks_hold_classes_and_ignore_only(masks: np.ndarray) -> None:
    assert set(np.unique(masks).tolist()) == {*range(8), IGNORE}
    assert (masks == IGNORE).mean() < 0.04


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("background", 1.0, 1.0),
        ("disc", 0.40, 0.75),
        ("box", 0.35, 0.75),
        ("triangle", 0.35, 0.70),
        ("ring", 0.18, 0.42),  # rare: share 0.08 of 2 to 6 objects, so 28 % of images
        ("cross", 0.30, 0.60),
        ("star", 0.18, 0.42),
        ("pole", 0.40, 0.70),
    ],
)
def test_share_of_images_with_a_class(masks: np.ndarray, name: str, low: float, high: float) -> None:
    share = (masks == CLASS_NAMES.index(name)).any(axis=(1, 2)).mean()

    assert low <= share <= high


def test_shares_of_objects_add_up_to_one() -> None:
    assert sum(shape.share for shape in SHAPES) == pytest.approx(1)


@pytest.mark.parametrize("hsv", [(0.0, 1.0, 1.0), (0.3, 0.5, 0.8), (0.97, 0.2, 0.4), (0.61, 0.9, 0.95)])
def test_colours_agree_with_the_standard_library(hsv: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(synthetic._rgb(*hsv), colorsys.hsv_to_rgb(*hsv), atol=1e-6)


def test_most_discs_wear_their_hue_and_some_do_not() -> None:
    near = []
    for index in range(300):
        image, mask = draw_sample(3, "train", index, (64, 64))
        if (disc := mask == CLASS_NAMES.index("disc")).sum() > 60:
            hue = colorsys.rgb_to_hsv(*(image[disc].mean(axis=0) / 255))[0]
            near.append(min(hue, 1 - hue) < 0.12)  # red, at 0 on the circle of hues
    assert 0.7 < np.mean(near) < 0.97


# Area of each silhouette with half length a = 20, half width b = 10, and slim = 0, worked by hand.
AREAS = {
    "disc": np.pi * 20 * 10,
    "box": 40 * 20,
    "triangle": 40 * 20 / 2,
    "ring": np.pi * 20 * 10 * (1 - 0.5**2),
    "cross": 40 * 7.2 + 20 * 7.2 - 7.2**2,  # bars 2 * 0.36 * b wide
    "star": 20 * 10 * 5 * 0.5 * np.sin(np.pi / 5),  # ten triangles with sides 1, 0.5 and 36 degrees between
    "pole": 40 * 20,
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_silhouette_has_the_area_of_the_shape(shape: synthetic.Shape) -> None:
    fine = 8  # samples per pixel and axis
    grid = Grid(64 * fine, 64 * fine)
    x, y = grid.x / np.float32(fine), grid.y / np.float32(fine)  # pixels
    inside = shape.distance(x, y, 20.0, 10.0, 0.0) < 0

    assert inside.sum() / fine**2 == pytest.approx(AREAS[shape.name], rel=0.01)


def test_poles_are_long_and_thin_and_boxes_are_not() -> None:
    box, pole = SHAPES[1], SHAPES[6]

    assert box.distance is pole.distance
    assert box.aspect[1] < 2 < 8 <= pole.aspect[0]


def test_same_settings_leave_the_folder_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "shapes")
    (root / "images" / "train_00000.jpg").write_bytes(b"mine")

    write(root)

    assert (root / "images" / "train_00000.jpg").read_bytes() == b"mine"


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "shapes")
    before = digests(root)

    with pytest.raises(DataError) as caught:
        write(root, seed=8, size=(40, 56))

    assert str(caught.value) == (
        f"{root} holds shapes of other settings: seed 7 (asked: 8), width 48 (asked: 56). "
        "Delete it, or choose another folder (data.root)."
    )
    assert digests(root) == before


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"settings": 3}'])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    if content is not None:
        (tmp_path / "shapes.json").write_text(content)
    before = digests(tmp_path)

    with pytest.raises(DataError, match=r"is not a shapes dataset \(no readable shapes\.json\)\. Delete it, or choose"):
        write(tmp_path)

    assert digests(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    root.mkdir()

    assert (write(root) / "shapes.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    draw = synthetic.draw_sample

    def fail_at_the_second(seed: int, role: synthetic.Role, index: int, size: tuple[int, int]) -> object:
        if index == 1:
            raise error("stopped")
        return draw(seed, role, index, size)

    monkeypatch.setattr(synthetic, "draw_sample", fail_at_the_second)
    with pytest.raises(error, match="stopped"):
        write(tmp_path / "shapes")
    assert list(tmp_path.iterdir()) == []

    monkeypatch.undo()
    assert digests(write(tmp_path / "shapes")) == digests(write(tmp_path / "other"))


def test_marker_is_written_after_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    write_text = Path.write_text

    def record(path: Path, *args: object, **kwargs: object) -> int:
        if path.name == "shapes.json":
            seen.extend(digests(path.parent))
            assert not (tmp_path / "shapes").exists()
        return write_text(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", record)
    root = write(tmp_path / "shapes")

    assert sorted([*seen, "shapes.json"]) == sorted(digests(root))


def test_losing_a_race_to_the_same_dataset_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digests(write(tmp_path / "other"))
    root, replace = tmp_path / "shapes", os.replace

    def replace_late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        write(root)  # another process comes first
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_late)
    write(root)

    assert digests(root) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "shapes"]


def test_a_mount_point_is_an_error_with_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(source: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(DataError, match=r"cannot be put in place .*busy.* choose a folder in it \(data\.root\)"):
        write(tmp_path / "shapes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeled": 0}, r"labeled is 0; give at least 1"),
        ({"unlabeled": -1}, r"unlabeled is -1; give at least 0"),
        ({"seed": -1}, r"seed is -1; give at least 0"),
        ({"size": (31, 48)}, r"height is 31; give at least 32"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        write(tmp_path / "shapes", **changes)
    assert list(tmp_path.iterdir()) == []
