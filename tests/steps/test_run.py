from __future__ import annotations

import json
import logging
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_of_at_most
from PIL import Image
from tiny import TinyRun, changed, make_split, rows, run_training, sections, smoke_params, training, warm

from cwbass.config import LossConfig, RegistryConfig
from cwbass.data.base import read_image, read_mask
from cwbass.data.manifest import Manifest
from cwbass.errors import CheckpointError, DataError, ParamsError, ServiceError
from cwbass.evaluation.metrics import Scores
from cwbass.evaluation.per_image import CONFUSIONS, PerImage
from cwbass.evaluation.selection import mean_iou
from cwbass.evaluation.statistics import draw_images
from cwbass.files import file_sha256
from cwbass.jsonfile import read_metrics
from cwbass.losses import LABELED_LOSSES
from cwbass.losses.supervised import supervised_cross_entropy
from cwbass.methods.cw_bass import CwBass
from cwbass.methods.fixmatch import FixMatchConfig
from cwbass.reporting.summary import scores_page
from cwbass.steps.checkpoints import find_checkpoints
from cwbass.steps.evaluate import EvaluateParams, add_intervals, evaluate
from cwbass.steps.predict import predict
from cwbass.steps.register import RegisterParams, register
from cwbass.steps.report import report
from cwbass.steps.scoring import Scorer
from cwbass.steps.training import WarmupParams, start_run
from cwbass.training.checkpoint import load_checkpoint, save_checkpoint
from cwbass.training.resume import Resume


def test_a_run_leaves_exactly_these_files(tiny_run: TinyRun) -> None:
    assert sorted(path.name for path in tiny_run.warmup.iterdir()) == sorted(
        [f"{name}.pt{end}" for name in ("warmup", "baseline_last", "baseline_best") for end in ("", ".sha256")]
        + ["history.jsonl", "run.json", "sweep.json", "timings.jsonl"]
    )
    assert sorted(path.name for path in tiny_run.train.iterdir()) == sorted(
        [f"{name}{end}" for name in ("last.pt", "best.pt", "probes.zip") for end in ("", ".sha256")]
        + ["history.jsonl", "run.json", "timings.jsonl"]
    )


def test_baseline_and_method_take_the_same_number_of_steps(tiny_run: TinyRun) -> None:
    steps = {path: load_checkpoint(path).step for path in (tiny_run.warmup / "baseline_last.pt", tiny_run.train / "last.pt")}
    assert set(steps.values()) == {16}
    assert load_checkpoint(tiny_run.warmup / "warmup.pt").step == 8


def test_a_training_that_does_not_fit_the_gpu_ends_with_what_to_lower(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CwBass, "training_step", full)
    with pytest.raises(ParamsError, match=r"the GPU's memory is full \(CUDA out of memory\.\)\. Lower train\.batch_labeled"):
        training(tiny_run, tmp_path)


def test_after_a_warmup_that_stopped_early_baseline_and_method_begin_at_the_same_step(shapes: Path, tmp_path: Path) -> None:
    # At such a rate the network says one class and no other from the first step on: no epoch is better than the one before.
    params = smoke_params(steps=6, warmup_steps=4, epoch_steps=1, early_stop=1, optimizer={"name": "sgd", "lr": 3.0})
    run = TinyRun(tmp_path, shapes, params)
    make_split(run)
    reports = [warm(run), training(run)]
    taken = [(row["stage"], row["step"]) for step in ("warmup", "train") for row in rows(tmp_path / step / "history.jsonl")]
    assert taken == [("warmup", 1), ("warmup", 2), ("baseline", 3), ("baseline", 4), ("train", 3), ("train", 4)]
    assert [report.steps for report in reports] == [4, 4]


