"""Layouts, lists and classes: from names on disk to samples. Files are empty: listing opens none."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from cwbass.config import DataConfig, SplitConfig
from cwbass.data import Listing, list_dataset
from cwbass.data.base import Sample, read_mask
from cwbass.data.cityscapes import CLASSES
from cwbass.data.lists import read_ids
from cwbass.errors import DataError, ParamsError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, split: SplitConfig | None = None, **data: object) -> Listing:
    return list_dataset(DataConfig.model_validate(data), split or SplitConfig(), root)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    touch(tmp_path, "images/a.jpg", "images/b.png", "images/day/c.JPG", "images/.DS_Store", "images/notes.txt")
    touch(tmp_path, "masks/a.png", "masks/day/c.png", "unlabeled/u.jpg")
    (tmp_path / "classes.txt").write_text("ground\ntree\ncar\n")
    return tmp_path


class TestFolder:
    def test_samples_are_found_by_name(self, plain: Path) -> None:
        listing = listed(plain)
        assert listing.train == (
            Sample("a", "images/a.jpg", "masks/a.png"),
            Sample("b", "images/b.png", None),
            Sample("day/c", "images/day/c.JPG", "masks/day/c.png"),
            Sample("u", "unlabeled/u.jpg", None),
        )
        assert listing.test == ()
        assert listing.spec.class_names == ("ground", "tree", "car")
        assert listing.spec.ids == {0: 0, 1: 1, 2: 2, 255: 255}

    def test_test_list_takes_ids_out_of_training(self, plain: Path) -> None:
        (plain / "test.txt").write_text("a\n")
        listing = listed(plain)
        assert [s.id for s in listing.train] == ["b", "day/c", "u"]
        assert [s.id for s in listing.test] == ["a"]

    @pytest.mark.parametrize("links", [{"images/day/up": ".."}, {"images/day/to": "../night", "images/night/to": "../day"}])
    def test_a_link_that_leads_back_is_named(self, plain: Path, links: dict[str, str]) -> None:
        (plain / "images/night").mkdir()
        for name, target in links.items():
            (plain / name).symlink_to(target)
        with pytest.raises(
            DataError, match=r"images/(day|night)/.*: a link to a folder that it lies in itself\. Remove the link"
        ):
            listed(plain)

    @pytest.mark.parametrize("name", ["masks", "unlabeled", "images/disk", "masks/disk", "unlabeled/disk 1.2"])
    def test_a_link_to_a_folder_that_is_not_there_is_named(self, plain: Path, name: str) -> None:
        """As of a disk that is not mounted: what it holds would be missing unseen."""
        if (plain / name).is_dir():
            (plain / name).rename(plain / "elsewhere")
        (plain / name).symlink_to(plain / "nowhere")
        with pytest.raises(DataError, match=rf"/{name}: a link to what is not there\. Mount or mend it"):
            listed(plain)

    def test_a_link_to_another_folder_is_followed(self, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        other = tmp_path_factory.mktemp("other")
        touch(other, "n.jpg", "deep/m.jpg")
        (plain / "images/more").symlink_to(other)
        assert [s.id for s in listed(plain).train] == ["a", "b", "day/c", "more/deep/m", "more/n", "u"]

    @pytest.mark.parametrize(("name", "problem"), [(b"caf\xe9.png", "is not UTF-8"), (b"a\nb.png", "has a line break")])
    def test_a_name_that_no_list_could_hold_is_refused_by_its_bytes(self, plain: Path, name: bytes, problem: str) -> None:
        (Path(os.fsdecode(os.fsencode(plain) + b"/unlabeled/" + name))).touch()
        with pytest.raises(DataError, match=re.escape(f"unlabeled: the name of the file {name!r} {problem}. Rename the file.")):
            listed(plain)

    def test_train_list_does_not_shut_out_the_unlabeled_folder(self, plain: Path) -> None:
        (plain / "train.txt").write_text("day/c\n")
        assert [s.id for s in listed(plain).train] == ["day/c", "u"]

    def test_two_files_with_one_id_are_refused(self, plain: Path) -> None:
        touch(plain, "images/a.png")
        with pytest.raises(DataError, match=r"images/a\.\w+ and images/a\.\w+ have the same id 'a'"):
            listed(plain)

    def test_id_in_images_and_unlabeled_is_refused(self, plain: Path) -> None:
        touch(plain, "unlabeled/a.jpg")
        with pytest.raises(DataError, match=r"images/a\.jpg and unlabeled/a\.jpg have the same id"):
            listed(plain)

    def test_mask_without_image_gives_the_near_name(self, plain: Path) -> None:
        touch(plain, "masks/day/cc.png")
        with pytest.raises(DataError, match=r"masks/day/cc\.png: no image .*Did you mean 'day/c'\?"):
            listed(plain)

    @pytest.mark.parametrize(
        ("masks", "said"),
        [
            (("a_mask", "day/c_mask"), "2 masks. All their names end in '_mask', which those of the images lack: take it off."),
            (("a_mask", "day/c_mask", "z"), "3 masks. Add the images, or name the masks as they are named."),
        ],
    )
    def test_masks_without_image_are_counted_with_the_ending_that_all_have(
        self, plain: Path, masks: tuple[str, ...], said: str
    ) -> None:
        touch(plain, *(f"masks/{mask}.png" for mask in masks))
        with pytest.raises(DataError, match=re.escape(f"masks/a_mask.png: no image images/a_mask.*. So it is with {said}")):
            listed(plain)

    def test_mask_whose_name_differs_from_an_image_by_case_alone_gives_that_image(self, plain: Path) -> None:
        touch(plain, "images/Photo_003.JPG", "images/photo_013.jpg", "masks/photo_003.png")
        with pytest.raises(DataError, match=r"masks/photo_003\.png: no image .*Did you mean 'Photo_003'\?"):
            listed(plain)

    @pytest.mark.parametrize("kind", [".HEIC", ".jfif"])
    def test_mask_of_an_image_that_is_not_read_names_the_image(self, plain: Path, kind: str) -> None:
        touch(plain, f"images/day [1]/d.e{kind}", "images/day [1]/d.e.txt.txt", "masks/day [1]/d.e.png")
        with pytest.raises(
            DataError, match=rf"d\.e\.png: its image images/day \[1\]/d\.e\{kind} is of a kind that is not read.*\.jpeg, "
        ):
            listed(plain)

    @pytest.mark.parametrize(
        ("folder", "other"), [("unlabeled", "unlabelled"), ("unlabeled", "Unlabeled"), ("masks", "mask"), ("masks", "Masks")]
    )
    def test_a_folder_that_is_misspelt_is_named_and_not_passed_over(self, plain: Path, folder: str, other: str) -> None:
        (plain / folder).rename(plain / other)
        with pytest.raises(DataError, match=rf"/{other}: a folder of that name is not read\. Did you mean {folder}\? Rename it"):
            listed(plain)

    def test_a_folder_of_another_name_is_nobodys_business(self, plain: Path) -> None:
        (plain / "unlabeled").rename(plain / "labeled")
        assert [s.id for s in listed(plain).train] == ["a", "b", "day/c"]

    def test_jpeg_mask_is_refused(self, plain: Path) -> None:
        touch(plain, "masks/b.jpg")
        with pytest.raises(DataError, match=r"masks/b\.jpg: masks must be PNG"):
            listed(plain)

    def test_missing_class_list_says_what_to_write(self, plain: Path) -> None:
        (plain / "classes.txt").unlink()
        with pytest.raises(DataError, match=r"no class names\. Write classes\.txt .* data\.classes"):
            listed(plain)

    def test_another_layout_is_recognised(self, tmp_path: Path) -> None:
        touch(tmp_path, "JPEGImages/a.jpg")
        with pytest.raises(DataError, match=r"There is JPEGImages/: set data\.layout: pascal_voc"):
            listed(tmp_path)

    @pytest.mark.parametrize("name", ["train.txt", "test.txt"])
    def test_a_list_that_names_no_image_is_refused(self, plain: Path, name: str) -> None:
        (plain / name).write_text("\n")
        with pytest.raises(DataError, match=rf"{name} names no image\."):
            listed(plain)

    @pytest.mark.parametrize("key", ["train_list", "test_list"])
    def test_so_is_one_of_the_split(self, key: str, plain: Path) -> None:
        (plain / "empty.txt").touch()
        with pytest.raises(DataError, match=r"empty\.txt names no image\."):
            listed(plain, SplitConfig(**{key: "empty.txt"}))

    def test_missing_root_and_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere does not exist: give the folder of the dataset with data\.root or --data"):
            listed(tmp_path / "nowhere")
        (tmp_path / "images").mkdir()
        with pytest.raises(DataError, match="no class names"):
            listed(tmp_path)
        with pytest.raises(DataError, match="no images"):
            listed(tmp_path, classes=["a"])

    def test_nothing_is_opened(self, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("images/a.jpg", "masks/a.png", "unlabeled/u.jpg"):
            (plain / name).chmod(0)
        monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was opened"))
        assert len(listed(plain).train) == 4


class TestClasses:
    def test_colours_in_the_class_list_serve_drawing_and_rgb_masks(self, plain: Path) -> None:
        (plain / "classes.txt").write_text("bare ground 1 2 3\ntree 0 128 0\n")
        spec = listed(plain).spec
        assert spec.class_names == ("bare ground", "tree")
        assert spec.palette == ((1, 2, 3), (0, 128, 0))
        assert spec.colors == {(1, 2, 3): 0, (0, 128, 0): 1}
        assert spec.ids == {0: 0, 1: 1, 255: 255}

    def test_label_map_of_cvat_gives_names_and_colours(self, plain: Path) -> None:
        (plain / "classes.txt").unlink()
        (plain / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:128, 0,0::\n")
        spec = listed(plain, ignore_classes=["background"]).spec
        assert spec.class_names == ("car",)
        assert spec.colors == {(0, 0, 0): 255, (128, 0, 0): 0}
        assert spec.ids == {}

    def test_configured_classes_and_colours_win(self, plain: Path) -> None:
        spec = listed(plain, classes=["x", "y"], colors={"y": (9, 9, 9), "x": (1, 1, 1)}).spec
        assert spec.class_names == ("x", "y")
        assert spec.colors == {(1, 1, 1): 0, (9, 9, 9): 1}

    def test_merged_class_takes_the_place_of_its_first_member(self, plain: Path) -> None:
        spec = listed(plain, classes=["a", "b", "c", "d", "e"], merge={"bd": ["d", "b"]}, ignore_classes=["c"]).spec
        assert spec.class_names == ("a", "bd", "e")
        assert spec.ids == {0: 0, 1: 1, 2: 255, 3: 1, 4: 2, 255: 255}
        assert spec.palette == ((0, 0, 0), (128, 0, 0), (0, 0, 128))

    def test_other_ignore_index(self, plain: Path) -> None:
        spec = listed(plain, ignore_index=11, ignore_classes=["car"]).spec
        assert spec.ids == {0: 0, 1: 1, 2: 11, 11: 11}
        assert spec.ignore_index == 11

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"merge": {"plant": ["tre"]}}, r"data\.merge\.plant: no class 'tre' .* Did you mean 'tree'\?"),
            ({"ignore_classes": ["cra"]}, r"data\.ignore_classes: no class 'cra' .* Did you mean 'car'\?"),
            ({"merge": {"x": ["tree"]}, "ignore_classes": ["tree"]}, r"'tree' is merged or ignored already"),
            ({"merge": {"car": ["tree"]}}, r"'car' is a class itself\. Name it too: car: \[car, \.\.\.\]"),
            ({"merge": {"x": []}}, r"data\.merge\.x takes in no class"),
            ({"ignore_classes": ["ground", "tree", "car"]}, r"leaves no class"),
            ({"ignore_index": 0}, r"data\.ignore_index is 0, which is a class of its own\. Use 255"),
            ({"classes": ["a", "a"]}, r"names 'a' twice"),
            ({"colors": {"ground": (0, 0, 0), "tree": (1, 1, 1)}}, r"class 'car' has no colour"),
            ({"colors": {"gruond": (0, 0, 0)}}, r"'gruond' is not a class .* Did you mean 'ground'\?"),
            ({"classes": ["a", "b"], "colors": {"a": (0, 0, 0), "b": (0, 0, 0)}}, r"'a' and 'b' have the same colour"),
        ],
    )
    def test_contradictions_tell_the_mend(self, plain: Path, data: dict[str, object], message: str) -> None:
        with pytest.raises(ParamsError, match=message):
            listed(plain, **data)

    @pytest.mark.parametrize(
        ("file", "text", "message"),
        [
            ("classes.txt", "a\nb\na\n", r"classes\.txt, line 3: class 'a' is listed twice"),
            ("classes.txt", "a 1 2 3\nb\n", r"class 'b' has no colour, but others do"),
            ("classes.txt", "a 1 2 300\n", r"line 1: colour 1,2,300 exceeds 255"),
            ("labelmap.txt", "a 0,0,0\n", r"labelmap\.txt, line 1: 'a 0,0,0' is not of the form name:r,g,b::"),
        ],
    )
    def test_malformed_files_name_the_line(self, plain: Path, file: str, text: str, message: str) -> None:
        (plain / file).write_text(text)
        with pytest.raises(DataError, match=message):
            listed(plain)


class TestPascalVoc:
    @pytest.fixture
    def voc(self, tmp_path: Path) -> Path:
        touch(tmp_path, *(f"JPEGImages/{name}.jpg" for name in "abcde"), *(f"SegmentationClass/{name}.png" for name in "abc"))
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\nd\n")
        (lists / "val.txt").write_text("b\n")
        return tmp_path

    def test_unlisted_images_take_no_part(self, voc: Path) -> None:
        listing = listed(voc, layout="pascal_voc", classes=["x"])
        assert listing.train == (Sample("a", "JPEGImages/a.jpg", "SegmentationClass/a.png"), Sample("d", "JPEGImages/d.jpg"))
        assert [s.id for s in listing.test] == ["b"]

    @pytest.mark.parametrize(
        ("text", "tested"),
        [
            ("# mine\nc\n", "c"),
            ("c\n2008_000001\n", "b"),  # no mask is published
            ("JPEGImages/c.jpg SegmentationClass/c.png\r\n", "c"),
            ("", "b"),
            ("# none\n", "b"),
        ],
    )
    def test_a_test_list_is_read_in_every_form_and_one_without_masks_gives_way_to_val(
        self, voc: Path, text: str, tested: str
    ) -> None:
        (voc / "ImageSets/Segmentation/test.txt").write_bytes(text.encode())
        assert [s.id for s in listed(voc, layout="pascal_voc", classes=["x"]).test] == [tested]

    @pytest.mark.parametrize(
        ("text", "val", "said"),
        [
            ("", "b\n", "test.txt names no image: val.txt is tested on"),
            ("c\nd\nx\n", "b\n", "test.txt names 3 images, 2 of them without a mask, the first 'd': val.txt is tested on"),
            ("x\n", None, "test.txt names 1 image, 1 of them without a mask, the first 'x': test images are drawn"),
        ],
    )
    def test_why_another_list_than_test_is_tested_on_is_told(
        self, voc: Path, text: str, val: str | None, said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        lists = voc / "ImageSets/Segmentation"
        (lists / "test.txt").write_text(text)
        if val is None:
            (lists / "val.txt").unlink()
        with caplog.at_level(logging.INFO):
            listed(voc, layout="pascal_voc", classes=["x"])
        assert said in caplog.text

    @pytest.mark.parametrize("name", ["train.txt", "val.txt"])
    def test_a_list_that_names_no_image_is_refused(self, voc: Path, name: str) -> None:
        (voc / "ImageSets/Segmentation" / name).write_text("# to do\n")
        with pytest.raises(DataError, match=rf"Segmentation/{name} names no image\. Name some, or do without the list\."):
            listed(voc, layout="pascal_voc", classes=["x"])

    def test_masks_that_are_no_png_are_refused(self, voc: Path) -> None:
        touch(voc, "SegmentationClassAug/d.jpg")
        with pytest.raises(DataError, match=r"SegmentationClassAug/d\.jpg: masks must be PNG, which keeps every value"):
            listed(voc, layout="pascal_voc", classes=["x"])

    @pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClassAug"])
    def test_a_mask_without_image_is_refused(self, voc: Path, folder: str) -> None:
        touch(voc, f"{folder}/d_.png")
        with pytest.raises(DataError, match=rf"{folder}/d_\.png: no image JPEGImages/d_\.\*\. Did you mean 'd'\?"):
            listed(voc, layout="pascal_voc", classes=["x"])

    def test_second_mask_folder_fills_gaps_only(self, voc: Path) -> None:
        touch(voc, "SegmentationClassAug/a.png", "SegmentationClassAug/d.png")
        masks = {s.id: s.mask for s in listed(voc, layout="pascal_voc", classes=["x"]).train}
        assert masks == {"a": "SegmentationClass/a.png", "d": "SegmentationClassAug/d.png"}

    def test_train_list_widens_training_to_any_image(self, voc: Path) -> None:
        (voc / "train_aug.txt").write_text("a\nd\ne\n")
        listing = listed(voc, SplitConfig(train_list="train_aug.txt"), layout="pascal_voc", classes=["x"])
        assert [s.id for s in listing.train] == ["a", "d", "e"]

    def test_overlap_of_training_and_test_is_refused(self, voc: Path) -> None:
        (voc / "all.txt").write_text("a\nb\n")
        with pytest.raises(DataError, match="1 image is listed both for training and for testing, the first 'b'"):
            listed(voc, SplitConfig(train_list="all.txt"), layout="pascal_voc", classes=["x"])

    def test_class_names_are_not_guessed(self, voc: Path) -> None:
        with pytest.raises(DataError, match="no class names"):
            listed(voc, layout="pascal_voc")

    def test_real_files(self) -> None:
        root = SHARED / "fixtures" / "voc"
        if not root.is_dir():
            pytest.skip("the VOC fixture is not on this machine")
        listing = listed(root, layout="pascal_voc")
        assert len(listing.train) == 4 and len(listing.test) == 2
        assert listing.spec.class_names[15] == "person"
        masks = {s.id: read_mask(root / str(s.mask), listing.spec) for s in listing.train + listing.test}
        assert all(mask[mask != 255].max() <= 20 for mask in masks.values())
        assert (masks["2011_000003"] == 255).any()  # the border around every object


class TestCityscapes:
    FRAME = "aachen/aachen_000000_000019"

    @pytest.fixture
    def city(self, tmp_path: Path) -> Path:
        touch(tmp_path, f"leftImg8bit/train/{self.FRAME}_leftImg8bit.png", f"gtFine/train/{self.FRAME}_gtFine_labelIds.png")
        touch(tmp_path, f"gtFine/train/{self.FRAME}_gtFine_color.png", f"gtFine/train/{self.FRAME}_gtFine_polygons.json")
        touch(tmp_path, "leftImg8bit/train_extra/bonn/bonn_1_leftImg8bit.png", "leftImg8bit/test/x/x_1_leftImg8bit.png")
        touch(tmp_path, "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png", "gtFine/val/ulm/ulm_1_gtFine_labelIds.png")
        return tmp_path

    def test_ids_are_those_of_the_fields_lists(self, city: Path) -> None:
        listing = listed(city, layout="cityscapes")
        assert [s.id for s in listing.train] == [f"train/{self.FRAME}", "train_extra/bonn/bonn_1"]
        assert [s.mask is None for s in listing.train] == [False, True]
        assert [s.id for s in listing.test] == ["val/ulm/ulm_1"]

    def test_label_ids_are_mapped_to_the_nineteen_classes(self, city: Path) -> None:
        spec = listed(city, layout="cityscapes").spec
        assert spec.num_classes == 19
        named = {spec.class_names[index]: raw for raw, index in spec.ids.items() if index != 255}
        assert (named["road"], named["traffic light"], named["train"], named["bicycle"]) == (7, 19, 31, 33)
        ignored = sorted(raw for raw, index in spec.ids.items() if index == 255)
        assert ignored == [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255]

    def test_train_ids_are_used_where_complete(self, city: Path) -> None:
        touch(city, f"gtFine/train/{self.FRAME}_gtFine_labelTrainIds.png")
        assert listed(city, layout="cityscapes").train[0].mask == f"gtFine/train/{self.FRAME}_gtFine_labelIds.png"
        touch(city, "gtFine/val/ulm/ulm_1_gtFine_labelTrainIds.png")
        listing = listed(city, layout="cityscapes")
        assert listing.train[0].mask == f"gtFine/train/{self.FRAME}_gtFine_labelTrainIds.png"
        assert listing.spec.ids == {**{i: i for i in range(19)}, 255: 255}

    def test_two_kinds_of_masks_are_not_mixed(self, city: Path) -> None:
        touch(city, "gtFine/train/bonn/bonn_9_gtFine_labelTrainIds.png")
        with pytest.raises(DataError, match=r"bonn_9_gtFine_labelTrainIds\.png: has no labelIds"):
            listed(city, layout="cityscapes")

    @pytest.mark.parametrize(
        ("folder", "ending"), [("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"), ("gtFine", "gtFine_labelTrainIds")]
    )
    def test_a_name_that_no_list_could_hold_is_refused(self, city: Path, folder: str, ending: str) -> None:
        touch(city, f"{folder}/train/aachen/a\nb_{ending}.png")
        name = repr(f"train/aachen/a\nb_{ending}.png".encode())
        with pytest.raises(
            DataError, match=re.escape(f"{folder}: the name of the file {name} has a line break. Rename the file.")
        ):
            listed(city, layout="cityscapes")

    def test_classes_can_be_merged_but_not_recounted(self, city: Path) -> None:
        spec = listed(city, layout="cityscapes", merge={"two wheels": ["motorcycle", "bicycle"]}).spec
        assert (spec.num_classes, spec.ids[32], spec.ids[33]) == (18, 17, 17)
        with pytest.raises(ParamsError, match="names 2 classes; it can only rename all 19"):
            listed(city, layout="cityscapes", classes=["a", "b"])

    def test_both_kinds_of_real_masks_agree(self) -> None:
        """labelIds through our table against labelTrainIds as they are."""
        root = SHARED / "fixtures" / "cityscapes"
        if not root.is_dir():
            pytest.skip("the Cityscapes fixture is not on this machine")
        listing = listed(root, layout="cityscapes")
        assert len(listing.train) == 5 and len(listing.test) == 3
        table = {value: place for place, (_, _, value) in enumerate(CLASSES)}
        raw_spec = replace(listing.spec, ids={raw: table.get(raw, 255) for raw in range(256)})
        for sample in listing.train:
            path = root / str(sample.mask)
            by_table = read_mask(path.with_name(path.name.replace("labelTrainIds", "labelIds")), raw_spec)
            assert (by_table == read_mask(path, listing.spec)).all()


class TestLists:
    IMAGES: ClassVar = {
        "2007_000032": "JPEGImages/2007_000032.jpg",
        "train/a/a_1": "leftImg8bit/train/a/a_1_leftImg8bit.png",
        "two words": "images/two words.png",
    }

    def test_every_form_of_the_field(self, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_text(
            "\ufeff# a comment\n/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n\ntwo words\r\n"
            "leftImg8bit/train/a/a_1_leftImg8bit.png gtFine/train/a/a_1_gtFine_labelTrainIds.png\n"
        )
        assert read_ids(tmp_path / "l.txt", self.IMAGES) == ("2007_000032", "two words", "train/a/a_1")
        (tmp_path / "l.txt").write_text("train/a/a_1\n2007_000032  1\n")
        assert read_ids(tmp_path / "l.txt", self.IMAGES) == ("train/a/a_1", "2007_000032")

    def test_a_name_with_spaces_never_stands_for_its_first_word(self, tmp_path: Path) -> None:
        images = {name: f"images/{name}.jpg" for name in ("photo", "photo (2)", "other")}
        (tmp_path / "l.txt").write_text("photo (2)\nphoto\nother 1\n")
        assert read_ids(tmp_path / "l.txt", images) == ("photo (2)", "photo", "other")
        for line in ("photo (3)", "photo (2).jpg"):
            (tmp_path / "l.txt").write_text(f"{line}\n")
            with pytest.raises(DataError, match=rf"line 1: '{re.escape(line)}' is not among the 3 images"):
                read_ids(tmp_path / "l.txt", images)

    def test_unknown_id_names_line_and_near_id(self, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_text("2007_000032\n\n2007_00033\n")
        with pytest.raises(DataError, match=r"l\.txt, line 3: '2007_00033' is not among the 3 .* Did you mean '2007_000032'\?"):
            read_ids(tmp_path / "l.txt", self.IMAGES)

    def test_a_name_that_only_looks_the_same_says_so(self, plain: Path) -> None:
        touch(plain, "images/Foto\u0308 1.jpg")  # NFD
        said = r"'Foto\u0308 1' looks the same, and is written with other code points (Unicode NFC or NFD). Write both alike."
        (plain / "test.txt").write_text("Fot\u00f6 1\n")
        with pytest.raises(
            DataError,
            match=re.escape(f"line 1: 'Fot\u00f6 1' is not among the 4 images that may be named here. Mend the line. {said}"),
        ):
            listed(plain)
        (plain / "test.txt").unlink()
        touch(plain, "masks/Fot\u00f6 1.png")
        with pytest.raises(DataError, match=re.escape(f"no image images/Fot\u00f6 1.*. {said}")):
            listed(plain)

    def test_duplicate_names_both_lines(self, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_text("2007_000032\nJPEGImages/2007_000032.jpg x\n")
        with pytest.raises(DataError, match=r"line 2: '2007_000032' is named in line 1 already"):
            read_ids(tmp_path / "l.txt", self.IMAGES)

    def test_list_that_is_gone_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.txt: no such file\. Mend the path, or write it\.$"):
            read_ids(tmp_path / "gone.txt", {})

    def test_missing_list_says_where_it_was_looked_for(self, plain: Path) -> None:
        with pytest.raises(DataError, match=r"split\.test_list: no file gone\.txt, neither below"):
            listed(plain, SplitConfig(test_list="gone.txt"))

    def test_published_splits_are_read_whole(self) -> None:
        root = SHARED / "splits"
        if not root.is_dir():
            pytest.skip("the published split lists are not on this machine")
        images = {line: f"JPEGImages/{line}.jpg" for line in (root / "voc/train_aug_10582.txt").read_text().split()}
        assert len(read_ids(root / "voc/92.txt", images)) == 92
        assert len(read_ids(root / "stpp/pascal/1_8/split_0/labeled.txt", images)) == 1323
        city = (root / "cityscapes/train_2975.txt").read_text().split()
        frames = {id: f"leftImg8bit/{id}_leftImg8bit.png" for id in city}
        assert len(read_ids(root / "cityscapes/1_30.txt", frames)) == 100
        assert len(read_ids(root / "stpp/cityscapes/1_30/split_0/labeled.txt", frames)) == 100
