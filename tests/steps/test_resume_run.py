"""Runs that are stopped and continued: every byte is that of the run that was not."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from killing import Killed
from safetensors.torch import save_file
from tiny import TinyRun, changed, make_split, rows, training, warm

from cwbass.cli import main
from cwbass.data.manifest import Manifest
from cwbass.data.streams import index_at
from cwbass.data.synthetic import write_shapes
from cwbass.errors import CwbassError, DataError, ParamsError
from cwbass.files import file_sha256
from cwbass.methods import METHODS
from cwbass.methods.cw_bass import CwBass
from cwbass.models import build_model
from cwbass.models.smp_net import SmpNet
from cwbass.params import Params, dump_params, load_params
from cwbass.steps.split import SplitParams, split
from cwbass.training import stage as stage_module
from cwbass.training.checkpoint import load_checkpoint
from cwbass.training.resume import Resume

TOP = Path(__file__).parents[2]
RESULTS = ("last.pt", "best.pt", "history.jsonl", "probes.zip", "run.json")


def assert_equal(run: TinyRun, out: Path, names: tuple[str, ...] = RESULTS) -> None:
    for name in names:
        assert file_sha256(out / name) == file_sha256(run.train / name), name


def test_killed_for_real_in_both_stages_with_and_without_loader_processes() -> None:
    """A small part of the benchmark, which kills what it forks with real signals."""
    cases = ("warmup:0:TERM", "train:1:TERM", "train:0:KILL", "second_stage:0:KILL")
    done = subprocess.run(
        [sys.executable, "benchmarks/resume.py", "--json", "--seed", "3", "--cases", *cases],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ended = json.loads(done.stdout)
    assert [f"{row['stage']}:{row['workers']}:{row['signal']}" for row in ended] == list(cases)
    assert all(row["equal"] is True for row in ended)


def test_a_run_goes_on_after_its_results_were_deleted(tiny_run: TinyRun, tmp_path: Path, killed_at: Any) -> None:
    """DVC deletes what a stage writes before it runs it again; the work folder is not DVC's."""
    out, work = tmp_path / "train", tmp_path / "work"
    killed_at(6)  # in the second epoch; best.pt is of the first
    with pytest.raises(Killed):
        training(tiny_run, out, changed(tiny_run.params, save_minutes=1e-9), work_dir=work)
    shutil.rmtree(out)
    report = training(tiny_run, out, work_dir=work)
    assert_equal(tiny_run, out)
    assert not work.exists()
    assert report.checkpoints["best"] == str(out / "best.pt")


@pytest.mark.parametrize("location", ["mirror", "shelf://team/states"])
def test_a_fresh_machine_goes_on_from_the_second_place(
    location: str, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin_objects: Any, killed_at: Any
) -> None:
    """In a folder and in a store of a plugin."""
    monkeypatch.chdir(tmp_path)
    params = changed(tiny_run.params, save_minutes=1e-9, checkpoint_uri=location)
    killed_at(7)
    with pytest.raises(Killed):
        training(tiny_run, tmp_path / "pod1", params)
    assert bool(plugin_objects) == ("://" in location)
    started: list[int] = []
    real = stage_module.fit

    def fit(*arguments: Any, **settings: Any) -> None:
        started.append(settings["schedule"].start)
        real(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "fit", fit)
        training(tiny_run, tmp_path / "pod2", params)
    assert 8 < started[0] <= 15
    assert_equal(tiny_run, tmp_path / "pod2", ("history.jsonl", "probes.zip", "run.json"))
    for name in ("last.pt", "best.pt"):  # their params name the second place
        one, other = load_checkpoint(tmp_path / "pod2" / name), load_checkpoint(tiny_run.train / name)
        assert all(torch.equal(value, other.method_state[key]) for key, value in one.method_state.items())
    assert not plugin_objects and not any(path.is_file() for path in (tmp_path / "mirror").rglob("*"))  # the run is done


def test_another_number_of_processes_begins_the_epoch_again(
    tiny_run: TinyRun, tmp_path: Path, killed_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    killed_at(6)
    with pytest.raises(Killed):
        training(tiny_run, tmp_path / "train", changed(tiny_run.params, save_minutes=1e-9))
    for path in (tmp_path / "train" / "state").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "world_size": 2}))
    training(tiny_run, tmp_path / "train")
    assert "1 process now, 2 before: going on from the beginning of an epoch, after step 12" in caplog.text
    assert_equal(tiny_run, tmp_path / "train")