def test_a_limit_of_patience_that_nothing_can_reach_is_told(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = smoke_params(steps=3, warmup_steps=2, epoch_steps=1, early_stop=1, optimizer={"name": "sgd", "lr": 3.0})
    run = TinyRun(tmp_path, shapes, changed(params, "split", selection=0.0))
    make_split(run)
    assert warm(run).steps == 3
    said = "no selection slice says when train.early_stop should stop it; all steps are taken"
    assert [message for message in caplog.messages if "early_stop" in message] == [
        f"{stage}: {said}" for stage in ("warmup", "baseline")
    ]


def test_history_has_a_row_an_epoch_with_what_the_method_did(tiny_run: TinyRun) -> None:
    history = rows(tiny_run.train / "history.jsonl")
    assert [row["step"] for row in history] == [12, 16]
    for row in history:
        retention = row["retention"]
        assert isinstance(retention, float) and 0 <= retention <= 1
        assert isinstance(row["selection_miou"], float)
        kept = row["retention_per_class"]
        assert isinstance(kept, list) and len(kept) == 8
        assert sum(row["pseudo_label_share"]) == pytest.approx(1) or row["retention"] == 0  # type: ignore[arg-type]


def test_how_sure_a_gain_is_is_a_paired_bootstrap_over_test_images(tiny_run: TinyRun, tmp_path: Path) -> None:
    metrics = json.loads((tiny_run.reports / "metrics.json").read_text())
    images = []
    for name in ("train", "warmup"):
        out, places = tmp_path / name, {"manifest": tiny_run.manifest, "data_root": tiny_run.data}
        evaluate(None, checkpoint=tiny_run.root / name, out_dir=out, per_image=True, **places)
        images.append(PerImage.read(out / CONFUSIONS).matrices)
    gains = []
    for draw in draw_images(6):
        one, other = (np.repeat(matrices, draw, axis=0).sum(0) for matrices in images)
        gains.append(mean_iou(one) - mean_iou(other))
    assert metrics["miou_gain_interval"] == pytest.approx(np.quantile(gains, [0.025, 0.975]).tolist())
    low, high = metrics["miou_gain_interval"]
    assert low < metrics["miou_gain"] < high
    for row in metrics["per_class"].values():
        if row["iou"] is not None and row["baseline_iou"] is not None:
            low, high = row["iou_gain_interval"]
            assert low <= row["iou"] - row["baseline_iou"] <= high


def test_matrices_of_earlier_scores_do_not_stay_beside_new_ones(tiny_run: TinyRun, tmp_path: Path) -> None:
    files = {"manifest": tiny_run.manifest, "data_root": tiny_run.data, "out_dir": tmp_path}
    evaluate(None, checkpoint=tiny_run.warmup, per_image=True, **files)
    assert (tmp_path / CONFUSIONS).is_file()
    evaluate(None, checkpoint=tiny_run.train / "last.pt", **files)
    assert not (tmp_path / CONFUSIONS).exists()


def test_of_one_image_nobody_can_say_how_sure_a_gain_is(tiny_run: TinyRun, tmp_path: Path) -> None:
    from cwbass.data.synthetic import write_shapes

    write_shapes(tmp_path / "data", seed=1, labeled=2, unlabeled=0, test=1, size=(64, 64))
    files = {"checkpoint": tiny_run.train / "last.pt", "baseline": tiny_run.warmup, "data_root": tmp_path / "data"}
    metrics = evaluate(None, **files).metrics
    assert metrics["images"] == 1
    assert metrics["miou_gain"] is not None
    assert metrics.get("miou_gain_interval") is None


def test_a_class_that_no_test_image_shows_has_no_gain_to_be_sure_of() -> None:
    metrics = {"per_class": {"sky": {}, "tram": {}}}
    ours = np.array([[[4, 0], [4, 0]], [[2, 0], [4, 0]]])  # intersections and unions of two images
    theirs = np.array([[[2, 0], [4, 0]], [[2, 0], [4, 0]]])
    add_intervals(metrics, ours, theirs)
    assert metrics["per_class"]["tram"]["iou_gain_interval"] is None
    # Resamples: the first twice, one of each, the second twice: +50, +25 and 0 points.
    assert metrics["miou_gain_interval"] == metrics["per_class"]["sky"]["iou_gain_interval"] == pytest.approx((0.0, 0.5))


def test_a_class_of_one_image_has_a_gain_that_nobody_can_be_sure_of() -> None:
    metrics = {"per_class": {"sky": {}, "tram": {}}}
    ours = np.array([[[4, 0], [4, 0]], [[2, 3], [4, 4]]])
    theirs = np.array([[[2, 0], [4, 0]], [[2, 1], [4, 4]]])
    add_intervals(metrics, ours, theirs)
    assert metrics["per_class"]["tram"]["iou_gain_interval"] is None  # and not 0.5 to 0.5
    assert metrics["per_class"]["sky"]["iou_gain_interval"] == pytest.approx((0.0, 0.5))


def test_metrics_hold_the_names_that_others_rely_on(tiny_run: TinyRun) -> None:
    metrics = json.loads((tiny_run.reports / "metrics.json").read_text())
    for key in ("miou", "baseline_miou", "boundary_iou", "boundary_f1_3px", "ece", "pixel_accuracy"):
        assert 0 <= metrics[key] <= 1, key
    for key in Scores(2, 255).result().scores():
        assert metrics.keys() >= {key, f"baseline_{key}"}
    assert metrics["miou_gain"] == pytest.approx(metrics["miou"] - metrics["baseline_miou"])
    assert metrics["split_hash"] == json.loads(tiny_run.manifest.read_text())["hash"]
    assert (metrics["protocol"], metrics["seed"], metrics["images"]) == ("whole scale:1", 0, 6)
    assert (metrics["method"], metrics["baseline_method"]) == ("cw_bass", "supervised")
    scored = [row["iou"] for row in metrics["per_class"].values() if row["iou"] is not None]
    assert metrics["miou"] == pytest.approx(sum(scored) / len(scored))
    assert set(metrics["checkpoints"]) == {
        f"{prefix}{network} {name}"
        for prefix in ("", "baseline ")
        for network in ("student", "teacher")
        for name in ("selected", "last")
    }


def test_the_same_seed_gives_the_same_bytes(tiny_run: TinyRun, tmp_path: Path) -> None:
    again = run_training(tmp_path, tiny_run.data, tiny_run.params)
    checkpoints = ("warmup/warmup.pt", "warmup/baseline_last.pt", "train/last.pt", "train/best.pt")
    for name in (*checkpoints, "warmup/sweep.json", "train/history.jsonl", "train/probes.zip"):
        assert file_sha256(tmp_path / name) == file_sha256(tiny_run.root / name), name
    assert (again.reports / "metrics.json").read_bytes() == (tiny_run.reports / "metrics.json").read_bytes()


def test_another_seed_gives_other_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    params = changed(tiny_run.params, steps=10).model_copy(update={"seed": 1})  # two steps after the warm-up
    run_dir = tmp_path / "train"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        training(tiny_run, run_dir, params, warmup=tmp_path / "none.pt")
    training(tiny_run, run_dir, params)
    one, other = load_checkpoint(run_dir / "last.pt"), load_checkpoint(tiny_run.train / "last.pt")
    assert any(not torch.equal(value, other.method_state[name]) for name, value in one.method_state.items())


def test_the_checkpoint_scores_the_same_without_its_params_file(tiny_run: TinyRun) -> None:
    alone = evaluate(None, checkpoint=tiny_run.train / "best.pt", manifest=tiny_run.manifest)
    metrics = json.loads((tiny_run.reports / "metrics.json").read_text())
    assert alone.metrics["miou"] == metrics["miou"]
    assert alone.metrics["baseline_miou"] is None


@pytest.mark.parametrize(("wanted", "shown"), [(0, []), (4, [0, 1, 3, 4]), (6, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])])
def test_the_gallery_is_evenly_spread_and_shows_all_where_there_are_no_more(
    tiny_run: TinyRun, tmp_path: Path, wanted: int, shown: list[int]
) -> None:
    params = EvaluateParams(eval=tiny_run.params.eval.model_copy(update={"gallery": wanted}))
    evaluate(params, checkpoint=tiny_run.train / "last.pt", manifest=tiny_run.manifest, data_root=tiny_run.data, out_dir=tmp_path)
    test = [sample.id for sample in Manifest.read(tiny_run.manifest).test]
    found = re.findall(r'alt="Photograph ([^"]*)"', (tmp_path / "report.html").read_text())
    assert found == [test[index] for index in shown]


