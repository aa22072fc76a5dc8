"""Roles: a partition, the lists of the field, what stays put, and what is never opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cwbass.config import DataConfig, SplitConfig
from cwbass.data import Listing, list_dataset
from cwbass.data.base import DatasetSpec, Sample
from cwbass.data.manifest import Manifest
from cwbass.data.splits import draw_roles, draw_split
from cwbass.errors import DataError, ParamsError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SPEC = DatasetSpec(
    class_names=("ground", "tree", "car"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)), ids={0: 0, 1: 1, 2: 2, 255: 255}
)


def write_mask(root: Path, id: str, values: list[int]) -> None:
    path = root / "masks" / f"{id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], dtype=np.uint8)).save(path)


def make(root: Path, masked: int, bare: int = 0, tested: int = 0) -> Listing:
    """Masks of four pixels with all three classes in turn; video v holds images v_0 to v_4."""
    samples = []
    for i in range(masked + tested):
        id = f"v{i // 5}_{i % 5}"
        write_mask(root, id, [0, i % 3, i % 3, 255])
        samples.append(Sample(id, f"images/{id}.jpg", f"masks/{id}.png"))
    rest = [Sample(f"u{i // 5}_{i % 5}", f"images/u{i // 5}_{i % 5}.jpg") for i in range(bare)]
    return Listing(SPEC, train=tuple(sorted(samples[:masked] + rest, key=lambda s: s.id)), test=tuple(samples[masked:]))


def roles(manifest: Manifest) -> dict[str, str]:
    return {s.id: role for role in ("labeled", "unlabeled", "selection", "test") for s in manifest.samples(role)}


def ids(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.id for sample in samples]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listing]:
    root = tmp_path_factory.mktemp("many")
    return root, make(root, masked=40, bare=15)


@given(
    labeled=st.one_of(st.none(), st.integers(1, 30), st.floats(0.01, 1)),
    test=st.floats(0.05, 0.4),
    selection=st.floats(0, 0.5),
    seed=st.integers(0, 3),
    pattern=st.sampled_from([None, r"^\w\d+(?=_)"]),
)
@settings(max_examples=25, deadline=None)
def test_roles_are_a_partition_and_the_same_every_time(
    many: tuple[Path, Listing], labeled: float | None, test: float, selection: float, seed: int, pattern: str | None
) -> None:
    root, listing = many
    config = SplitConfig(labeled=labeled, test=test, selection=selection, group_pattern=pattern)
    try:
        manifest = draw_split(listing, config, root=root, seed=seed)
    except ParamsError:
        assert isinstance(labeled, int) and labeled > 40 * (1 - test) - 5  # more labelled images than there are
        return
    assert sum(manifest.counts.values()) == 55
    assert roles(manifest).keys() == {s.id for s in listing.train}
    assert all(s.mask is None for s in manifest.unlabeled)
    assert draw_split(listing, config, root=root, seed=seed) == manifest
    if pattern is not None:
        videos = [{s.id.split("_")[0] for s in role} for role in (manifest.test, manifest.selection, manifest.labeled)]
        assert not videos[0] & (videos[1] | videos[2]) and not videos[1] & videos[2]


def test_counts_of_a_share(tmp_path: Path) -> None:
    """30 masks: 6 tested on, half of 24 labelled, a quarter of these 12 held out; 12 + 5 unlabelled."""
    config = SplitConfig(labeled=0.5, test=0.2, selection=0.25, min_selection=3)
    drawn = draw_roles(make(tmp_path, masked=30, bare=5), config, root=tmp_path, seed=0)
    assert drawn.manifest.counts == {"labeled": 9, "unlabeled": 17, "selection": 3, "test": 6}
    assert sum(drawn.pool_pixels) == 24 * 3  # of four pixels one is ignored
    assert {sample.pixels for sample in drawn.manifest.test} == {None}


def test_shares_are_rounded_and_one_image_is_always_labelled(tmp_path: Path) -> None:
    listing = make(tmp_path, masked=13, tested=1)
    rounded = SplitConfig(labeled=0.9, selection=0.3, min_selection=3)  # 11.7 of 13, of these 3.6
    assert draw_split(listing, rounded, root=tmp_path, seed=0).counts == {"labeled": 8, "unlabeled": 1, "selection": 4, "test": 1}
    few = draw_split(listing, SplitConfig(labeled=0.01), root=tmp_path, seed=0)
    assert few.counts == {"labeled": 1, "unlabeled": 12, "selection": 0, "test": 1}


def test_all_masks_are_labelled_unless_a_number_is_given(tmp_path: Path) -> None:
    manifest = draw_split(make(tmp_path, masked=10, bare=3, tested=2), SplitConfig(selection=0), root=tmp_path, seed=0)
    assert manifest.counts == {"labeled": 10, "unlabeled": 3, "selection": 0, "test": 2}


def test_pixels_are_counted_without_ignored_ones(tmp_path: Path) -> None:
    write_mask(tmp_path, "a", [2, 2, 0, 255, 255])
    write_mask(tmp_path, "t", [0])
    listing = Listing(SPEC, (Sample("a", "images/a.jpg", "masks/a.png"),), (Sample("t", "images/t.jpg", "masks/t.png"),))
    assert draw_split(listing, SplitConfig(), root=tmp_path, seed=0).labeled[0].pixels == (1, 0, 2)


def test_changed_mask_changes_the_hash(tmp_path: Path) -> None:
    listing = make(tmp_path, masked=5, tested=1)
    before = draw_split(listing, SplitConfig(), root=tmp_path, seed=0)
    write_mask(tmp_path, "v0_0", [0, 0, 0, 1])
    assert draw_split(listing, SplitConfig(), root=tmp_path, seed=0).hash != before.hash


def test_seed_changes_the_draw(tmp_path: Path) -> None:
    listing = make(tmp_path, masked=30)
    config = SplitConfig(labeled=20, selection=0.4)
    for fixed, drawn_anew in ((False, ("labeled", "test")), (True, ("selection",))):
        images = Listing(SPEC, listing.train[:20], listing.train[20:]) if fixed else listing  # which leaves the last draw alone
        drawn = [draw_split(images, config, root=tmp_path, seed=seed) for seed in range(5)]
        for role in drawn_anew:
            assert len({tuple(ids(manifest.samples(role))) for manifest in drawn}) == 5


class TestSelection:
    def test_too_small_a_slice_is_left_out_and_noted(self, tmp_path: Path) -> None:
        manifest = draw_split(make(tmp_path, masked=20, tested=1), SplitConfig(selection=0.15), root=tmp_path, seed=0)
        assert manifest.selection == () and len(manifest.labeled) == 20
        assert "No selection slice: split.selection (0.15) of 20 labelled images gives fewer than" in manifest.notes[0]
        assert "the last checkpoint counts" in manifest.notes[0]

    def test_last_image_of_a_class_stays_in_training(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=20, tested=1)
        for i in range(20):
            write_mask(tmp_path, f"v{i // 5}_{i % 5}", [0, 1, 1, 2 if i == 7 else 1])
        for seed in range(5):
            manifest = draw_split(listing, SplitConfig(selection=0.5), root=tmp_path, seed=seed)
            assert len(manifest.selection) == 10
            assert "v1_2" in ids(manifest.labeled)

    def test_groups_are_held_out_whole(self, tmp_path: Path) -> None:
        config = SplitConfig(selection=0.3, group_pattern="^(v[0-9]+)_")
        manifest = draw_split(make(tmp_path, masked=20, tested=5), config, root=tmp_path, seed=0)
        assert len(manifest.selection) == 5  # 6 were asked for; a second video of 5 would be further off
        assert len({sample.id[:2] for sample in manifest.selection}) == 1

    def test_a_slice_that_cannot_be_large_enough_is_left_out(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=10, tested=1)
        for i in range(10):
            write_mask(tmp_path, f"v{i // 5}_{i % 5}", [0, 1 if i < 2 else 2, 0, 0])
        config = SplitConfig(selection=0.9, min_selection=9)  # nine would take an image from each class, and eight are left
        manifest = draw_split(listing, config, root=tmp_path, seed=0)
        assert manifest.counts == {"labeled": 10, "unlabeled": 0, "selection": 0, "test": 1}


class TestStability:
    CONFIG = SplitConfig(labeled=10, test=0.2, selection=0.4, min_selection=2)

    def test_image_without_mask_changes_no_other_role(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=30, bare=4)
        before = roles(draw_split(listing, self.CONFIG, root=tmp_path, seed=0))
        more = Listing(SPEC, (*listing.train, Sample("x", "images/x.jpg")), ())
        assert roles(draw_split(more, self.CONFIG, root=tmp_path, seed=0)) == before | {"x": "unlabeled"}

    def test_image_with_mask_moves_few(self, tmp_path: Path) -> None:
        """Over 20 new files, on average less than 3 of 30 images change their role."""
        listing = make(tmp_path, masked=30)
        before = roles(draw_split(listing, self.CONFIG, root=tmp_path, seed=0))
        moved = []
        for i in range(20):
            write_mask(tmp_path, f"x{i}", [0, i % 3, i % 3, 255])
            more = Listing(SPEC, (*listing.train, Sample(f"x{i}", f"images/x{i}.jpg", f"masks/x{i}.png")), ())
            after = roles(draw_split(more, self.CONFIG, root=tmp_path, seed=0))
            moved.append(sum(after[id] != role for id, role in before.items()))
        assert np.mean(moved) < 3

    def test_listed_test_set_never_moves(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=10, tested=3)
        for seed in range(3):
            assert ids(draw_split(listing, SplitConfig(labeled=3), root=tmp_path, seed=seed).test) == ids(listing.test)


class TestNeverOpened:
    def test_masks_that_no_list_names_may_be_garbage(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=10, tested=1)
        (tmp_path / "labeled.txt").write_text("v0_0\nv0_1\nv1_0\n")
        for sample in (*listing.train, *listing.test):
            if sample.id not in ("v0_0", "v0_1", "v1_0"):
                (tmp_path / str(sample.mask)).write_text("no mask")
        manifest = draw_split(listing, SplitConfig(labeled_list="labeled.txt"), root=tmp_path, seed=0)
        assert ids(manifest.labeled) == ["v0_0", "v0_1", "v1_0"]
        assert len(manifest.unlabeled) == 7 and all(sample.mask is None for sample in manifest.unlabeled)

    def test_unlabeled_list_closes_masks_when_all_else_is_labelled(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=5, tested=1)
        (tmp_path / "masks/v0_4.png").write_text("no mask")
        (tmp_path / "unlabeled.txt").write_text("v0_4\n")
        manifest = draw_split(listing, SplitConfig(unlabeled_list="unlabeled.txt"), root=tmp_path, seed=0)
        assert roles(manifest)["v0_4"] == "unlabeled" and len(manifest.labeled) == 4


class TestLists:
    def test_both_forms_of_the_field(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=6, tested=1)
        (tmp_path / "l.txt").write_text("images/v0_1.jpg masks/v0_1.png\nv0_2\n")
        manifest = draw_split(listing, SplitConfig(labeled_list="l.txt"), root=tmp_path, seed=0)
        assert ids(manifest.labeled) == ["v0_1", "v0_2"]

    def test_unlabeled_list_leaves_the_rest_out(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=6, bare=2, tested=1)
        (tmp_path / "l.txt").write_text("v0_1\n")
        (tmp_path / "u.txt").write_text("v0_1\nv0_3\nu0_0\n")
        config = SplitConfig(labeled_list="l.txt", unlabeled_list="u.txt")
        manifest = draw_split(listing, config, root=tmp_path, seed=0)
        assert roles(manifest) == {"v0_1": "labeled", "v0_3": "unlabeled", "u0_0": "unlabeled", "v1_1": "test"}

    def test_an_unlabeled_list_may_name_none(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=3, bare=2, tested=1)
        (tmp_path / "u.txt").touch()
        manifest = draw_split(listing, SplitConfig(unlabeled_list="u.txt"), root=tmp_path, seed=0)
        assert (len(manifest.labeled), len(manifest.unlabeled)) == (3, 0)

    def test_test_set_is_carved_beside_the_labeled_list(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=20)
        (tmp_path / "l.txt").write_text("v0_0\nv0_1\n")
        config = SplitConfig(labeled_list="l.txt", test=0.34, group_pattern="^(v[0-9]+)_")
        for seed in range(10):
            drawn = draw_roles(listing, config, root=tmp_path, seed=seed)
            assert ids(drawn.manifest.labeled) == ["v0_0", "v0_1"]
            assert len(drawn.manifest.test) == 5  # one of three videos: the one with labelled images cannot be tested on
            assert not any(id.startswith("v0") for id in ids(drawn.manifest.test))
            assert sum(drawn.pool_pixels) == 15 * 3  # of the two that are named, and of 13 that could have been

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("v0_0\nv0_00\n", r"l\.txt, line 2: 'v0_00' is not among the"),
            ("v0_0\nv1_0\n", r"1 id is tested on, the first 'v1_0'\. Remove them from split\.labeled_list"),
            ("u0_0\n", r"split\.labeled_list names 'u0_0', which has no mask"),
            ("", r"l\.txt names no image\. Name some, or do without the list"),
        ],
    )
    def test_wrong_lists_tell_the_line(self, tmp_path: Path, text: str, message: str) -> None:
        listing = make(tmp_path, masked=5, bare=1, tested=1)
        (tmp_path / "l.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            draw_split(listing, SplitConfig(labeled_list="l.txt"), root=tmp_path, seed=0)

    def test_published_list_of_real_files(self) -> None:
        root = SHARED / "camvid_small"
        if not root.is_dir():
            pytest.skip("CamVid is not on this machine")
        config = SplitConfig(labeled_list="ImageSets/SemiSeg/1_16/labeled.txt")
        listing = list_dataset(DataConfig(layout="pascal_voc"), config, root)
        manifest = draw_split(listing, config, root=root, seed=0)
        assert manifest.counts == {"labeled": 23, "unlabeled": 344, "selection": 0, "test": 233}
        unlabeled = (root / "ImageSets/SemiSeg/1_16/unlabeled.txt").read_text().split()
        assert ids(manifest.unlabeled) == sorted(unlabeled)


class TestGroups:
    def test_at_least_one_group_is_tested_on(self, tmp_path: Path) -> None:
        config = SplitConfig(test=0.05, group_pattern="^(v[0-9]+)_")  # 1 of 20 images, but videos have 5
        assert len(draw_split(make(tmp_path, masked=20), config, root=tmp_path, seed=0).test) == 5

    def test_images_without_mask_of_a_tested_group_take_no_part(self, tmp_path: Path) -> None:
        listing = make(tmp_path, masked=10)
        more = Listing(SPEC, (*listing.train, Sample("v0_x", "images/v0_x.jpg"), Sample("v1_x", "images/v1_x.jpg")), ())
        config = SplitConfig(test=0.5, group_pattern="^(v[0-9]+)_")
        manifest = draw_split(more, config, root=tmp_path, seed=0)
        tested = manifest.test[0].id.split("_")[0]
        other = "v1" if tested == "v0" else "v0"
        assert ids(manifest.unlabeled) == [f"{other}_x"]
        assert "1 image without a mask takes no part: its group is tested on." in manifest.notes

    def test_number_of_labelled_groups_is_noted(self, tmp_path: Path) -> None:
        config = SplitConfig(labeled=7, group_pattern="^(v[0-9]+)_")
        manifest = draw_split(make(tmp_path, masked=20, tested=1), config, root=tmp_path, seed=0)
        assert "The 7 labelled images come from 2 groups." in manifest.notes


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (SplitConfig(test=0), ParamsError, r"split\.test is 0 and the dataset names no test images"),
        (SplitConfig(labeled=50), ParamsError, r"split\.labeled is 50, but beside the test set only 4 images have masks"),
        (SplitConfig(group_pattern="(v"), ParamsError, r"split\.group_pattern '\(v' is no regular expression"),
        (SplitConfig(group_pattern="^v0"), DataError, r"no test images can be spared from 5 images with masks"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, config: SplitConfig, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw_split(make(tmp_path, masked=5), config, root=tmp_path, seed=0)


def test_no_masks_at_all_and_test_image_without_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image with a mask is left to test on"):
        draw_split(make(tmp_path, masked=0, bare=3), SplitConfig(), root=tmp_path, seed=0)
    with pytest.raises(DataError, match="no image with a mask is left to be labelled"):
        draw_split(make(tmp_path, masked=0, bare=3, tested=1), SplitConfig(), root=tmp_path, seed=0)
    bare_test = Listing(SPEC, (), (Sample("t", "images/t.jpg"),))
    with pytest.raises(DataError, match=r"test image 't' \(images/t\.jpg\) has no mask"):
        draw_split(bare_test, SplitConfig(), root=tmp_path, seed=0)


def test_wrong_mask_is_named(tmp_path: Path) -> None:
    listing = make(tmp_path, masked=5, tested=1)
    write_mask(tmp_path, "v0_3", [0, 0, 9, 9])
    with pytest.raises(DataError, match=r"v0_3\.png: value 9 belongs to no class \(2 pixels, first at x=2, y=0\)"):
        draw_split(listing, SplitConfig(), root=tmp_path, seed=0)


@pytest.mark.parametrize("tested", [0, 1])
def test_a_folder_of_masks_that_is_not_read_is_named(tmp_path: Path, tested: int) -> None:
    for name in ("images/a.png", "labels/train/a.PNG", "other/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    samples = (Sample("a", "images/a.png"),)
    listing = Listing(SPEC, train=samples[tested:], test=samples[:tested])
    with pytest.raises(
        DataError, match=r" PNG files that are not read lie in labels/: if they are masks, rename the folder to masks/"
    ):
        draw_split(listing, SplitConfig(), root=tmp_path, seed=0)