def test_float16_goes_on_with_its_loss_scale_from_the_warm_up_to_the_end_and_over_a_stop(
    tiny_run: TinyRun, tmp_path: Path, killed_at: Any
) -> None:
    """On a CPU float32 stands in for it, whose bits a scale does not change: those of a run without one."""
    caught = changed(tiny_run.params, precision="float16", device="cpu", save_minutes=1e-9, baseline=False)
    warm(replace(tiny_run, params=caught), tmp_path)
    start, whole, stopped = tmp_path / "warmup.pt", tmp_path / "whole", tmp_path / "stopped"
    assert load_checkpoint(start).loss_scale == {"value": 2.0**16, "clean": 8}
    training(tiny_run, whole, caught, warmup=start)
    killed_at(6)
    with pytest.raises(Killed):
        training(tiny_run, stopped, caught, warmup=start)
    training(tiny_run, stopped, caught, warmup=start)
    for name in RESULTS:
        assert file_sha256(stopped / name) == file_sha256(whole / name), name
    last, plain = load_checkpoint(stopped / "last.pt"), load_checkpoint(tiny_run.train / "last.pt")
    assert last.loss_scale == {"value": 2.0**16, "clean": 16}
    assert (last.history[-1]["loss_scale"], last.history[-1]["overflows"]) == (2.0**16, 0)
    assert plain.loss_scale == {} and "loss_scale" not in plain.history[-1]
    assert all(torch.equal(value, last.method_state[key]) for key, value in plain.method_state.items())


def test_a_finished_run_is_reported_at_once_and_another_one_is_refused(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "fit", lambda *arguments, **settings: pytest.fail("it trains"))
    before = file_sha256(tiny_run.train / "last.pt")
    report = training(tiny_run, tiny_run.train)
    assert (report.stage, report.steps) == ("train", 16)
    assert report.checkpoints == {name: str(tiny_run.train / f"{name}.pt") for name in ("last", "best")}
    assert report.selection_miou["train"] == load_checkpoint(tiny_run.train / "best.pt").best["miou"]
    training(tiny_run, tiny_run.train, changed(tiny_run.params, workers=3, cache=str(tmp_path)))  # the same run
    other = tiny_run.params.model_copy(update={"seed": 1})
    with pytest.raises(ParamsError, match="holds a finished run that differs from this one:\n  seed: 0 there, 1 now\n"):
        training(tiny_run, tiny_run.train, other)
    assert file_sha256(tiny_run.train / "last.pt") == before


def test_a_run_from_other_weights_in_the_same_file_is_another_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    file, names = tmp_path / "encoder.safetensors", Manifest.read(tiny_run.manifest).spec.class_names
    net = build_model(tiny_run.params.model, names)
    assert isinstance(net, SmpNet)
    state = net.net.encoder.state_dict()
    save_file(state, file)
    run = replace(tiny_run, params=changed(tiny_run.params, "model", weights=str(file)))
    first = warm(run, tmp_path / "out")
    assert warm(run, tmp_path / "out") == first  # done
    before, key = file_sha256(file), next(key for key in state if key.endswith("weight"))
    save_file({**state, key: state[key] * 2}, file)
    line = rf"model\.weights_sha256: \"{before[:40]}.* there, \"{file_sha256(file)[:40]}.* now"
    with pytest.raises(ParamsError, match=line):
        warm(run, tmp_path / "out")


def test_the_command_line_refuses_a_run_of_other_parameters_and_takes_a_forced_one(
    tiny_run: TinyRun, tmp_path: Path, killed_at: Any
) -> None:
    out = tmp_path / "train"
    killed_at(4)
    with pytest.raises(Killed):
        training(tiny_run, out)
    (tmp_path / "params.yaml").write_text(dump_params(tiny_run.params))
    arguments = ["train", "--params", tmp_path / "params.yaml", "--manifest", tiny_run.manifest, "--out", out]
    arguments += ["--warmup", tiny_run.warmup / "warmup.pt", "--set", "train.optimizer.lr=0.01"]
    code, _, err = call(*arguments)
    assert (code, "train.optimizer.lr: 0.002 there, 0.01 now" in err) == (3, True)
    assert "Traceback" not in err
    code, stdout, _ = call(*arguments, "--resume-force", "train.optimizer.lr")
    assert code == 0
    assert json.loads(stdout)["steps"] == 16
    first, second = ([row["lr"] for row in rows(path / "history.jsonl")] for path in (tiny_run.train, out))
    assert first[0] == second[0] and first[1] != second[1]
    anew = (*arguments[:-1], "train.optimizer.lr=0.02", "--restart", "--keep-state")
    code, _, err = call(*anew)
    assert (code, "warmup.pt was trained otherwise than this run trains:" in err) == (3, True)
    code, _, err = call(*anew, "--resume-force", "train.optimizer")
    assert code == 0
    assert (out / "state" / "finished").is_file()


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    return run(main, "cwbass", *arguments)