def test_other_data_is_scored_by_its_folder(tiny_run: TinyRun) -> None:
    found = evaluate(None, checkpoint=tiny_run.train / "last.pt", data_root=tiny_run.data)
    assert found.metrics["images"] == 6
    assert "not on the split" in found.metrics["split"]["notes"][0]
    assert found.metrics["split_hash"] is None  # so that the gate takes them for no test scores


def test_scores_of_other_data_are_not_registered(tiny_run: TinyRun, tmp_path: Path) -> None:
    evaluate(None, checkpoint=tiny_run.train / "last.pt", data_root=tiny_run.data, out_dir=tmp_path)
    with pytest.raises(DataError, match="do not belong together: the scores have split_hash None, the checkpoint"):
        register(
            RegisterParams(registry=RegistryConfig(store=str(tmp_path / "registry"), onnx=False)),
            checkpoint=tiny_run.train,
            metrics=tmp_path / "metrics.json",
            report=None,
            out_dir=tmp_path / "registration",
        )
    assert scores_page(tmp_path).startswith("Images of no split, 6 images, whole scale:1, seed 0")


def test_a_baseline_of_another_length_is_noted(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.warmup, tmp_path / "warmup")
    last = tmp_path / "warmup" / "baseline_last.pt"
    save_checkpoint(replace(load_checkpoint(last), step=9), last)
    places = {"manifest": tiny_run.manifest, "data_root": tiny_run.data, "checkpoint": tiny_run.train}
    found = evaluate(None, baseline=tmp_path / "warmup", **places)
    assert found.metrics["split"]["notes"][-1].startswith("The baseline has taken 9 steps and the training 16:")
    as_planned = evaluate(None, baseline=tiny_run.warmup, **places)
    assert as_planned.metrics["split"]["notes"] == found.metrics["split"]["notes"][:-1]


