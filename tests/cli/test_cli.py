from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from commands import TOP, call
from tiny import TinyRun

import cwbass
from cwbass.cli import app
from cwbass.cli.common import print_json
from cwbass.data.synthetic import write_shapes


def test_it_runs_as_a_program_with_results_on_stdout_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cwbass", "config", "show"], capture_output=True, text=True, cwd=TOP, check=False
    )
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["method"]["recipe"] == "cwbass"


def test_version() -> None:
    assert call("--version").stdout.strip() == f"cwbass {cwbass.__version__}"


def test_an_unknown_option_is_a_usage_error() -> None:
    assert call("split", "--lable", "3").returncode == 2


def test_a_typo_in_the_parameters_is_answered_with_path_and_near_key() -> None:
    done = call("config", "show", "--set", "method.cwbass.threshold.stirct=0.9")
    assert done.returncode == 3
    assert done.stderr.strip() == "error: method.cwbass.threshold.stirct: unknown key; did you mean 'strict'?"
    assert done.stdout == ""


def test_a_missing_parameter_file_is_named(tmp_path: Path) -> None:
    done = call("split", "--params", tmp_path / "none.yaml")
    assert (done.returncode, "none.yaml: no such file" in done.stderr) == (3, True)


def test_an_override_that_the_command_does_not_read_is_told(tiny_run: TinyRun, caplog: pytest.LogCaptureFixture) -> None:
    keys = ("--set", "train.steps=5", "--set", "eval.scales=[1.0]")
    done = call("eval", "--checkpoint", tiny_run.train / "last.pt", "--manifest", tiny_run.manifest, *keys)
    assert done.returncode == 0
    assert "--set train.steps changes nothing: this command reads eval alone." in caplog.messages


def test_config_show_prints_what_an_override_changed() -> None:
    done = call("config", "show", "--set", "train.optimizer.lr=0.5")
    assert done.returncode == 0
    assert "lr: 0.5" in done.stdout


