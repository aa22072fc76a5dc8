"""Classes of whole images: from a text file to the batches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cwbass.config import AugmentConfig, DataConfig, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.base import Box, Sample
from cwbass.data.lists import read_tags
from cwbass.data.manifest import Manifest
from cwbass.data.splits import draw_split
from cwbass.data.streams import LabeledStream, UnlabeledStream, collate, index_at, make_loader, tag_table
from cwbass.errors import DataError

IMAGES = {"a": "images/a.png", "day/b c": "images/day/b c.png", "d": "images/d.png"}
CLASSES = {"ground": 0, "tree": 1, "car": 2, "van": 2, "sky": None}


def read(tmp_path: Path, text: str) -> dict[str, tuple[int, ...]]:
    (tmp_path / "tags.txt").write_text(text)
    return read_tags(tmp_path / "tags.txt", IMAGES, CLASSES)


def test_a_line_has_an_id_and_all_classes_of_the_image(tmp_path: Path) -> None:
    assert read(tmp_path, "# seen by hand\na, car, ground ,car\n\nday/b c,tree\nd\n") == {"a": (0, 2), "day/b c": (1,), "d": ()}


def test_names_of_merged_and_ignored_classes_hold_as_the_values_of_masks_do(tmp_path: Path) -> None:
    assert read(tmp_path, "a, van, sky\nd, sky") == {"a": (2,), "d": ()}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    (tmp_path / "classes.txt").write_text("sky\nground\ncar\nvan\n")
    (tmp_path / "tags.txt").write_text("a, van, sky, vehicle\n")
    config = DataConfig(merge={"vehicle": ["car", "van"]}, ignore_classes=["sky"])
    listing = list_dataset(config, SplitConfig(), tmp_path)
    assert (listing.spec.class_names, listing.train[0].tags) == (("ground", "vehicle"), (1,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a, tree\nday/b, car", r"line 2: 'day/b' is not among the 3 images. Mend the line. Did you mean 'day/b c'\?"),
        ("a, tree\na, car", r"line 2: 'a' has a line already\. Put all that it shows on one\.$"),
        ("a, tre", r"line 1: 'tre' is no class of the dataset. Mend it. Did you mean 'tree'\?"),
    ],
)
def test_what_is_unknown_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, text)


def test_an_image_keeps_its_tags_where_its_mask_is_put_away(tmp_path: Path) -> None:
    for name, index in (("a", 0), ("b", 1), ("c", 1), ("d", 0), ("e", 1)):
        for folder, value in (("images", 0), ("masks", index)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (8, 8), value).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    (tmp_path / "test.txt").write_text("e\n")
    plain = split(tmp_path)
    (tmp_path / "tags.txt").write_text("".join(f"{name}, tree\n" for name in "abcd"))
    tagged = split(tmp_path)
    assert [len(plain.labeled), len(plain.unlabeled)] == [2, 2]
    assert {sample.tags for sample in (*tagged.labeled, *tagged.unlabeled)} == {(1,)}
    assert {(sample.mask, sample.pixels) for sample in tagged.unlabeled} == {(None, None)}
    assert tagged.hash != plain.hash
    tagged.write(tmp_path / "m.json")
    assert Manifest.read(tmp_path / "m.json") == tagged
    content = json.loads((tmp_path / "m.json").read_text())
    del content["hash"], content["notes"]
    assert tagged.hash == hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def split(root: Path) -> Manifest:
    config = SplitConfig(labeled=2, selection=0.0)
    return draw_split(list_dataset(DataConfig(), config, root), config, root=root, seed=0)


def test_a_table_tells_absent_from_unknown() -> None:
    samples = [Sample("a", "a.png", tags=(0, 2)), Sample("b", "b.png"), Sample("c", "c.png", tags=())]
    table = tag_table(samples, 3)
    assert table is not None
    assert (table.dtype, table.tolist()) == (torch.int8, [[1, 0, 1], [-1, -1, -1], [0, 0, 0]])
    assert tag_table(samples[1:2], 3) is None


class Grey:
    """Image k is grey, of value k."""

    def __len__(self) -> int:
        return 5

    def size(self, index: int) -> tuple[int, int]:
        return 24, 24

    def image(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        left, top, right, bottom = box or (0, 0, 24, 24)
        return np.full((bottom - top, right - left, 3), index, dtype=np.uint8)

    def mask(self, index: int) -> NDArray[np.uint8]:
        return np.zeros((24, 24), dtype=np.uint8)


@pytest.mark.parametrize("kind", [LabeledStream, UnlabeledStream])
def test_a_batch_has_the_tags_of_its_images(kind: Any) -> None:
    tags, augment = torch.eye(5, dtype=torch.int8), AugmentConfig(crop_size=8)
    own = {"ignore_index": 255} if kind is LabeledStream else {"strong_views": 2}
    loader = make_loader(
        kind(Grey(), augment, seed=0, tags=tags, **own), collate, start=1, stop=3, batch_size=4, workers=0, pin_memory=False
    )
    name: Any = "labeled" if kind is LabeledStream else "unlabeled"
    for number, batch in enumerate(loader, start=1):
        shown = [index_at(4 * number + place, 5, seed=0, stream=name) for place in range(4)]
        moved: Any = batch.to(torch.device("cpu"))
        assert moved.tags.argmax(1).tolist() == shown
        assert moved.tags.sum(1).tolist() == [1] * 4