def test_another_length_or_batch_than_the_warmup_had_is_told(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training(tiny_run, tmp_path, changed(tiny_run.params, steps=9, batch_labeled=4))
    assert (
        f"{tiny_run.inputs['warmup']} and the baseline beside it have another length or batch than this run:\n"
        "  train.batch_labeled: 2 there, 4 now\n  train.steps: 16 there, 9 now"
    ) in caplog.messages


def test_crops_that_show_little_are_told_before_training(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = changed(changed(tiny_run.params, steps=9), "augment", scale=(8.0, 8.0))
    for params, told in ((tiny_run.params, False), (small, True)):
        caplog.clear()
        places = {"manifest": tiny_run.manifest, "data_root": tiny_run.data, "out_dir": tmp_path / str(told)}
        start_run("warmup", sections(params, WarmupParams), **places, work_dir=None, resume=Resume())
        assert any(message.startswith("augment.crop_size: at scale 8 to 8, crops") for message in caplog.messages) is told


def test_epochs_that_the_warmup_would_fill_are_refused_before_it_begins(tiny_run: TinyRun, tmp_path: Path) -> None:
    params = smoke_params(steps=None, epochs=1, warmup_steps=8)  # 16 unlabelled images by two
    said = "train.warmup_steps is 8, but train.epochs counts the warm-up too and is 1: 8 steps of 2 images. Lower the one"
    with pytest.raises(ParamsError, match=said):
        warm(replace(tiny_run, params=params), tmp_path / "warmup")
    assert not (tmp_path / "warmup").exists()


def test_training_refuses_a_warmup_that_was_stopped(tiny_run: TinyRun, tmp_path: Path) -> None:
    save_checkpoint(replace(load_checkpoint(tiny_run.warmup / "warmup.pt"), step=4), tmp_path / "warmup.pt")
    with pytest.raises(CheckpointError, match=r"was stopped after 4 of its 8 steps\. Run `cwbass warmup` again"):
        training(tiny_run, tmp_path / "train", warmup=tmp_path / "warmup.pt")


def test_a_checkpoint_of_another_split_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = make_split(TinyRun(tmp_path, tiny_run.data, tiny_run.params.model_copy(update={"seed": 5})))
    with pytest.raises(CheckpointError, match="was trained on split"):
        evaluate(None, checkpoint=tiny_run.train, manifest=other)


def test_data_of_other_classes_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    from cwbass.data.synthetic import write_shapes

    write_shapes(tmp_path / "data", seed=1, labeled=2, unlabeled=0, test=1, size=(64, 64))
    names = (tmp_path / "data" / "classes.txt").read_text().replace("star", "starfish")
    (tmp_path / "data" / "classes.txt").write_text(names)
    with pytest.raises(DataError, match="starfish"):
        evaluate(None, checkpoint=tiny_run.train / "last.pt", data_root=tmp_path / "data")


def test_the_network_that_will_be_scored_chooses_the_checkpoint(tiny_run: TinyRun, tmp_path: Path) -> None:
    report = training(tiny_run, tmp_path, changed(tiny_run.params, "eval", weights="student"))
    history = rows(tmp_path / "history.jsonl")
    assert [row["selection_miou"] for row in history] == [row["selection_miou_student"] for row in history]
    assert all(row["selection_miou_student"] != row["selection_miou_teacher"] for row in history)
    chosen = load_checkpoint(tmp_path / "best.pt").step
    assert report.selection_miou["train"] == next(row["selection_miou_student"] for row in history if row["step"] == chosen)


def test_training_refuses_to_be_scored_by_a_network_that_its_method_has_not(tiny_run: TinyRun, tmp_path: Path) -> None:
    params = changed(tiny_run.params, "eval", weights="teacher").model_copy(update={"method": FixMatchConfig()})
    with pytest.raises(ParamsError, match=r"eval\.weights is teacher, but fixmatch has no teacher: set student, or auto\."):
        training(tiny_run, tmp_path, params)


def test_training_refuses_a_warmup_of_another_network(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.arch"):
        training(tiny_run, tmp_path, changed(tiny_run.params, "model", arch="fpn"))


def test_training_refuses_a_warmup_of_another_recipe_and_names_each_key_with_both_values(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LABELED_LOSSES, "other", supervised_cross_entropy)
    train_section, augment = tiny_run.params.train, tiny_run.params.augment
    optimizer = train_section.optimizer.model_copy(update={"lr": 0.5})
    values = {"optimizer": optimizer, "class_balance": 0.25, "loss": LossConfig(name="other")}
    params = changed(changed(tiny_run.params, **values), "augment", hflip=0.125)
    with pytest.raises(ParamsError) as caught:
        training(tiny_run, tmp_path / "one", params)
    said = str(caught.value).splitlines()
    assert said[0] == f"{tiny_run.warmup / 'warmup.pt'} was trained otherwise than this run trains:"
    assert said[1:5] == [
        f"  augment.hflip: {augment.hflip} there, 0.125 now",
        f"  train.class_balance: {train_section.class_balance} there, 0.25 now",
        '  train.loss.name: "cross_entropy" there, "other" now',
        f"  train.optimizer.lr: {train_section.optimizer.lr} there, 0.5 now",
    ]
    assert said[5].startswith("Run `cwbass warmup` again")
    with pytest.raises(ParamsError, match=r"trains:\n  train\.class_balance: [^\n]*\nRun"):  # the others are let through
        force = ("augment", "train.optimizer.lr", "train.loss")
        training(tiny_run, tmp_path / "two", params, resume=Resume(force=force))


def test_masks_of_unlabelled_images_are_never_opened(tmp_path: Path) -> None:
    from cwbass.data.synthetic import write_shapes
    from cwbass.params import Params, load_params

    data = tmp_path / "data"
    write_shapes(data, seed=0, labeled=12, unlabeled=4, test=4, size=(64, 64))
    values = smoke_params().model_dump(mode="json")
    # Half of the masked images play the unlabelled part: their masks are turned into traps.
    ids = (data / "train.txt").read_text().split()
    (tmp_path / "labeled.txt").write_text("\n".join(ids[:6]))
    for name in ids[6:]:
        (data / "masks" / f"{name}.png").write_bytes(b"not an image")
    values["split"] |= {"labeled_list": str(tmp_path / "labeled.txt"), "selection": 0.0}
    values["data"] |= {"root": str(data)}
    run = run_training(tmp_path / "run", data, load_params(values, Params))
    assert math.isfinite(json.loads((run.reports / "metrics.json").read_text())["miou"])
    # Without a selection slice there is no best checkpoint, and the last one counts.
    assert not (run.train / "best.pt").exists()
    assert json.loads((run.reports / "metrics.json").read_text())["checkpoint"] == "last"


def test_predict_writes_a_mask_and_an_overlay_for_every_image(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.new("RGB", (50, 37), (200, 30, 30)).save(tmp_path / "in" / "deep" / "a.png")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "in" / "deep" / "._a.png").write_bytes(b"what macOS knows of a.png")
    for name in ("IMG_1.HEIC", "._IMG_1.HEIC", "clip.mp4", "notes.txt"):
        (tmp_path / "in" / "deep" / name).write_bytes(b"x")
    monkeypatch.setattr("cwbass.progress.LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    found = predict(checkpoint=tiny_run.train / "last.pt", images=tmp_path / "in", out_dir=tmp_path / "out")
    assert any(message.startswith("predict: 1 of 2, ") for message in caplog.messages)
    unread = f"2 files of kinds that are not read are passed over, the first {tmp_path / 'in' / 'deep' / 'IMG_1.HEIC'}."
    assert unread in caplog.messages
    assert (found.images, list(found.failed)) == (1, [str(tmp_path / "in" / "broken.jpg")])
    with Image.open(tmp_path / "out" / "masks" / "deep" / "a.png") as mask:
        assert (mask.mode, mask.size) == ("P", (50, 37))
    assert (tmp_path / "out" / "overlays" / "deep" / "a.jpg").is_file()


def test_scores_are_not_written_over_a_training_or_over_parameters(tiny_run: TinyRun, tmp_path: Path) -> None:
    held = {path: file_sha256(path) for path in tiny_run.train.iterdir()}
    (tmp_path / "params.yaml").write_text("seed: 1")
    for out, said in (
        (tiny_run.train, "holds a training"),
        (tiny_run.warmup, "holds a training"),
        (tmp_path, "params.yaml is there"),
    ):
        with pytest.raises(ParamsError, match=rf"{said}.* Give another folder with --out"):
            evaluate(None, checkpoint=tiny_run.train, manifest=tiny_run.manifest, data_root=tiny_run.data, out_dir=out)
    assert {path: file_sha256(path) for path in tiny_run.train.iterdir()} == held
    assert (tmp_path / "params.yaml").read_text() == "seed: 1"


def test_scores_name_the_checkpoint_that_was_read_though_a_training_writes_the_next_one_meanwhile(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cwbass register` would take the next one for the one that was scored."""
    checkpoint = Path(shutil.copy(tiny_run.train / "last.pt", tmp_path / "last.pt"))
    score = Scorer.score_chosen

    def scored(*arguments: Any) -> Any:
        shutil.copy(tiny_run.warmup / "warmup.pt", checkpoint)
        return score(*arguments)

    monkeypatch.setattr(Scorer, "score_chosen", scored)
    found = evaluate(None, checkpoint=checkpoint, manifest=tiny_run.manifest, data_root=tiny_run.data).metrics
    assert found["checkpoint_sha256"] == file_sha256(tiny_run.train / "last.pt") != file_sha256(checkpoint)


def test_an_evaluation_that_stops_half_way_leaves_no_scores_beside_the_report_of_another_model(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    """`cwbass register` would ship them together."""
    places: dict[str, Any] = {"manifest": tiny_run.manifest, "data_root": tiny_run.data, "out_dir": tmp_path}
    evaluate(None, checkpoint=tiny_run.warmup / "warmup.pt", **places)
    page = (tmp_path / "report.html").read_bytes()
    with files_of_at_most(len(page) // 2), pytest.raises((OSError, ServiceError)):
        evaluate(None, checkpoint=tiny_run.train / "last.pt", **places)
    assert not (tmp_path / "metrics.json").exists()
    evaluate(None, checkpoint=tiny_run.train / "last.pt", **places)
    assert read_metrics(tmp_path / "metrics.json")["checkpoint"] == "last"
    assert (tmp_path / "report.html").read_bytes() != page


@pytest.mark.parametrize("out", ["predictions", "."])
def test_predict_passes_over_what_it_wrote_into_the_folder_of_the_images(tiny_run: TinyRun, tmp_path: Path, out: str) -> None:
    (tmp_path / "b.jpg").mkdir()  # a folder is no image, whatever its name
    Image.new("RGB", (50, 37), (200, 30, 30)).save(tmp_path / "b.jpg" / "a.png")
    for _ in range(2):
        found = predict(checkpoint=tiny_run.train / "last.pt", images=tmp_path, out_dir=tmp_path / out, confidence=True)
        assert (found.images, found.failed) == (1, {})
    assert (tmp_path / out / "masks" / "b.jpg" / "a.png").is_file()


def test_predict_writes_over_no_mask_of_a_dataset(tiny_run: TinyRun, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_run.data, tmp_path / "data"))
    held = {path: file_sha256(path) for path in data.rglob("*.*")}
    with pytest.raises(ParamsError, match=r"data holds a dataset, whose masks/ would be written over\. Give another folder"):
        predict(checkpoint=tiny_run.train / "last.pt", images=data / "images", out_dir=data)
    assert {path: file_sha256(path) for path in data.rglob("*.*")} == held


def test_what_predict_writes_is_a_mask_of_the_dataset(tiny_run: TinyRun, tmp_path: Path) -> None:
    image = next((tiny_run.data / "images").iterdir())
    predict(checkpoint=tiny_run.train / "last.pt", images=image, out_dir=tmp_path)
    path = tmp_path / "masks" / f"{image.stem}.png"
    with Image.open(path) as said:
        assert np.array_equal(read_mask(path, Manifest.read(tiny_run.manifest).spec), np.asarray(said))


def test_predict_finds_images_as_a_dataset_does(tiny_run: TinyRun, tmp_path: Path) -> None:
    image = next((tiny_run.data / "images").iterdir())
    for name in ("in/a.png", "in/.cache/b.png", "other/c.png", f"in/{'x' * 247}.png", f"in/{'y' * 248}.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
    found = predict(checkpoint=tiny_run.train / "last.pt", images=tmp_path / "in", out_dir=tmp_path / "out")
    masks = tmp_path / "out" / "masks"
    written = {path.relative_to(masks).as_posix() for path in masks.rglob("*") if path.is_file()}
    assert written == {"a.png", "linked/c.png", f"{'x' * 247}.png", f"{'y' * 248}.png"}
    assert not found.failed


def test_predict_keeps_the_suffix_of_images_where_two_differ_by_it_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "deep/b.jpg", f"{'x' * 247}.png", f"{'y' * 248}.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 37), (200, 30, 30)).save(tmp_path / "in" / name)
    found = predict(checkpoint=tiny_run.train / "last.pt", images=tmp_path / "in", out_dir=tmp_path / "out")
    masks = tmp_path / "out" / "masks"
    written = {path.relative_to(masks).as_posix() for path in masks.rglob("*") if path.is_file()}
    assert written == {"a.png.png", "a.jpg.png", "deep/b.jpg.png", f"{'x' * 247}.png.png"}
    ((failed, why),) = found.failed.items()
    assert Path(failed).name == f"{'y' * 248}.png" and "Shorten the name to 251 bytes" in why


def test_predict_goes_on_after_an_image_that_is_too_long_for_an_overlay(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, width in (("a.png", 65501), ("b.png", 8)):
        Image.new("RGB", (width, 1)).save(tmp_path / "in" / name)
    predict(checkpoint=tiny_run.train / "last.pt", images=tmp_path / "in", out_dir=tmp_path / "out")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*g")}
    assert written == {"masks/a.png", "masks/b.png", "overlays/b.jpg"}


def test_predict_says_what_was_scored(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    right = known = 0
    samples = Manifest.read(tiny_run.manifest).test
    for sample in samples:
        shutil.copy(tiny_run.data / sample.image, tmp_path / "in")
    predict(checkpoint=tiny_run.train, images=tmp_path / "in", out_dir=tmp_path / "out", overlays=False)
    for sample in samples:
        with (
            Image.open(tmp_path / "out" / "masks" / f"{Path(sample.image).stem}.png") as said,
            Image.open(tiny_run.data / sample.mask) as true,
        ):
            label, mask = np.asarray(said), np.asarray(true)
        right += int((label == mask).sum())
        known += int((mask != 255).sum())
    metrics = json.loads((tiny_run.reports / "metrics.json").read_text())
    assert right / known == pytest.approx(metrics["pixel_accuracy"], abs=1e-12)


def test_predict_writes_how_sure_the_network_is_where_that_is_asked(tiny_run: TinyRun, tmp_path: Path) -> None:
    image = next((tiny_run.data / "images").iterdir())
    predict(checkpoint=tiny_run.train, images=image, out_dir=tmp_path, overlays=False, confidence=True)
    model = load_checkpoint(tiny_run.train / "best.pt")
    pixels = torch.from_numpy(read_image(image).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        top = model.network("teacher")(pixels)[0].softmax(0).amax(0)
    with Image.open(tmp_path / "confidence" / f"{image.stem}.png") as file:
        assert (file.mode, np.abs(np.asarray(file) - 255.0 * top.numpy()).max()) == ("L", pytest.approx(0.5, abs=0.01))


def test_predict_takes_the_checkpoint_that_counts_of_a_folder(tiny_run: TinyRun, tmp_path: Path) -> None:
    image = next((tiny_run.data / "images").iterdir())
    for name in ("train", "train/best.pt"):
        predict(checkpoint=tiny_run.root / name, images=image, out_dir=tmp_path / name, overlays=False)
    masks = [(tmp_path / name / "masks" / f"{image.stem}.png").read_bytes() for name in ("train", "train/best.pt")]
    assert masks[0] == masks[1]
    with pytest.raises(CheckpointError, match=r"holds neither best\.pt nor last\.pt"):
        predict(checkpoint=tmp_path, images=image, out_dir=tmp_path)


def test_a_run_without_checkpoints_yet_is_told_to_go_on_and_what_could_be_scored(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(
        CheckpointError, match=r"stopped before there was one, the same command goes on\. Else pass .*, or a file\."
    ):
        find_checkpoints(tmp_path)
    shutil.copy(tiny_run.warmup / "warmup.pt", tmp_path)
    with pytest.raises(CheckpointError, match=r"or a file \(warmup\.pt is there\)\."):
        find_checkpoints(tmp_path)


def test_the_pages_are_drawn_again_from_their_files_to_the_same_bytes(tiny_run: TinyRun) -> None:
    pages = [tiny_run.reports / name for name in ("report.html", "flight.html")]
    before = [page.read_bytes() for page in pages]
    for page in pages:
        page.unlink()
    assert report(tiny_run.reports) == pages[0]
    assert [page.read_bytes() for page in pages] == before


def test_the_pages_say_in_their_titles_which_run_they_are_of(tiny_run: TinyRun) -> None:
    for page, kind in (("report.html", "report"), ("flight.html", "flight recorder")):
        assert f"<title>CW-BASS trained on data, seed 0: {kind}</title>" in (tiny_run.reports / page).read_text()


def test_beside_another_model_a_report_has_the_curves_of_its_own_run_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    places = {"manifest": tiny_run.manifest, "data_root": tiny_run.data, "out_dir": tmp_path}
    found = evaluate(None, checkpoint=tiny_run.train, baseline=tiny_run.train / "last.pt", **places)
    assert found.metrics["baseline_method"] == "cw_bass"
    assert rows(tmp_path / "history.jsonl") == rows(tiny_run.reports / "history.jsonl")[-2:]
    page = (tmp_path / "report.html").read_text()
    assert "The baseline is another model on the same test." in page and "labelled images alone" not in page


def test_a_report_that_finds_no_room_says_so_and_leaves_the_one_before(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.reports, tmp_path / "reports")
    pages = {name: (folder / name).read_bytes() for name in ("report.html", "flight.html")}
    with files_of_at_most(4096), pytest.raises(ServiceError, match=r"flight\.html cannot be written: File too large"):
        report(folder)
    assert {name: (folder / name).read_bytes() for name in pages} == pages


def test_a_missing_file_of_the_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.json: no such file"):
        report(tmp_path)
