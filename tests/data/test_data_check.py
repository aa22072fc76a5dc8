"""The data check: one broken thing at a time, and what the report says of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from cwbass.cli.console import print_findings
from cwbass.config import AugmentConfig, DataConfig, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.check import CheckReport, check_dataset, inspect_masks
from cwbass.data.findings import Finding
from cwbass.data.manifest import Manifest
from cwbass.data.splits import draw_split
from cwbass.params import Params, load_params, parse_yaml

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
GOOD = np.repeat(np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8), 4, axis=0).repeat(4, axis=1)  # [8, 16]


def picture(seed: int) -> Image.Image:
    """A smooth random picture of 16 x 8 pixels."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((16, 8), Image.Resampling.BICUBIC)


def save_mask(root: Path, id: str, values: np.ndarray) -> None:
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(root / "masks" / f"{id}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a to e with masks, e tested on, u without."""
    for folder in ("images", "masks", "unlabeled"):
        (tmp_path / folder).mkdir()
    for seed, id in enumerate("abcde"):
        picture(seed).save(tmp_path / "images" / f"{id}.png")
        save_mask(tmp_path, id, GOOD)
    picture(5).save(tmp_path / "unlabeled/u.png")
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    (tmp_path / "test.txt").write_text("e\n")
    return tmp_path


def check(root: Path, *, split: bool = False, **data: object) -> CheckReport:
    config = SplitConfig()
    listing = list_dataset(DataConfig.model_validate(data), config, root)
    manifest: Manifest | None = draw_split(listing, config, root=root, seed=0) if split else None
    return check_dataset(listing, manifest, root)


def test_every_file_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in "abcde":
        save_palette(root, id, GOOD, [0, 0, 0, 0, 128, 0])
    decoded: Counter[str] = Counter()
    load = ImageFile.ImageFile.load

    def counted(file: ImageFile.ImageFile) -> object:
        if file.tile:  # not decoded before
            decoded[Path(str(file.filename)).relative_to(root).as_posix()] += 1
        return load(file)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    check(root)
    images = {f"images/{id}.png" for id in "abcde"} | {"unlabeled/u.png"}
    assert decoded == dict.fromkeys(images | {f"masks/{id}.png" for id in "abcde"}, 1)


def test_masks_that_were_seen_before_are_judged_as_if_read_now(root: Path) -> None:
    save_mask(root, "a", np.full((8, 16), 9))  # no class
    save_mask(root, "b", np.zeros((4, 4)))  # another size
    (root / "masks/c.png").write_bytes(b"no image")
    listing = list_dataset(DataConfig(), SplitConfig(), root)
    seen = inspect_masks(listing.train, root, listing.spec)
    assert sorted(seen) == [f"masks/{id}.png" for id in "abcd"]
    plain = check_dataset(listing, None, root)
    assert len(plain.errors) == 3
    assert check_dataset(listing, None, root, seen).to_dict() == plain.to_dict()
    (root / "masks/a.png").unlink()  # so what was seen is not looked at again
    assert check_dataset(listing, None, root, seen).to_dict() == plain.to_dict()


def test_crops_that_show_little_of_an_image_are_named_with_what_they_show(root: Path) -> None:
    listing = list_dataset(DataConfig(), SplitConfig(), root)  # all images are 16 x 8

    def kinds(crop: int, scale: tuple[float, float]) -> list[Finding]:
        views = AugmentConfig(crop_size=crop, scale=scale)
        return [each for each in check_dataset(listing, None, root, views=views).findings if each.kind == "small_crop"]

    assert kinds(8, (1.0, 1.0)) == []  # half of it
    assert kinds(8, (2.0, 4.0)) == []  # a sixteenth, at 2.8 times the size
    (found,) = kinds(8, (2.0, 8.0))  # a thirty-second, at 4 times
    assert found.severity == "warning"
    assert found.message.startswith(
        "augment.crop_size: at scale 2 to 8, crops of 8 pixels show 3.1% of an image of 16 x 8 (median): few objects are seen whole."
    )
    (root / "images/a.png").write_bytes(b"no image")  # what cannot be read has no size
    assert kinds(8, (2.0, 8.0)) == [found]


def save_palette(root: Path, id: str, values: np.ndarray, colors: list[int]) -> None:
    mask = Image.fromarray(values, mode="P")
    mask.putpalette(colors)
    mask.save(root / "masks" / f"{id}.png")


def test_palettes_that_disagree_are_told(root: Path) -> None:
    for id in "abcde":
        save_palette(root, id, GOOD, [0, 0, 0, 0, 128, 0])
    assert not check(root).findings
    save_palette(root, "b", GOOD, [0, 128, 0, 0, 0, 0])  # the same values in the other's colours
    found = only(check(root))
    assert (found.severity, found.kind, found.file, found.details["count"]) == ("warning", "palette", "masks/b.png", 1)
    assert "value 0 has the colour [0, 128, 0] in masks/b.png, and [0, 0, 0] in masks/a.png" in found.message


def test_a_palette_that_disagrees_with_the_colours_of_the_classes_is_told(root: Path) -> None:
    (root / "classes.txt").write_text("ground 0 0 0\ntree 0 128 0\n")
    for id in "abcde":
        save_palette(root, id, GOOD, [9, 9, 9, 0, 128, 0])  # another black is no class's colour
    assert not check(root).findings
    for id in "abcde":
        save_palette(root, id, GOOD, [0, 128, 0, 0, 0, 0])
    found = only(check(root))
    assert (found.kind, found.details["count"]) == ("palette", 5)
    assert "value 0 has the colour of tree in masks/a.png, [0, 128, 0]" in found.message


@pytest.mark.parametrize(("top", "kinds"), [(4095, ["dim"]), (65535, [])])
def test_images_of_sixteen_bits_that_hold_twelve_are_told(root: Path, top: int, kinds: list[str]) -> None:
    grey = np.asarray(picture(0).convert("L"), dtype=np.float64)
    Image.fromarray((grey / grey.max() * top).astype(np.uint16)).save(root / "images/a.png")
    assert [finding.kind for finding in check(root).findings] == kinds


@pytest.mark.parametrize("kind", ["tif", "webp", "png"])
def test_images_of_several_pages_or_frames_are_told(root: Path, kind: str) -> None:
    (root / "unlabeled/u.png").unlink()
    picture(5).save(root / f"unlabeled/u.{kind}", save_all=True, append_images=[picture(6)])
    found = only(check(root))
    assert (found.severity, found.kind, found.file, found.details["count"]) == ("warning", "frames", f"unlabeled/u.{kind}", 1)
    assert "only the first of each is read" in found.message


def only(report: CheckReport) -> Finding:
    assert len(report.findings) == 1, [finding.message for finding in report.findings]
    return report.findings[0]


def test_sound_data_has_no_findings(root: Path) -> None:
    for split in (True, False):
        report = check(root, split=split)
        assert report.findings == ()
        assert (report.images, report.masks) == (6, 5)


def test_unknown_value_names_file_count_and_first_position(root: Path) -> None:
    bad = GOOD.copy()
    bad[3, 5] = bad[6, 2] = 12
    save_mask(root, "b", bad)
    worse = GOOD.copy()
    worse[0, 0] = 12
    save_mask(root, "d", worse)
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("error", "unknown_value", "masks/b.png")
    assert finding.details == {
        "value": 12,
        "pixels": 3,
        "first": {"pixels": 2, "x": 5, "y": 3},
        "count": 2,
        "files": ["masks/b.png", "masks/d.png"],
    }
    assert "value 12 belongs to no class: 3 pixels in 2 masks" in finding.message
    assert "(2 pixels, first at x=5, y=3)" in finding.message
    assert "write 255 for pixels to ignore" in finding.message


def test_masks_that_count_classes_from_one_are_told_where_the_missing_name_belongs(root: Path) -> None:
    first = "give 0 a name on the first line"
    mask = GOOD.copy()
    mask[0, :2] = 1, 2  # of two classes, 0 and 1
    save_mask(root, "b", mask)
    assert first in only(check(root)).message
    mask[0, 2] = 3
    save_mask(root, "b", mask)
    assert not any(first in finding.message for finding in check(root).findings)


def test_many_unknown_values_are_one_finding_that_names_smoothing(root: Path) -> None:
    for id, values in (("b", [*range(3, 23), 12]), ("d", [12, 40])):
        mask = GOOD.copy()
        mask.flat[: len(values)] = values
        save_mask(root, id, mask)
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("error", "unknown_value", "masks/b.png")
    assert finding.message.startswith(
        "21 values or more belong to no class, in 2 masks, the first masks/b.png; most often 12, 3, 4. "
    )
    assert "resized, smoothed or saved as JPEG" in finding.message and "write 255 for pixels to ignore" in finding.message
    assert (finding.details["values"][0], len(finding.details["values"]), finding.details["count"]) == ([12, 3], 20, 2)


@pytest.mark.parametrize(("how", "kinds"), [(Image.Resampling.BILINEAR, ["soft_borders"]), (Image.Resampling.NEAREST, [])])
def test_masks_that_were_resized_like_pictures_are_told(root: Path, how: Image.Resampling, kinds: list[str]) -> None:
    """Between classes 0 and 2 they show class 1, which no other rule can see."""
    (root / "classes.txt").write_text("ground\ntree\nhouse\n")
    rng = np.random.default_rng(0)
    for id in "abcde":
        picture(ord(id)).resize((64, 32)).save(root / "images" / f"{id}.png")
        blocks = Image.fromarray(rng.integers(0, 3, (5, 9), dtype=np.uint8)).resize((72, 40), Image.Resampling.NEAREST)
        save_mask(root, id, np.asarray(blocks.resize((64, 32), how)))
    report = check(root)
    assert [finding.kind for finding in report.findings] == kinds
    if kinds:
        assert report.findings[0].details["count"] == 5 and "resize by nearest neighbour" in report.findings[0].message


def test_size_mismatch_gives_both_sizes(root: Path) -> None:
    save_mask(root, "c", GOOD[:4])
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("error", "size_mismatch", "masks/c.png")
    assert "masks/c.png is 16 x 4, but images/c.png is 16 x 8" in finding.message


@pytest.mark.parametrize("name", ["images/a.png", "masks/a.png", "unlabeled/u.png"])
def test_truncated_file_is_named(root: Path, name: str) -> None:
    path = root / name
    path.write_bytes(path.read_bytes()[:60])
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("error", "unreadable", name)
    assert name in finding.message and "Replace or remove the file" in finding.message


def test_binary_masks_of_0_and_255_are_recognised(root: Path) -> None:
    for id in "abcde":
        save_mask(root, id, (GOOD == 1) * 255)
    report = check(root)
    finding = next(finding for finding in report.findings if finding.kind == "binary_mask")
    assert finding.severity == "error" and finding.details["count"] == 5
    assert "Write 1 in place of 255" in finding.message


def test_binary_masks_are_not_reported_twice_with_another_ignore_index(root: Path) -> None:
    for id in "abcde":
        save_mask(root, id, (GOOD == 1) * 255)
    assert [finding.kind for finding in check(root, ignore_index=254).errors] == ["binary_mask"]


def test_background_and_border_in_some_masks_only_are_no_binary_masks(root: Path) -> None:
    save_mask(root, "a", np.where(GOOD == 1, 255, 0))
    assert check(root).findings == ()


def test_masks_of_0_and_255_beside_masks_of_0_and_1_are_told(root: Path) -> None:
    for id in "abcde":
        save_mask(root, id, (GOOD == 1) * (255 if id in "bd" else 1))
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("warning", "mixed_binary", "masks/b.png")
    assert finding.details == {"count": 2, "files": ["masks/b.png", "masks/d.png"]}
    assert finding.message.startswith("2 masks hold only 0 and 255, and 3 others show both classes and no 255")
    for id in "bd":
        save_mask(root, id, np.asarray(Image.open(root / f"masks/{id}.png")) // 255)  # the mend that it names
    assert check(root).findings == ()


@pytest.mark.parametrize(
    "masks",
    [
        {"a": GOOD, "b": (GOOD == 1) * 255, "c": GOOD == 1},  # 255 beside objects is a border
        {"a": np.full(GOOD.shape, 255), "b": GOOD == 1},  # an image that nobody labelled
        {"a": (GOOD == 1) * 255, "b": np.zeros(GOOD.shape)},  # all binary, of which some show no object
        {"a": (GOOD == 1) * 255, "b": np.ones(GOOD.shape)},  # nor does one that is object alone show both classes
    ],
)
def test_ignored_pixels_in_other_masks_are_no_mixture(root: Path, masks: dict[str, np.ndarray]) -> None:
    for id in "abcde":
        save_mask(root, id, masks.get(id, list(masks.values())[-1]))
    assert "mixed_binary" not in {finding.kind for finding in check(root).findings}


def test_rgb_masks_without_map_get_a_proposal(root: Path) -> None:
    colors = np.array([[0, 0, 0], [128, 0, 0]], dtype=np.uint8)  # the palette's
    colored = colors[np.minimum(GOOD, 1)]
    colored[0, 0] = (9, 8, 7)
    for id in "abcde":
        save_mask(root, id, colored)
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.details["count"]) == ("error", "rgb_mask", 5)
    assert finding.details["colors"][-1] == [9, 8, 7, 5]
    assert finding.details["yaml"] == (
        "  classes: [ground, tree, unknown_1]\n"
        "  colors:\n"
        "    ground: [0, 0, 0]\n"
        "    tree: [128, 0, 0]\n"
        "    unknown_1: [9, 8, 7]\n"
        "  ignore_classes: [unknown_1]\n"
    )
    assert (
        "the lines below under data: in the parameters. They ignore unknown_1, for every class has a colour." in finding.message
    )


def test_a_palette_that_shares_few_colours_with_ours_gives_no_class_a_name(root: Path) -> None:
    """CamVid's: its black is no sky, though the first class of the list is, and black the first colour of our palette."""
    (root / "classes.txt").write_text("sky\nbuilding\npole\n")
    camvid = np.array([[0, 0, 0], [128, 128, 128], [128, 64, 128], [60, 40, 222]], dtype=np.uint8)
    for id in "abcde":
        save_mask(root, id, camvid[np.arange(GOOD.size).reshape(GOOD.shape) % 4])
    finding = only(check(root))
    assert set(pasted(finding)["classes"]) == {"unknown_1", "unknown_2", "unknown_3", "unknown_4"}
    assert "Put their own names for unknown_1, unknown_2, unknown_3, unknown_4" in finding.message


def pasted(finding: Finding) -> dict[str, Any]:
    params = load_params(parse_yaml(f"data:\n{finding.details['yaml']}", "params.yaml"), Params)
    return params.data.model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    "names", ["no\n? 1: x\n", "ground\ntree\nroad\n"]
)  # what YAML takes for something else; one has no colour
def test_the_lines_proposed_for_rgb_masks_mend_the_data_as_they_are(
    root: Path, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "classes.txt").write_text(names)
    colors = np.array([[0, 0, 0], [128, 0, 0], [224, 224, 192]], dtype=np.uint8)
    for id in "abcde":
        save_mask(root, id, colors[np.minimum(GOOD, 2)])
    report = check(root)
    assert check(root, **pasted(only(report))).findings == ()
    print_findings(report, root)
    assert only(report).details["yaml"] in capsys.readouterr().err  # no border of the table between them


