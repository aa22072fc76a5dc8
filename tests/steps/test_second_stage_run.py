"""A tiny run of both stages: which files, which rows, from which weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TinyRun, make_split, rows, training, warm

from cwbass.data.base import Sample, read_image
from cwbass.data.manifest import Manifest
from cwbass.data.offline import OfflineStream
from cwbass.data.streams import index_at
from cwbass.data.synthetic import write_shapes
from cwbass.errors import ParamsError
from cwbass.files import file_sha256
from cwbass.models import build_model
from cwbass.models.smp_net import SmpNet
from cwbass.params import Params, load_params
from cwbass.steps.evaluate import evaluate
from cwbass.steps.training import TrainReport
from cwbass.training.checkpoint import load_checkpoint
from cwbass.training.loop import Schedule
from cwbass.training.resume import Resume
from cwbass.training.stage import Stage

STEPS, WARMUP, RETRAIN = 7, 1, 2

VALUES: dict[str, Any] = {
    "split": {"selection": 0.25, "min_selection": 2, "labeled_list": "labeled.txt"},
    "augment": {"crop_size": 32, "scale": [0.7, 1.4]},
    "model": {
        "arch": "unet",
        "encoder": "tu-mobilenetv4_conv_small_050",
        "options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    },
    "method": {
        "name": "cw_bass",
        "recipe": "cwbass",
        "cwbass": {"second_stage": {"enabled": True, "steps": RETRAIN, "reliable": 0.25}},
    },
    "train": {
        "steps": STEPS,
        "warmup_steps": WARMUP,
        "baseline": False,
        "batch_labeled": 2,
        "batch_unlabeled": 2,
        "epoch_steps": 3,
        "cache": None,
        "precision": "float32",  # bfloat16 rounds labels that a test here computes again
        "optimizer": {"lr": 0.01},
    },
}


@dataclass(frozen=True)
class Stages:
    """A run and where it lies."""

    root: Path
    data: Path
    out: Path
    report: TrainReport

    @property
    def unlabeled(self) -> tuple[Sample, ...]:
        return Manifest.read(self.root / "split" / "manifest.json").unlabeled


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """VALUES with some keys of some sections replaced."""
    return {**VALUES, **{name: {**VALUES[name], **values} for name, values in sections.items()}}


def prepare(root: Path, data: Path, values: dict[str, Any]) -> Path:
    """Split and warm up below ``root``."""
    run = TinyRun(root, data, load_params(values, Params))
    make_split(run)
    warm(run)
    return root


def run(root: Path, data: Path, values: dict[str, Any], out: Path, **settings: Any) -> Stages:
    """Train from what :func:`prepare` left below ``root``."""
    report = training(TinyRun(root, data, load_params(values, Params)), out, **settings)
    return Stages(root, data, out, report)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 labelled images, and 8 unlabelled ones in whose masks' places lie traps."""
    data = tmp_path_factory.mktemp("shapes") / "data"
    write_shapes(data, seed=0, labeled=16, unlabeled=0, test=4, size=(48, 48))
    ids = (data / "train.txt").read_text().split()
    (data / "labeled.txt").write_text("\n".join(ids[:8]))
    for name in ids[8:]:
        (data / "masks" / f"{name}.png").write_bytes(b"poison")
    return data


