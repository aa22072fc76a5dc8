"""The manifest: one file, its bytes, its hash, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cwbass.data.base import DatasetSpec, Sample
from cwbass.data.manifest import Manifest
from cwbass.errors import DataError

SPEC = DatasetSpec(class_names=("ground", "tree"), palette=((0, 0, 0), (128, 0, 0)), ids={0: 0, 1: 1, 255: 255})


def manifest() -> Manifest:
    return Manifest(
        spec=SPEC,
        labeled=(Sample("a", "images/a.jpg", "masks/a.png", (3, 1)), Sample("ä", "images/ä.jpg", "masks/ä.png", (4, 0))),
        unlabeled=(Sample("b", "images/b.jpg"),),
        selection=(Sample("c", "images/c.jpg", "masks/c.png", (2, 2)),),
        test=(Sample("d", "images/d.jpg", "masks/d.png"),),
        notes=("a note",),
        seed=7,
    )


EXPECTED = """{
"schema": 1,
"hash": "HASH",
"seed": 7,
"spec": {"class_names": ["ground", "tree"], "palette": [[0, 0, 0], [128, 0, 0]], "ignore_index": 255, \
"ids": {"0": 0, "1": 1, "255": 255}, "colors": null},
"notes": [
"a note"
],
"labeled": [
{"id": "a", "image": "images/a.jpg", "mask": "masks/a.png", "pixels": [3, 1]},
{"id": "\\u00e4", "image": "images/\\u00e4.jpg", "mask": "masks/\\u00e4.png", "pixels": [4, 0]}
],
"unlabeled": [
{"id": "b", "image": "images/b.jpg"}
],
"selection": [
{"id": "c", "image": "images/c.jpg", "mask": "masks/c.png", "pixels": [2, 2]}
],
"test": [
{"id": "d", "image": "images/d.jpg", "mask": "masks/d.png"}
]
}
"""


def test_file_holds_one_sample_a_line(tmp_path: Path) -> None:
    manifest().write(tmp_path / "deep" / "manifest.json")
    assert (tmp_path / "deep" / "manifest.json").read_text() == EXPECTED.replace("HASH", manifest().hash)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["manifest.json"]


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    manifest().write(tmp_path / "m.json")
    assert Manifest.read(tmp_path / "m.json") == manifest()


def test_hash_is_sha256_of_canonical_json_without_notes() -> None:
    """Another program can compute the hash from the file alone."""
    content = json.loads(EXPECTED)
    del content["hash"], content["notes"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert manifest().hash == hashlib.sha256(canonical.encode()).hexdigest()


def test_hash_follows_content_and_not_notes() -> None:
    one = manifest()
    assert replace(one, notes=()).hash == one.hash
    changed_mask = replace(one.selection[0], pixels=(1, 3))
    others = [replace(one, seed=8), replace(one, selection=(changed_mask,)), replace(one, spec=replace(SPEC, ignore_index=254))]
    assert len({one.hash, *(other.hash for other in others)}) == 4


def test_counts_are_derived() -> None:
    assert manifest().counts == {"labeled": 2, "unlabeled": 1, "selection": 1, "test": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[3, 1]", "[4, 1]", r"m\.json was edited: it says hash \w{12}, its content has \w{12}\..*run `cwbass split` again"),
        ('"seed": 7', '"seed": 8', "was edited"),
        ('"schema": 1', '"schema": 2', r"has schema 2; this cwbass reads 1"),
        ('"seed": 7,\n', "", "missing or foreign keys seed"),
        ('"seed": 7', '"seed": 7, "count": 2', "missing or foreign keys count"),
        ('"image": "images/b.jpg"', '"image": "images/b.jpg", "size": 3', "is no manifest"),
        (
            '"images/b.jpg"',
            '"images/b.jpg", "mask": "masks/b.png"',
            r"m\.json: 'b' is unlabeled, but has a mask\. Run `cwbass split`",
        ),
        ('"id": "b"', '"id": "d"', r"'d' is both unlabeled and test; an image has one role"),
        (', "pixels": [2, 2]', "", "'c' is selection; exactly labelled images carry pixel counts. Run `cwbass split` again"),
        ("]\n}\n", "", r"m\.json is no manifest"),
    ],
)
def test_edited_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "m.json"
    manifest().write(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        Manifest.read(path)


def test_edited_notes_are_no_edit(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    manifest().write(path)
    path.write_text(path.read_text().replace("a note", "another"))
    assert Manifest.read(path).notes == ("another",)


def test_missing_file_and_other_json_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such manifest\. Run `cwbass split` first"):
        Manifest.read(tmp_path / "gone.json")
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(DataError, match="it holds a list"):
        Manifest.read(tmp_path / "m.json")


def test_empty_roles_are_refused() -> None:
    with pytest.raises(DataError, match="the split has no labeled image"):
        replace(manifest(), labeled=())
    with pytest.raises(DataError, match="the split has no test image"):
        replace(manifest(), test=())
