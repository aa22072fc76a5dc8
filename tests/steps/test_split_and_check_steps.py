"""Steps split and check: files written, the report, and a check of data that cannot be split."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cwbass.config import DataConfig, ModelConfig, SplitConfig, TrainConfig
from cwbass.data import list_dataset
from cwbass.data.check import CheckReport
from cwbass.data.manifest import Manifest
from cwbass.errors import DataError, ParamsError, WeightsError
from cwbass.methods.base import MethodConfig
from cwbass.methods.supervised import SupervisedConfig
from cwbass.models.smp_net import SmpNet
from cwbass.params import Params, load_params, parse_yaml
from cwbass.steps.check import check, check_data, check_model, check_params
from cwbass.steps.split import SplitParams, split, warn_of_changes
from cwbass.steps.training import network_factory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images with masks of 8 pixels, three of them ground; d is tested on; u has no mask."""
    rng = np.random.default_rng(0)
    for name in ("images/a", "images/b", "images/c", "images/d", "unlabeled/u"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (2, 4, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "masks").mkdir()
    for id in "abcd":
        mask = np.array([[0, 0, 0, 1], [255, 255, 255, 255]], dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{id}.png")
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    (tmp_path / "test.txt").write_text("d\n")
    return tmp_path


def test_split_writes_the_manifest_and_a_list_for_each_role(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = split(SplitParams(seed=3, split=SplitConfig(labeled=2)), data_root=root, out_dir=out)
    manifest = Manifest.read(out / "manifest.json")
    assert sorted(path.name for path in out.iterdir()) == [
        "labeled.txt",
        "manifest.json",
        "params.yaml",
        "selection.txt",
        "test.txt",
        "unlabeled.txt",
    ]
    for role in ("labeled", "unlabeled", "selection", "test"):
        assert (out / f"{role}.txt").read_text().split() == [sample.id for sample in manifest.samples(role)]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["hash"] == manifest.hash and plain["seed"] == 3
    assert plain["counts"] == {"labeled": 2, "unlabeled": 2, "selection": 0, "test": 1}
    assert plain["pixel_share"] == {"ground": {"labeled": 0.75, "pool": 0.75}, "tree": {"labeled": 0.25, "pool": 0.25}}
    assert "No selection slice" in plain["notes"][0]


def test_a_split_that_is_used_with_other_parameters_than_it_was_drawn_with_is_told(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = tmp_path / "out" / "manifest.json"
    split(SplitParams(split=SplitConfig(labeled=2)), data_root=root, out_dir=manifest.parent)
    caplog.clear()
    elsewhere = DataConfig(root="elsewhere")
    warn_of_changes(manifest, SplitParams(seed=7, split=SplitConfig(labeled=2), data=elsewhere))
    assert caplog.messages == []
    warn_of_changes(manifest, SplitParams(split=SplitConfig(labeled=3)))
    assert caplog.messages == [
        f"{manifest} was drawn with other parameters, and counts as it is; `cwbass split` draws it anew:\n"
        "  split.labeled: 2 there, 3 now"
    ]
    (manifest.parent / "params.yaml").unlink()
    caplog.clear()
    warn_of_changes(manifest, SplitParams())
    assert caplog.messages == []


def test_written_list_draws_the_same_roles_again(root: Path, tmp_path: Path) -> None:
    first = split(SplitParams(split=SplitConfig(labeled=2)), data_root=root, out_dir=tmp_path / "one")
    again = SplitConfig(labeled_list=str(tmp_path / "one" / "labeled.txt"))
    assert split(SplitParams(split=again), data_root=root, out_dir=tmp_path / "two").hash == first.hash


@pytest.mark.parametrize("id", ["#1", "a ", " a"])
def test_a_written_list_names_images_whose_ids_would_be_taken_for_something_else(root: Path, tmp_path: Path, id: str) -> None:
    for folder in ("images", "masks"):
        (root / folder / "a.png").rename(root / folder / f"{id}.png")
    first = split(SplitParams(), data_root=root, out_dir=tmp_path / "one")
    again = SplitConfig(labeled_list=str(tmp_path / "one" / "labeled.txt"))
    assert first.counts["labeled"] == 3
    assert split(SplitParams(split=again), data_root=root, out_dir=tmp_path / "two").hash == first.hash


def test_a_split_is_not_written_over_parameters_that_are_not_its_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1")
    with pytest.raises(ParamsError, match=r"params\.yaml is there, and would be written over\. Give another folder with --out"):
        split(SplitParams(), data_root=root, out_dir=tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "seed: 1"
    assert not (tmp_path / "manifest.json").exists()


def test_same_parameters_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        split(SplitParams(), data_root=root, out_dir=tmp_path / name)
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


def checked(root: Path, method: MethodConfig | None = None, **split: Any) -> CheckReport:
    params = SplitParams(split=SplitConfig(**split))
    return check_data(params, list_dataset(params.data, params.split, root), data_root=root, method=method)


def test_check_reports_the_masks_that_stop_the_split_once(root: Path) -> None:
    (root / "masks/a.png").write_text("no mask")
    Image.fromarray(np.full((2, 4), 7, dtype=np.uint8)).save(root / "masks/b.png")
    report = checked(root)
    assert [finding.kind for finding in report.errors] == ["unreadable", "unknown_value"]


def test_check_reports_why_a_split_of_sound_masks_cannot_be_drawn(root: Path) -> None:
    (root / "test.txt").unlink()
    for id in "bcd":
        (root / f"masks/{id}.png").unlink()
    (message,) = told(checked(root))
    assert message.startswith("no_split: the split cannot be drawn: no test images can be spared from 1 image with a mask")


def test_check_opens_no_mask_of_an_unlabelled_image_even_if_the_split_fails(root: Path) -> None:
    for id in "ab":
        (root / f"masks/{id}.png").write_text("no mask")
    (root / "labeled.txt").write_text("b\n")
    report = checked(root, labeled_list="labeled.txt")
    assert [finding.file for finding in report.errors if finding.kind == "unreadable"] == ["masks/b.png"]


def told(report: CheckReport) -> list[str]:
    return [f"{finding.kind}: {finding.message}" for finding in report.errors]


@pytest.mark.parametrize(
    ("method", "unlabeled", "said"),
    [
        ("{name: fixmatch}", 0, "method fixmatch learns from unlabelled images and the split has none. "),
        ("{name: cw_bass, cwbass: {second_stage: {enabled: true}}}", 1, "the split has 1. Add images without masks, or "),
        (
            "{name: st_plus_plus}",
            0,
            "method.name: st_plus_plus labels some unlabelled images first and the rest later; the split has 0",
        ),
        ("{name: fixmatch}", 1, None),
        ("{name: st_plus_plus}", 2, None),
        ("{name: supervised}", 0, None),
    ],
)
def test_check_tells_before_the_warm_up_that_a_method_will_lack_unlabelled_images(
    root: Path, method: str, unlabeled: int, said: str | None
) -> None:
    (root / "unlabeled/u.png").unlink()
    for number in range(unlabeled):
        Image.new("RGB", (4, 2), (60 * number, 0, 0)).save(root / f"unlabeled/{number}.png")
    config = load_params(parse_yaml(f"method: {method}", "params.yaml"), Params).method
    found = told(checked(root, config))
    assert len(found) == (said is not None)
    assert said is None or (found[0].startswith("no_unlabeled: ") and said in found[0])


def test_check_tells_that_labels_of_one_class_teach_nothing(root: Path) -> None:
    for id in "abc":
        Image.fromarray(np.zeros((2, 4), dtype=np.uint8)).save(root / f"masks/{id}.png")
    (text,) = told(checked(root, SupervisedConfig()))
    assert text.startswith("one_class: the 3 labelled images show one class only, ground: there is")


def test_check_tells_in_the_words_of_split_that_there_is_no_selection_slice(root: Path, tmp_path: Path) -> None:
    (note, *_) = split(SplitParams(), data_root=root, out_dir=tmp_path / "out").notes
    (message,) = [each.message for each in checked(root, SupervisedConfig()).warnings if each.kind == "no_selection"]
    assert message.startswith(f"{note} Label more images")
    meant = checked(root, SupervisedConfig(), selection=0)
    assert "no_selection" not in {each.kind for each in meant.warnings}


@pytest.mark.parametrize(("test", "said"), [(9, ["9 test images: all scores come from so few"]), (10, [])])
def test_check_tells_of_few_test_images(root: Path, test: int, said: list[str]) -> None:
    for number in range(test - 1):  # beside d
        shutil.copy(root / "images/d.png", root / f"images/d{number}.png")
        shutil.copy(root / "masks/d.png", root / f"masks/d{number}.png")
    (root / "test.txt").write_text("d\n" + "".join(f"d{number}\n" for number in range(test - 1)))
    found = [each.message for each in checked(root, SupervisedConfig()).warnings if each.kind == "few_test"]
    assert [message.partition(",")[0] for message in found] == said


def test_check_writes_nothing(root: Path) -> None:
    before = sorted(root.rglob("*"))
    assert checked(root).errors == ()
    assert sorted(root.rglob("*")) == before


def test_unlistable_data_is_an_error_of_its_own(root: Path) -> None:
    (root / "labeled.txt").write_text("gone\n")
    with pytest.raises(DataError, match=r"labeled\.txt, line 1: 'gone' is not among"):
        checked(root, labeled_list="labeled.txt")


def test_check_tells_of_batches_that_the_processes_cannot_share(root: Path) -> None:
    train = TrainConfig(steps=2, processes=2, nodes=2, batch_labeled=4, batch_unlabeled=6)
    with pytest.raises(ParamsError, match=r"train\.batch_unlabeled is 6, .* cannot be divided evenly among 4 processes"):
        check(Params(train=train), data_root=root)


def test_check_tells_of_a_network_to_score_that_the_method_has_not(root: Path) -> None:
    params = load_params({"method": {"name": "fixmatch"}, "eval": {"weights": "teacher"}}, Params)
    with pytest.raises(ParamsError, match=r"eval\.weights is teacher, but fixmatch has no teacher: set student, or auto\."):
        check(params, data_root=root)


ENCODER = "mobilenet_v2"


def of_model(weights: str | None = None, **method: object) -> Params:
    """A small network from ``weights``; with a method, the teachers of MGD from theirs."""
    sections: dict[str, Any] = {"model": {"arch": "unet", "encoder": ENCODER, "weights": weights}}
    teachers = {"deep": {"encoder": ENCODER}, "wide": {"encoder": ENCODER}}
    return load_params(sections | ({"method": {"name": "mgd", **teachers, **method}} if method else {}), Params)


CLASSES = ("ground", "tree")


def messages(params: Params) -> list[str]:
    found = check_model(params, CLASSES)
    assert {(finding.severity, finding.kind) for finding in found} <= {("error", "weights")}
    return [finding.message for finding in found]


def test_weights_that_fit_are_no_finding(tmp_path: Path) -> None:
    encoder = SmpNet(ModelConfig(arch="unet", encoder=ENCODER), CLASSES).net.encoder
    safetensors.torch.save_file(encoder.state_dict(), tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    assert check_model(of_model(weights, deep={"encoder": ENCODER, "weights": weights}), CLASSES) == ()


def test_weights_of_the_run_and_of_its_teachers_that_cannot_be_used_are_named_by_key_and_file(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 20)
    deep, wide = ({"encoder": ENCODER, "weights": str(tmp_path / name)} for name in ("other.pth", "torn.safetensors"))
    gone, other, torn = messages(of_model(str(tmp_path / "gone.pth"), deep=deep, wide=wide))
    assert gone.startswith(f"model.weights: {tmp_path / 'gone.pth'}: no such file. Give imagenet, a file")
    assert other.startswith(f"method.deep.weights: {tmp_path / 'other.pth'} does not fit encoder {ENCODER}: ")
    assert torn.startswith(f"method.wide.weights: {tmp_path / 'torn.safetensors'} cannot be read (")


def test_a_run_names_the_weights_that_it_cannot_use_as_the_check_does(tmp_path: Path) -> None:
    config = ModelConfig(arch="unet", encoder=ENCODER, weights=str(tmp_path / "gone.pth"))
    build = network_factory(config, CLASSES, tmp_path)
    for keys, name in (({}, "model.weights"), ({"key": "method.deep"}, "method.deep.weights")):
        with pytest.raises(WeightsError, match=rf"^{name}: {tmp_path}/gone\.pth: no such file"):
            build(**keys)


def test_an_encoder_of_a_teacher_that_does_not_exist_is_found_before_the_warm_up() -> None:
    with pytest.raises(ParamsError, match=r"unet with encoder 'resnet1011' .* cannot be built"):
        check_model(of_model(deep={"encoder": "resnet1011"}), CLASSES)


def test_weights_in_s3_are_looked_up_and_not_fetched(s3: Any) -> None:
    s3.objects["/models/there.pth"] = b"weights"
    there, gone = (f"s3://models/{name}.pth" for name in ("there", "gone"))
    (message,) = messages(of_model(there, deep={"encoder": ENCODER, "weights": gone}))
    assert message == f"method.deep.weights: {gone}: no such object or bucket. Check the URI and AWS_ENDPOINT_URL."
    assert s3.requests == ["HEAD /models/there.pth", "HEAD /models/gone.pth"]


def test_published_weights_are_not_fetched_to_be_looked_at_which_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    caplog.set_level(logging.INFO)
    assert check_model(of_model("imagenet"), CLASSES) == ()
    assert f"model.weights: imagenet is not looked at; a run fetches those of {ENCODER} from the Hugging Face hub" in caplog.text


def test_parameters_alone_are_refused_where_there_is_no_such_network_and_not_for_want_of_weights() -> None:
    check_params(of_model("gone.pth", deep={"encoder": ENCODER, "weights": "gone.pth"}))
    with pytest.raises(ParamsError, match=r"model\.arch is 'tiny'; choose one of "):
        check_params(load_params({"model": {"arch": "tiny"}}, Params))
    with pytest.raises(ParamsError, match=r"unet with encoder 'resnet1011' .* cannot be built"):
        check_params(of_model(deep={"encoder": "resnet1011"}))
    with pytest.raises(ParamsError, match=r"fixmatch has no teacher"):
        check_params(load_params({"method": {"name": "fixmatch"}, "eval": {"weights": "teacher"}}, Params))