@pytest.fixture(scope="module")
def stages(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    root = tmp_path_factory.mktemp("run")
    return run(prepare(root, shapes, VALUES), shapes, VALUES, root / "train")


def test_it_leaves_exactly_these_files(stages: Stages) -> None:
    names = ["first_stage_last", "first_stage_best", "retrain_reliable_last", "retrain_reliable_best", "last", "best"]
    names += ["snapshot_1", "snapshot_2"]
    assert sorted(path.name for path in stages.out.iterdir()) == sorted(
        [f"{name}.pt{end}" for name in names for end in ("", ".sha256")]
        + ["history.jsonl", "run.json", "timings.jsonl", "reliability.jsonl", "pseudo_labels", "probes.zip", "probes.zip.sha256"]
    )
    assert stages.report.steps == STEPS + 2 * RETRAIN
    assert stages.report.checkpoints == {"last": str(stages.out / "last.pt"), "best": str(stages.out / "best.pt")}
    assert list(stages.report.selection_miou) == ["train", "retrain_reliable", "retrain_all"]


@pytest.mark.parametrize(("name", "drawn"), [("first_stage_last.pt", True), ("last.pt", False)])
def test_a_report_shows_no_labels_kept_at_another_networks_threshold(
    stages: Stages, tmp_path: Path, name: str, drawn: bool
) -> None:
    manifest = stages.root / "split" / "manifest.json"
    evaluate(None, checkpoint=stages.out / name, manifest=manifest, data_root=stages.data, out_dir=tmp_path)
    assert ('alt="Pseudo-label of ' in (tmp_path / "report.html").read_text()) == drawn


def test_a_restart_without_it_leaves_nothing_of_it(stages: Stages, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(stages.out, out)
    (out / "pseudo_labels" / "mine.txt").write_text("of somebody else")
    plain = changed(method={"cwbass": {}}, train={"steps": WARMUP + 1})
    run(stages.root, stages.data, plain, out, resume=Resume(restart=True))
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.suffix != ".sha256"}
    written = {"last.pt", "best.pt", "probes.zip", "history.jsonl", "timings.jsonl", "run.json"}
    assert left == {*written, "pseudo_labels/mine.txt"}


def test_each_stage_has_its_own_steps_and_its_own_decay(stages: Stages) -> None:
    history = rows(stages.out / "history.jsonl")
    assert [(row["stage"], row["step"]) for row in history] == [
        ("train", 4),
        ("train", 7),
        ("retrain_reliable", 2),
        ("retrain_all", 2),
    ]
    for row in history[2:]:
        assert row["lr"] == pytest.approx(0.01 * (1 - (row["step"] - 1) / RETRAIN) ** 0.9)
        assert row["loss"] > 0
        assert 0 <= row["retention"] <= 1
        assert "precision" not in row  # it would be that of the network in training, which made none of the labels
    assert load_checkpoint(stages.out / "last.pt").history == history


def test_checkpoints_say_what_they_are(stages: Stages) -> None:
    expected = {
        "first_stage_last": ("train", STEPS),
        "snapshot_1": ("train", 3),  # a third of the six steps after the warm-up
        "snapshot_2": ("train", 5),
        "retrain_reliable_last": ("retrain_reliable", RETRAIN),
        "last": ("retrain_all", RETRAIN),
    }
    split_hash = json.loads((stages.root / "split" / "manifest.json").read_text())["hash"]
    for name, (stage, step) in expected.items():
        checkpoint = load_checkpoint(stages.out / f"{name}.pt")
        assert (checkpoint.stage, checkpoint.step) == (stage, step), name
        assert (checkpoint.method, checkpoint.networks) == ("cw_bass", ("student", "teacher"))
        assert checkpoint.split_hash == split_hash
        assert checkpoint.network()(torch.zeros(1, 3, 40, 33)).shape == (1, 8, 40, 33)


def test_every_unlabelled_image_is_ranked_and_labelled_once(stages: Stages) -> None:
    ranked = rows(stages.out / "reliability.jsonl")
    ids = {sample.id for sample in stages.unlabeled}
    values = [row["reliability"] for row in ranked]
    assert len(ranked) == len(ids) == 8
    assert {row["id"] for row in ranked} == ids
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < 1
    for kind in ("label", "confidence"):
        assert {path.stem for path in (stages.out / "pseudo_labels" / kind).iterdir()} == ids
    # The reliable quarter was labelled before the others.
    times = {row["id"]: (stages.out / "pseudo_labels" / "label" / f"{row['id']}.png").stat().st_mtime_ns for row in ranked}
    first, rest = [times[row["id"]] for row in ranked[:2]], [times[row["id"]] for row in ranked[2:]]
    assert max(first) < (stages.out / "retrain_reliable_last.pt").stat().st_mtime_ns < min(rest)


def test_labels_are_the_best_teachers(stages: Stages) -> None:
    ranked, images = rows(stages.out / "reliability.jsonl"), {sample.id: sample.image for sample in stages.unlabeled}
    for checkpoint, row in (("first_stage_best", ranked[0]), ("retrain_reliable_best", ranked[-1])):
        net = load_checkpoint(stages.out / f"{checkpoint}.pt").network()
        image = torch.tensor(read_image(stages.data / images[row["id"]]))[None].permute(0, 3, 1, 2)
        with torch.no_grad():
            probs = (net(image).softmax(1) + net(image.flip(-1)).softmax(1).flip(-1)) / 2
        confidence, label = probs[0].max(0)
        folder = stages.out / "pseudo_labels"
        with Image.open(folder / "label" / f"{row['id']}.png") as file:
            assert (torch.tensor(np.array(file)) == label).float().mean() > 0.99
        with Image.open(folder / "confidence" / f"{row['id']}.png") as file:
            assert (torch.tensor(np.array(file)) - confidence * 255).abs().max() < 1


def test_the_same_seed_gives_the_same_weights(stages: Stages, tmp_path: Path) -> None:
    again = run(stages.root, stages.data, VALUES, tmp_path)
    one, other = (load_checkpoint(each.out / "last.pt").method_state for each in (stages, again))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_retraining_starts_from_the_runs_initial_weights(shapes: Path, tmp_path: Path) -> None:
    # Rates of nearly nothing leave the weights where they were, and a warm-up of no steps shows the run's first ones.
    second = {"enabled": True, "steps": 1}
    values = changed(
        split={"selection": 0.0},
        method={"cwbass": {"second_stage": second, "ema": {"decay": 0.0}}},
        train={"warmup_steps": 0, "steps": 3, "optimizer": {"lr": 1e-6, "weight_decay": 0.0}},
    )
    done = run(prepare(tmp_path, shapes, values), shapes, values, tmp_path / "train")
    initial = load_checkpoint(tmp_path / "warmup" / "warmup.pt").network("student")
    for name in ("retrain_reliable_last", "last"):
        student = load_checkpoint(done.out / f"{name}.pt").network("student")
        for (key, a), b in zip(initial.named_parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=f"{name}: {key}")
    # Nor is there a selection slice: the last checkpoints count.
    assert {path.stem for path in done.out.glob("*.pt")} == {
        "first_stage_last", "retrain_reliable_last", "last", "snapshot_1", "snapshot_2",
    }  # fmt: skip
    assert done.report.checkpoints == {"last": str(done.out / "last.pt")}


def test_a_retraining_from_other_weights_in_the_same_file_is_another_run(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    values = changed(model={"weights": str(file)}, train={"warmup_steps": 0, "steps": 3})
    net = build_model(load_params(VALUES, Params).model, (shapes / "classes.txt").read_text().split())
    assert isinstance(net, SmpNet)
    state = net.net.encoder.state_dict()
    save_file(state, file)
    root, out = prepare(tmp_path / "root", shapes, values), tmp_path / "train"
    done = run(root, shapes, values, out)
    assert run(root, shapes, values, out).report == done.report  # there is nothing to do
    before, key = file_sha256(file), next(key for key in state if key.endswith("weight"))
    save_file({**state, key: state[key] * 2}, file)
    with pytest.raises(ParamsError, match=rf'model\.weights_sha256: "{before[:40]}.* there, "{file_sha256(file)[:40]}.* now'):
        run(root, shapes, values, out)


def test_retrainings_see_the_tags_of_their_images(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shapes, tmp_path / "data")
    names = (tmp_path / "data" / "classes.txt").read_text().split()
    ids = (tmp_path / "data" / "train.txt").read_text().split()
    said = {name: turn % 3 for turn, name in enumerate(ids)}
    (tmp_path / "data" / "tags.txt").write_text("".join(f"{name}, {names[shown]}\n" for name, shown in said.items()))
    made: list[OfflineStream] = []

    class Watched(OfflineStream):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("cwbass.steps.second_stage.OfflineStream", Watched)
    run(prepare(tmp_path, tmp_path / "data", VALUES), tmp_path / "data", VALUES, tmp_path / "train")
    assert [len(stream.labels) for stream in made] == [2, 8]
    for stream in made:
        for position in range(8):
            name = stream.labels.ids[index_at(position, len(stream.labels), seed=0, stream="unlabeled")]
            assert stream[position].tags.tolist() == [int(index == said[name]) for index in range(len(names))]  # type: ignore[union-attr]


def test_a_pass_of_a_retraining_is_over_the_images_that_are_labelled_by_then(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    class Watched(Stage):
        def train(self, schedule: Schedule, **files: Any) -> None:
            seen.append((self.name, schedule.pass_steps))
            super().train(schedule, **files)

    monkeypatch.setattr("cwbass.steps.second_stage.Stage", Watched)
    values = changed(train={"epoch_steps": None})
    done = run(prepare(tmp_path, shapes, values), shapes, values, tmp_path / "train")
    assert seen == [("retrain_reliable", 1), ("retrain_all", 4)]  # 2 and 8 images, 2 a step
    steps = [(row["stage"], row["step"]) for row in rows(done.out / "history.jsonl")]
    assert steps == [("train", 5), ("train", 7), ("retrain_reliable", 1), ("retrain_reliable", 2), ("retrain_all", 2)]


def test_a_stage_too_short_to_tell_is_refused_before_it_begins(stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"method\.cwbass\.second_stage compares.*has 2 steps after the warm-up"):
        run(stages.root, stages.data, changed(train={"steps": WARMUP + 2}), tmp_path / "train")
    assert list((tmp_path / "train").glob("*.pt")) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": WARMUP + 3, "epoch_steps": 9}, "the teacher is the same after steps 2 and 4"),
        ({"steps": WARMUP + 9, "epoch_steps": 1, "early_stop": 1}, "after 3 steps, before its first snapshot at 4"),
    ],
)
def test_a_teacher_that_never_moved_is_no_proof_of_reliability(
    stages: Stages, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    still = {"cwbass": {"second_stage": {"enabled": True}, "ema": {"decay": 1.0, "ramp": False}}}
    with pytest.raises(ParamsError, match=message):
        run(stages.root, stages.data, changed(method=still, train=settings), tmp_path)
    assert (tmp_path / "first_stage_last.pt").is_file()
    assert not (tmp_path / "last.pt").exists()