def test_indices_saved_as_grey_rgb_are_recognised_and_the_proposed_colours_mend_the_data(root: Path) -> None:
    for id in "abcde":
        save_mask(root, id, np.stack([np.minimum(GOOD, 1)] * 3, axis=-1))
    proposal = pasted(only(check(root)))
    assert proposal == {"classes": ["ground", "tree"], "colors": {"ground": (0, 0, 0), "tree": (1, 1, 1)}}
    assert check(root, **proposal).findings == ()


def test_index_mask_beside_a_colour_map(root: Path) -> None:
    (root / "labelmap.txt").write_text("ground:0,0,0::\ntree:0,128,0::\n")
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.details["count"]) == ("error", "index_mask", 5)


COLORS = np.array([[0, 0, 0], [0, 128, 0]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("rgb", "with_map", "kind", "files", "said"),
    [
        ("b", False, "rgb_mask", "b", "1 mask is RGB, while 4 hold indices. Export as indices: masks/b.png."),
        (
            *("b", True, "index_mask", "b"),
            "1 mask is RGB, while 4 hold indices. Export as indices: masks/b.png. Then remove the colour map.",
        ),
        ("abc", True, "index_mask", "de", "2 masks hold indices, while 3 are RGB. Export as RGB: masks/d.png, masks/e.png."),
    ],
)
def test_masks_of_two_kinds_are_told_by_the_files_of_the_rarer_kind(
    root: Path, rgb: str, with_map: bool, kind: str, files: str, said: str
) -> None:
    if with_map:
        (root / "labelmap.txt").write_text("ground:0,0,0::\ntree:0,128,0::\n")
    for id in "abcde":
        save_mask(root, id, COLORS[np.minimum(GOOD, 1)] if id in rgb else np.minimum(GOOD, 1))
    finding = only(check(root))
    assert (finding.kind, finding.details["files"], finding.message) == (kind, [f"masks/{id}.png" for id in files], said)


def test_image_turned_by_exif(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the size stays
    picture(0).save(root / "images/a.png", exif=exif)
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("warning", "exif_rotated", "images/a.png")


def test_mask_of_the_image_as_stored_is_told_so(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter: width and height change places
    picture(0).save(root / "images/a.png", exif=exif)
    error = check(root).errors[0]
    assert error.kind == "size_mismatch"
    assert "is 16 x 8, but images/a.png is 8 x 16. The mask was drawn on the image as stored" in error.message


def test_near_duplicate_across_roles(root: Path) -> None:
    picture(4).save(root / "images/a.jpg", quality=95)  # the test image once more
    (root / "images/a.png").unlink()
    finding = only(check(root, split=True))
    assert (finding.severity, finding.kind) == ("warning", "near_duplicate")
    assert finding.details == {"roles": ["labeled", "test"], "count": 1, "pairs": [["images/a.jpg", "images/e.png"]]}
    assert "What is measured on test is too good then" in finding.message


def test_duplicates_of_one_role_are_nobodys_business(root: Path) -> None:
    picture(1).save(root / "images/a.png")
    assert check(root, split=True).findings == ()


def test_missing_class_is_named_by_role(root: Path) -> None:
    save_mask(root, "e", np.zeros_like(GOOD))
    finding = only(check(root, split=True))
    assert (finding.severity, finding.kind) == ("warning", "missing_class")
    assert finding.details == {"role": "test", "classes": ["tree"]}
    assert "no test mask shows tree: it is not measured" in finding.message


def test_mask_of_ignored_pixels_only(root: Path) -> None:
    save_mask(root, "b", np.full_like(GOOD, 255))
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.file) == ("warning", "all_ignored", "masks/b.png")


def test_one_lost_mask_among_many_is_a_likely_mistake(root: Path) -> None:
    for seed in range(10, 14):
        picture(seed).save(root / "images" / f"p{seed}.png")
        save_mask(root, f"p{seed}", GOOD)
    (root / "masks/a.png").unlink()
    finding = only(check(root, split=True))
    assert (finding.severity, finding.kind, finding.file) == ("warning", "no_mask", "images/a.png")
    assert "1 of 8 images in images without a mask, counted as unlabelled" in finding.message


def test_masks_of_unlabelled_images_are_never_opened(root: Path) -> None:
    (root / "masks/b.png").write_text("no mask")
    (root / "u.txt").write_text("b\n")
    config = SplitConfig(unlabeled_list="u.txt")
    listing = list_dataset(DataConfig(), config, root)
    manifest = draw_split(listing, config, root=root, seed=0)
    report = check_dataset(listing, manifest, root)
    assert report.errors == () and report.masks == 4


def test_errors_come_first_and_the_report_is_json(root: Path) -> None:
    save_mask(root, "a", np.full_like(GOOD, 255))
    save_mask(root, "c", GOOD[:4])
    report = check(root)
    assert [finding.severity for finding in report.findings] == ["error", "warning"]
    assert (len(report.errors), len(report.warnings)) == (1, 1)
    plain = json.loads(json.dumps(report.to_dict()))
    assert (plain["errors"], plain["warnings"], plain["findings"][0]["kind"]) == (1, 1, "size_mismatch")


@pytest.mark.parametrize(("name", "layout"), [("voc", "pascal_voc"), ("cityscapes", "cityscapes")])
def test_real_files_have_no_errors(name: str, layout: str) -> None:
    folder = SHARED / "fixtures" / name
    if not folder.is_dir():
        pytest.skip(f"the {name} fixture is not on this machine")
    report = check(folder, split=True, layout=layout)
    assert report.errors == ()
    assert {finding.kind for finding in report.warnings} == {"missing_class"}


def test_photographs_and_videos_that_nothing_reads_are_counted(root: Path) -> None:
    (root / "unlabeled/day 1").mkdir()
    for name in ("day 1/IMG_1.HEIC", "day 1/IMG_2.heic", "clip.mov", "notes.txt", "._IMG_3.heic"):
        (root / "unlabeled" / name).write_bytes(b"x")
    (finding,) = [found for found in check(root, split=True).warnings if found.kind == "unread_kind"]
    assert finding.file == "unlabeled/clip.mov"
    assert "3 files are photographs or videos of kinds that are not read: .heic (2), .mov (1)" in finding.message
    assert finding.details == {
        "count": 3,
        "files": ["unlabeled/clip.mov", "unlabeled/day 1/IMG_1.HEIC", "unlabeled/day 1/IMG_2.heic"],
    }