def test_bad_data_is_exit_code_4_and_names_file_value_and_place(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    write_shapes(tmp_path / "data", seed=0, labeled=12, unlabeled=2, test=4, size=(64, 64))
    path = tmp_path / "data" / "masks" / "train_00000.png"
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[5, 9] = 77
    Image.fromarray(mask).save(path)
    done = call("check", "--params", "configs/smoke.yaml", "--data", tmp_path / "data", "--json")
    assert done.returncode == 4
    findings = [f for f in json.loads(done.stdout)["findings"] if f["kind"] == "unknown_value"]
    assert len(findings) == 1
    assert "train_00000.png" in findings[0]["file"]
    assert "77" in findings[0]["message"]


def test_good_data_passes_the_check(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", seed=0, labeled=24, unlabeled=4, test=12, size=(64, 64))
    done = call("check", "--params", "configs/smoke.yaml", "--data", tmp_path / "data")
    assert done.returncode == 0, done.stderr


def test_nothing_is_generated_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("synthesize", "--params", TOP / "params.yaml", "--set", "data.root=s3://bucket/shapes")
    assert (done.returncode, "data.root is s3://bucket/shapes, where nothing can be generated" in done.stderr) == (3, True)
    assert not list(tmp_path.iterdir())


def test_the_check_names_the_sections_without_which_dvc_stops_half_way(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    whole = yaml.safe_load((TOP / "configs/smoke.yaml").read_text())
    params.write_text(yaml.safe_dump({key: value for key, value in whole.items() if key not in ("method", "eval", "synthesize")}))
    command = [sys.executable, "-m", "cwbass", "check", "--params-only", "--params", str(params)]

    def said(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, check=True)
        return done.stderr

    assert said() == ""  # without DVC the defaults do
    (tmp_path / "dvc.yaml").touch()
    assert "params.yaml does not name eval, method: the defaults count, but `dvc repro` stops" in said()
    assert said("--set", "eval={}", "--set", "method={name: cw_bass}") == ""


def test_a_page_on_the_data_is_not_asked_of_a_check_of_parameters_alone(tmp_path: Path) -> None:
    done = call("check", "--params", "configs/smoke.yaml", "--params-only", "--html", tmp_path / "check.html")
    assert (done.returncode, done.stdout) == (3, "")
    assert "--html shows the data, and --params-only looks at none" in done.stderr


def test_weights_that_are_not_there_fail_the_check_as_a_parameter_does(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", seed=0, labeled=24, unlabeled=4, test=12, size=(64, 64))
    weights = ("--set", f"model.weights={tmp_path / 'gone.pth'}")
    done = call("check", "--params", "configs/smoke.yaml", "--data", tmp_path / "data", *weights, "--json")
    assert done.returncode == 3
    assert "error: 1 error in configs/smoke.yaml; see above." in done.stderr
    (finding,) = [found for found in json.loads(done.stdout)["findings"] if found["severity"] == "error"]
    assert finding["message"].startswith(f"model.weights: {tmp_path / 'gone.pth'}: no such file.")
    (tmp_path / "data/masks/train_00000.png").write_text("no mask")
    assert call("check", "--params", "configs/smoke.yaml", "--data", tmp_path / "data", *weights).returncode == 4


def test_eval_prints_the_scores_as_json_and_nothing_else_on_stdout(tiny_run: TinyRun) -> None:
    done = call("eval", "--checkpoint", tiny_run.train / "last.pt", "--manifest", tiny_run.manifest, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert {"miou", "boundary_iou", "boundary_f1_3px", "ece", "pixel_accuracy", "per_class"} <= scores.keys()
    assert {"split_hash", "protocol", "seed"} <= scores.keys()


@pytest.mark.parametrize("option", [("--per-image",), ("--sweep", "sweep.json")])
def test_options_of_eval_that_need_a_folder_for_their_files_are_refused_without_one(option: tuple[str, ...]) -> None:
    done = call("eval", "--checkpoint", "last.pt", *option)
    assert done.returncode == 3
    assert done.stderr.strip() == f"error: {option[0]} is for files in the folder of --out. Give --out, too."


def test_a_broken_checkpoint_is_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 not really")
    done = call("eval", "--checkpoint", tmp_path / "x.pt", "--data", tmp_path)
    assert done.returncode == 4
    assert "x.pt" in done.stderr and "Traceback" not in done.stderr


def test_a_checkpoint_that_is_not_there_is_exit_code_4(tmp_path: Path) -> None:
    done = call("eval", "--checkpoint", tmp_path / "gone", "--data", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert f"{tmp_path / 'gone'}: no such checkpoint" in done.stderr


def test_a_place_that_cannot_be_written_to_is_exit_code_3_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "params.yaml").write_text("synthesize: {labeled: 4, unlabeled: 0, test: 2, height: 32, width: 32}\n")
    done = call("synthesize", "--params", tmp_path / "params.yaml", "--set", f"data.root={tmp_path / 'file' / 'data'}")
    assert done.returncode == 3
    assert done.stderr.startswith("error: ") and str(tmp_path / "file") in done.stderr and "Traceback" not in done.stderr


def test_a_model_below_the_floor_is_refused_with_exit_code_5(tiny_run: TinyRun, tmp_path: Path) -> None:
    done = call(
        *("register", "--params", TOP / "configs/smoke.yaml", "--set", f"registry.store={tmp_path / 'store'}"),
        *("--set", "registry.min_miou=0.99"),
        *("--checkpoint", tiny_run.train, "--metrics", tiny_run.reports / "metrics.json", "--out", tmp_path / "out"),
    )
    assert done.returncode == 5, done.stderr
    assert "0.99" in done.stderr
    assert json.loads((tmp_path / "out" / "registration.json").read_text())["decision"] == "refused"


def test_a_registered_version_is_whole(tiny_run: TinyRun, tmp_path: Path) -> None:
    done = call(
        "register",
        *("--params", TOP / "configs/smoke.yaml", "--set", f"registry.store={tmp_path / 'store'}"),
        *("--checkpoint", tiny_run.train, "--metrics", tiny_run.reports / "metrics.json", "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decision"] == "registered"
    version = tmp_path / "store" / "models" / "cwbass-smoke" / "versions" / "1.0.0"
    wanted = {"model.safetensors", "metrics.json", "report.html", "flight.html", "SHA256SUMS", "MANIFEST.json"}
    assert wanted <= {path.name for path in version.iterdir()}


def test_a_report_that_is_asked_for_and_not_there_is_named(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["register", "--report", str(tmp_path / "gone.html")], env={"COLUMNS": "500"})
    assert done.exit_code == 2
    assert "gone.html" in done.output and "does not exist" in done.output


def test_a_report_may_go_to_a_folder_that_is_not_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"steps": 3}, tmp_path / "new" / "report.json")
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == json.loads(capsys.readouterr().out) == {"steps": 3}


def test_every_verb_and_every_option_has_help() -> None:
    def walk(command: Any, name: str) -> None:
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"
        for verb, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {verb}")

    walk(typer.main.get_command(app), "cwbass")


def test_settings_of_a_score_are_changed_on_top_of_what_the_checkpoint_of_a_folder_was_trained_with(tiny_run: TinyRun) -> None:
    done = call("eval", "--checkpoint", tiny_run.warmup, "--manifest", tiny_run.manifest, "--set", "eval.flip=true", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["checkpoint"], found["method"], found["protocol"]) == ("selected", "supervised", "whole scale:1 flip")


def test_predict_takes_settings_of_a_score_as_eval_does_and_no_others(tiny_run: TinyRun, tmp_path: Path) -> None:
    photo = next((tiny_run.data / "images").iterdir())
    (tmp_path / "how.yaml").write_text("eval: {weights: student, flip: true}\n")

    def masks(name: str, *options: object) -> bytes:
        keys = ("--checkpoint", tiny_run.train, "--images", photo, "--out", tmp_path / name)
        done = call("predict", *keys, "--confidence", *options)
        assert done.returncode == 0, done.stderr
        return (tmp_path / name / "confidence" / f"{photo.stem}.png").read_bytes()

    slide = ("--set", "eval.protocol=slide", "--set", "eval.window=32", "--set", "eval.stride=16")
    student = masks("set", "--set", "eval={weights: student, flip: true}")
    assert student == masks("file", "--params", tmp_path / "how.yaml")
    assert len({student, masks("plain"), masks("slide", *slide)}) == 3

    refused = call("predict", "--checkpoint", tiny_run.train, "--images", photo, *slide, "--set", "model.arch=unet")
    said = "error: --set model.arch: nothing but eval.* can be set, the rest is the checkpoint's.\n"
    assert (refused.returncode, refused.stderr) == (3, said)


def test_predict_ends_with_code_4_where_an_image_cannot_be_read_and_does_the_others(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no photograph")
    shutil.copy(next((tiny_run.data / "images").iterdir()), tmp_path / "in" / "good.png")
    done = call("predict", "--checkpoint", tiny_run.train, "--images", tmp_path / "in", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (4, "error: 1 image of 2 cannot be used: see `failed` in the result.\n")
    said = json.loads(done.stdout)
    assert (said["images"], list(said["failed"])) == (1, [str(tmp_path / "in" / "bad.jpg")])
    assert (tmp_path / "out" / "masks" / "good.png").is_file()


def test_doctor_says_what_is_there() -> None:
    done = call("doctor", "--json")
    assert done.returncode in (0, 3)
    assert any(item["name"] == "torch" for item in json.loads(done.stdout)["checks"])


def test_log_lines_and_the_error_may_be_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWBASS_LOG_FORMAT", "json")
    monkeypatch.setenv("CWBASS_RUN_ID", "r7")
    write_shapes(tmp_path / "data", seed=0, labeled=4, unlabeled=1, test=2, size=(32, 32))
    asked = ["split", "--params", TOP / "configs/smoke.yaml", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "cwbass", *map(str, asked), "--data", str(tmp_path / "data")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [json.loads(line) for line in told.splitlines()]
    assert lines[0]["message"].startswith("split ") and lines[0]["level"] == "INFO"
    assert {line["run_id"] for line in lines} == {"r7"}
    (line,) = map(json.loads, call(*asked, "--data", tmp_path / "gone").stderr.splitlines())
    assert (line["level"], line["exit_code"], "gone/images: no such folder" in line["message"]) == ("ERROR", 4, True)
    monkeypatch.setenv("CWBASS_LOG_FORMAT", "xml")
    done = call(*asked)
    assert (done.returncode, done.stderr) == (
        3,
        "error: CWBASS_LOG_FORMAT is 'xml'; set it to text or json, or not at all.\n",
    )


def test_sigterm_ends_a_verb_with_143(tmp_path: Path) -> None:
    # Without a handler the first process of a container does not hear it, and another one dies with -15.
    params = tmp_path / "params.yaml"
    os.mkfifo(params)
    process = subprocess.Popen(
        [sys.executable, "-m", "cwbass", "config", "show", "--params", str(params)], stdout=subprocess.PIPE
    )
    with params.open("w"):  # opens once the verb has opened it to read
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--params", "none.yaml"), 3)])
@pytest.mark.parametrize("gone", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
def test_a_reader_that_has_gone_changes_no_exit_code(gone: tuple[str, ...], arguments: tuple[str, ...], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams = {name: writing if name in gone else subprocess.DEVNULL for name in ("stdout", "stderr")}
    command = [sys.executable, "-m", "cwbass", "config", "show", *arguments]
    done = subprocess.run(command, cwd=TOP, env=buffered(), check=False, **streams)  # type: ignore[call-overload]
    os.close(writing)
    assert done.returncode == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize(("stream", "arguments", "code"), [("stdout", (), 6), ("stderr", ("--params", "none.yaml"), 3)])
def test_a_full_disk_under_a_stream_is_an_error_of_a_result_and_none_of_a_log(
    stream: str, arguments: tuple[str, ...], code: int
) -> None:
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full}
        command = [sys.executable, "-m", "cwbass", "config", "show", *arguments]
        assert subprocess.run(command, cwd=TOP, env=buffered(), check=False, **streams).returncode == code  # type: ignore[call-overload]


def buffered() -> dict[str, str]:
    """The environment in which Python keeps output back, as it does by default."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
