"""`cwbass init`: from a folder to parameters that fit it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cwbass.data.synthetic import write_shapes
from cwbass.errors import DataError, ParamsError
from cwbass.params import Params, load_params, parse_yaml, read_params
from cwbass.steps.check import check
from cwbass.steps.init import Seen, init, look, proposal

PHOTOS = {"root": "photos", "layout": "folder", "classes": 3, "masks": 50, "unlabeled": 900, "test": 20, "sequences": 0}
CONFIGS = Path(__file__).parents[2] / "configs"


def proposed(height: int, width: int, *, gpu: bool, **other: object) -> Params:
    values = {**PHOTOS, "height": height, "width": width, **other}
    return load_params(parse_yaml(proposal(Seen(**values), gpu=gpu), "proposal"), Params)  # type: ignore[arg-type]


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generated dataset with 8 labelled, 6 unlabelled, 4 test images of 64 x 64, at data/shapes of the folder we are in."""
    monkeypatch.chdir(tmp_path)
    write_shapes(Path("data/shapes"), seed=0, labeled=8, unlabeled=6, test=4, size=(64, 64))
    return Path("data/shapes")


@pytest.mark.parametrize(
    ("height", "width", "gpu", "size", "crop", "scale"),
    [
        (360, 480, False, 0.4, 96, (0.27, 0.6)),  # 144 of 360; 0.67 * 144 = 96.5; 0.67 * 0.4 and 1.5 * 0.4
        (480, 360, False, 0.4, 96, (0.27, 0.6)),
        (96, 96, False, 1.0, 64, (0.67, 1.5)),
        (20, 20, False, 1.0, 32, (0.67, 1.5)),  # never less than a multiple of what encoders halve
        (375, 500, True, 1.0, 320, (0.5, 2.0)),  # 0.85 * 375 = 319
        (1024, 2048, True, 1.0, 512, (0.5, 2.0)),
        (3000, 4000, True, 0.34, 512, (0.17, 0.68)),  # 1024 of 3000
        (30000, 40000, False, 0.0048, 96, (0.0032, 0.0072)),  # 144 of 30,000
    ],
)
def test_a_crop_shows_most_of_the_short_side_at_a_size_that_the_hardware_bears(
    height: int, width: int, gpu: bool, size: float, crop: int, scale: tuple[float, float]
) -> None:
    params = proposed(height, width, gpu=gpu)
    assert params.eval.scales == [size]
    assert (params.augment.crop_size, params.augment.scale) == (crop, scale)


def test_camvid_gets_the_views_and_the_network_of_the_shipped_file() -> None:
    shipped = load_params(read_params(CONFIGS / "camvid.yaml"), Params)
    params = proposed(360, 480, gpu=False)
    assert params.augment == shipped.augment
    assert params.eval == shipped.eval
    assert params.model.model_copy(update={"weights": None}) == shipped.model.model_copy(update={"weights": None})
    assert (params.method, params.warmup) == (shipped.method, shipped.warmup)


def test_what_is_written_passes_the_check_of_parameters_and_data(shapes: Path) -> None:
    report = init(shapes, out=Path("params.yaml"), device="cpu")
    assert report.to_dict()["seen"] == {
        "root": "data/shapes",
        "layout": "folder",
        "classes": 8,
        "masks": 8,
        "unlabeled": 6,
        "test": 4,
        "height": 64,
        "width": 64,
        "sequences": 0,
    }
    params = load_params(read_params(Path("params.yaml"), ["model.weights=null"]), Params)
    assert [each.kind for each in check(params, data_root=shapes).findings] == ["few_test", "no_selection"]


@pytest.mark.parametrize(
    ("masks", "test", "said"),
    [
        (23, 5, "holds out none: of 23 labelled images this gives fewer than split.min_selection (4)."),  # 3.45
        (24, 5, "share of the labelled images held out"),  # 3.6
        (29, 0, "holds out none: of 23 labelled images this gives"),  # 6 of them are tested on
        (30, 0, "share of the labelled images held out"),
    ],
)
def test_a_selection_slice_that_will_be_empty_is_told(masks: int, test: int, said: str) -> None:
    text = proposal(Seen(**{**PHOTOS, "height": 96, "width": 96, "masks": masks, "test": test}), gpu=False)  # type: ignore[arg-type]
    assert f"selection: 0.15             # {said}" in text


def test_weights_that_are_here_are_taken_before_a_download(shapes: Path) -> None:
    init(shapes, out=Path("params.yaml"), device="cpu")
    assert read_params(Path("params.yaml"))["model"]["weights"] == "imagenet"
    weights = Path("artifacts/weights/tf_efficientnet_lite0.safetensors")
    weights.parent.mkdir(parents=True)
    weights.touch()
    init(shapes, out=Path("params.yaml"), device="cpu", overwrite=True)
    assert read_params(Path("params.yaml"))["model"]["weights"] == str(weights)