def test_a_step_that_is_not_finite_is_skipped_and_its_images_are_kept(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, killed_at: Any
) -> None:
    bad = spoil(monkeypatch, {10, 13})
    killed_at(6)  # what was skipped before is remembered
    with pytest.raises(Killed):
        training(tiny_run, tmp_path / "out", changed(tiny_run.params, save_minutes=1e-9))
    training(tiny_run, tmp_path / "out")
    manifest = Manifest.read(tiny_run.manifest)
    expected = [
        {
            "stage": "train",
            "step": step,
            "labeled": ids_at(manifest, "labeled", step, tiny_run.params.train.batch_labeled),
            "unlabeled": ids_at(manifest, "unlabeled", step, tiny_run.params.train.batch_unlabeled),
        }
        for step in sorted(bad)
    ]
    assert rows(tmp_path / "out" / "skipped.jsonl") == expected
    assert f"the images of step 10: {json.dumps({key: expected[0][key] for key in ('labeled', 'unlabeled')})}" in caplog.text
    assert [row["nonfinite"] for row in rows(tmp_path / "out" / "history.jsonl")] == [1, 1]


def test_too_many_such_steps_end_the_run_and_their_images_are_still_named(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {9, 10, 11})
    with pytest.raises(CwbassError, match=r"2 steps in a row \(the last is 10\)") as caught:
        training(tiny_run, tmp_path / "out", changed(tiny_run.params, max_nonfinite=2))
    assert caught.value.exit_code == 1
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 2


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> set[int]:
    """Let the loss of some steps be no number."""
    real = CwBass.training_step

    def training_step(self: Any, labeled: Any, unlabeled: Any, progress: Any) -> Any:
        output = real(self, labeled, unlabeled, progress)
        return replace(output, loss=output.loss * float("nan")) if progress.step in steps else output

    monkeypatch.setattr(CwBass, "training_step", training_step)
    return steps


def ids_at(manifest: Manifest, stream: Any, step: int, batch: int) -> list[str]:
    samples = manifest.samples(stream)
    positions = range(step * batch, (step + 1) * batch)
    return [samples[index_at(position, len(samples), seed=0, stream=stream)].id for position in positions]


def test_labels_of_one_class_are_refused_before_anything_is_trained(tiny_run: TinyRun, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_shapes(data, seed=0, labeled=6, unlabeled=2, test=2, size=(64, 64))
    values = tiny_run.params.model_dump(mode="json")
    names = (data / "classes.txt").read_text().split("\n")
    first, *others = [line.split()[0] for line in names if line.strip()]
    values["data"] = {"root": str(data), "ignore_classes": others}
    run = TinyRun(tmp_path, data, load_params(values, Params))
    make_split(run)
    with pytest.raises(DataError, match=f"show one class only, {first}: there is nothing to tell apart") as caught:
        warm(run)
    assert caught.value.exit_code == 4
    assert not run.warmup.exists()


def test_fewer_labels_than_a_batch_and_images_smaller_than_the_crop_are_trained_on(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    labeled = len(Manifest.read(tiny_run.manifest).labeled)
    params = changed(tiny_run.params, batch_labeled=labeled + 3, steps=10)
    params = changed(params, "augment", crop_size=96, scale=(0.5, 0.75))
    warm(replace(tiny_run, params=changed(params, baseline=False)), tmp_path / "warmup")
    assert f"{labeled} labelled images are fewer than train.batch_labeled ({labeled + 3})" in caplog.text
    training(tiny_run, tmp_path / "train", params, warmup=tmp_path / "warmup" / "warmup.pt")
    (row,) = rows(tmp_path / "train" / "history.jsonl")
    assert (row["nonfinite"], row["step"]) == (0, 10)
    assert 0 < row["loss_sup"] < 10


def test_restart_leaves_no_result_of_the_earlier_run_that_the_new_one_does_not_write(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, tiny_run.data, changed(tiny_run.params, steps=2, warmup_steps=1, baseline=False, probes=0))
    shutil.copytree(tiny_run.train, run.train)
    shutil.copytree(tiny_run.warmup, run.warmup)
    chosen = SplitParams(data=run.params.data, split=run.params.split.model_copy(update={"selection": 0.0}))
    split(chosen, data_root=run.data, out_dir=run.manifest.parent)
    warm(run, resume=Resume(restart=True))
    training(run, resume=Resume(restart=True))
    left = {path.name for folder in (run.train, run.warmup) for path in folder.iterdir() if path.suffix in (".pt", ".zip")}
    assert left == {"last.pt", "warmup.pt"}
    assert not (run.warmup / "sweep.json").exists()


def test_a_restart_that_is_refused_deletes_nothing(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, tiny_run.data, changed(tiny_run.params, optimizer={"lr": 0.5}))
    shutil.copytree(tiny_run.train, run.train)
    there = {path.name: path.read_bytes() for path in run.train.iterdir() if path.is_file()}
    arguments = ("--manifest", tiny_run.manifest, "--warmup", tiny_run.warmup / "warmup.pt", "--out", run.train, "--restart")
    (tmp_path / "params.yaml").write_text(dump_params(run.params))
    code, _, err = call("train", "--params", tmp_path / "params.yaml", *arguments)
    assert (code, "was trained otherwise than this run trains" in err) == (3, True)
    assert {name: (run.train / name).read_bytes() for name in there} == there


def test_a_method_that_needs_unlabelled_images_says_so_where_there_are_none(tiny_run: TinyRun, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_shapes(data, seed=0, labeled=8, unlabeled=0, test=2, size=(64, 64))
    run = TinyRun(tmp_path, data, changed(tiny_run.params, steps=2, warmup_steps=1, baseline=False))
    make_split(run)
    warm(run)
    with pytest.raises(
        DataError, match=r"learns from unlabelled images and the split has none.*method\.name: supervised"
    ) as caught:
        training(run)
    assert caught.value.exit_code == 4


def test_a_gpu_that_is_asked_for_and_not_there_is_exit_code_3(tiny_run: TinyRun, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "params.yaml").write_text(dump_params(changed(tiny_run.params, device="cuda")))
    code, _, err = call(
        "warmup", "--params", tmp_path / "params.yaml", "--manifest", tiny_run.manifest, "--out", tmp_path / "out"
    )
    assert (code, "train.device is cuda, but torch sees no GPU" in err) == (3, True)
    assert not (tmp_path / "out").exists()


def test_restart_trains_again(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.train, tmp_path / "train")
    (tmp_path / "train" / "last.pt").write_bytes(b"")
    training(tiny_run, tmp_path / "train", resume=Resume(restart=True))
    assert_equal(tiny_run, tmp_path / "train")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "cw_bass"])
def test_every_method_goes_on_in_the_same_bytes(name: str, tiny_run: TinyRun, tmp_path: Path, killed_at: Any) -> None:
    small = {"encoder": "tu-mobilenetv4_conv_small_035"}
    special: dict[str, dict[str, Any]] = {
        "st_plus_plus": {"retrain_steps": 2, "scales": [1.0]},
        "mgd": {"deep": small, "wide": small},
    }
    method = METHODS[name].config_cls.model_validate({"name": name, **special.get(name, {})})
    params = changed(tiny_run.params.model_copy(update={"method": method}), steps=12, epoch_steps=2, save_minutes=1e-9)
    training(tiny_run, tmp_path / "whole", params)
    killed_at(5 if name == "st_plus_plus" else 3)  # of 4 steps, in the second epoch; of ST++ in its first retraining
    with pytest.raises(Killed):
        training(tiny_run, tmp_path / "parts", params)
    training(tiny_run, tmp_path / "parts", params)
    assert (tmp_path / "whole" / "probes.zip").is_file() == METHODS[name].needs_unlabeled
    for file in filter(lambda file: (tmp_path / "whole" / file).is_file(), RESULTS):
        assert file_sha256(tmp_path / "parts" / file) == file_sha256(tmp_path / "whole" / file), file
    start, last = load_checkpoint(tiny_run.warmup / "warmup.pt"), load_checkpoint(tmp_path / "whole" / "last.pt")
    assert last.method == name
    for network in last.networks:
        own, before = last.network(network).state_dict(), start.network("student").state_dict()
        assert any(not torch.equal(value, before[key]) for key, value in own.items())


def test_snapshots_are_spread_over_the_run_and_a_stop_changes_none_of_their_bytes(
    tiny_run: TinyRun, tmp_path: Path, killed_at: Any
) -> None:
    params = changed(tiny_run.params, snapshots=5, save_minutes=1e-9)
    training(tiny_run, tmp_path / "whole", params)
    killed_at(3)
    with pytest.raises(Killed):
        training(tiny_run, tmp_path / "stopped", params)
    training(tiny_run, tmp_path / "stopped", params)
    names = [path.name for path in sorted((tmp_path / "whole").glob("step-*.pt"))]
    assert names == [f"step-{step:07d}.pt" for step in (9, 12, 16)]  # fifths of 16 steps: 3 and 6 are the warm-up's
    for name in (*names, "last.pt", "best.pt", "history.jsonl"):
        assert file_sha256(tmp_path / "stopped" / name) == file_sha256(tmp_path / "whole" / name), name
    snapshot = load_checkpoint(tmp_path / "whole" / names[0])
    assert (snapshot.step, snapshot.optimizer, snapshot.networks) == (9, {}, ("student", "teacher"))