def test_a_gpu_that_is_not_here_can_be_planned_for(shapes: Path) -> None:
    assert init(shapes, out=Path("gpu.yaml"), device="cuda").device == "cuda"
    params = load_params(read_params(Path("gpu.yaml")), Params)
    assert (params.model.arch, params.train.precision, params.train.batch_labeled) == ("deeplabv3plus", "auto", 8)


def test_sizes_are_those_of_upright_images(shapes: Path) -> None:
    for path in (shapes / "images").iterdir():
        image = Image.fromarray(np.zeros((60, 90, 3), dtype=np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6  # turned by a quarter
        path.unlink()
        image.save(path.with_suffix(".jpg"), exif=exif)
    for path in (shapes / "unlabeled").iterdir():
        path.unlink()
    seen = look(shapes)
    assert (seen.height, seen.width) == (90, 60)


def test_without_unlabelled_images_training_is_supervised() -> None:
    assert proposed(96, 96, gpu=False, unlabeled=0).method.name == "supervised"


@pytest.mark.parametrize("unlabeled", [0, 900])
def test_every_section_is_there_that_a_stage_of_dvc_asks_for(unlabeled: int) -> None:
    seen = Seen(**{**PHOTOS, "height": 96, "width": 96, "unlabeled": unlabeled})  # type: ignore[arg-type]
    stages = yaml.safe_load((CONFIGS.parent / "dvc.yaml").read_text())["stages"].values()
    assert {name for stage in stages for name in stage["params"]} <= yaml.safe_load(proposal(seen, gpu=False)).keys()


def test_without_test_images_a_share_is_carved_out() -> None:
    values = {**PHOTOS, "height": 96, "width": 96}
    assert "test:" not in proposal(Seen(**values), gpu=False)  # type: ignore[arg-type]
    assert proposed(96, 96, gpu=False, test=0).split.test == 0.2
    assert "test: 0.2" in proposal(Seen(**{**values, "test": 0}), gpu=False)  # type: ignore[arg-type]


def test_frames_of_several_sequences_are_named_with_a_pattern_that_tells_them_apart(shapes: Path) -> None:
    for folder in ("images", "masks"):
        for index, path in enumerate(sorted((shapes / folder).iterdir())):
            path.rename(path.with_name(f"video{'ab'[index % 2]}_{index:04}{path.suffix}"))
    for path in (shapes / "unlabeled").iterdir():
        path.unlink()
    for name in ("train.txt", "test.txt"):
        (shapes / name).unlink()
    assert look(shapes).sequences == 2
    init(shapes, out=Path("params.yaml"))
    text = Path("params.yaml").read_text()
    assert yaml.safe_load(text)["split"].keys() == {"labeled", "selection", "test"}  # a proposal alone: it is commented out
    params = load_params(parse_yaml(text.replace("# group_pattern", "group_pattern"), "params.yaml"), Params)
    assert params.split.group_pattern == r"^(.*?)\d+$"


@pytest.mark.parametrize("name", ["# my photos: 2026", "Ünïcode & more", "-", "a" * 300])
def test_any_name_of_a_folder_comes_back_as_it_was(name: str) -> None:
    params = proposed(96, 96, gpu=False, root=name)
    assert params.data.root == name


def test_a_file_that_is_there_stays_as_it_is(shapes: Path) -> None:
    Path("params.yaml").write_text("seed: 7\n")
    with pytest.raises(ParamsError, match=r"params\.yaml is there already\. Give --overwrite"):
        init(shapes, out=Path("params.yaml"))
    assert Path("params.yaml").read_text() == "seed: 7\n"


def test_files_that_are_no_images_are_left_to_the_check_which_names_all(shapes: Path) -> None:
    whole = look(shapes)
    for image in sorted((shapes / "unlabeled").iterdir())[:2]:
        image.write_bytes(b"")
    assert look(shapes) == whole
    for image in (path for folder in ("images", "unlabeled") for path in (shapes / folder).iterdir()):
        image.write_bytes(b"")
    with pytest.raises(DataError, match=r"images/.+ cannot be decoded as an image .+ Replace or remove the file"):
        look(shapes)


def test_a_folder_that_is_no_dataset_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: no such folder"):
        init(tmp_path / "missing", out=tmp_path / "params.yaml")
    with pytest.raises(DataError, match=r"none of images/, JPEGImages/ and leftImg8bit/ is there\. Put images into images/"):
        init(tmp_path, out=tmp_path / "params.yaml")
    assert os.listdir(tmp_path) == []


def test_images_without_a_mask_cannot_be_learnt_from(shapes: Path) -> None:
    test = {line.strip() for line in (shapes / "test.txt").read_text().splitlines()}
    for path in (shapes / "masks").iterdir():
        if path.stem not in test:
            path.unlink()
    with pytest.raises(DataError, match=r"data/shapes: none of 14 training images has a mask\. Label some"):
        init(shapes, out=Path("params.yaml"))


def test_a_folder_of_masks_of_another_name_is_told(shapes: Path) -> None:
    (shapes / "masks").rename(shapes / "labels")
    with pytest.raises(DataError, match=r"has a mask\..* PNG files that are not read lie in labels/: if they are masks, rename"):
        init(shapes, out=Path("params.yaml"))
