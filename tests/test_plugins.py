"""The plugin of docs/plugins.md, as that page says to bring it in: in every verb and every process, by the environment alone."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cwbass import plugins
from cwbass.errors import ParamsError
from cwbass.methods import METHODS, supervised_methods
from cwbass.params import Params, json_schema, load_params
from cwbass.plugins import GROUP, VARIABLE, load_plugins, source_sha256
from cwbass.training.identity import run_identity
from cwbass.world import ALONE

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs" / "plugins.md").read_text()
METHOD, NETWORK, LOSS, POSTPROCESS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
IMPORTS = """
from collections.abc import Sequence
from typing import Any
from torch import Tensor, nn
from torch.nn import functional as F
from cwbass.config import ModelConfig
from cwbass.losses import LABELED_LOSSES
from cwbass.losses.supervised import supervised_cross_entropy
from cwbass.models import MODELS
from cwbass.models.smp_net import SmpNet


"""
VERB = """
from cwbass.cli import app
from cwbass.evaluation import POSTPROCESS


@app.command()
def greet(name: str) -> None:
    print("hello", name)


"""
PARAMS = """
data: {root: data}
split: {selection: 0.2, min_selection: 2}
augment: {crop_size: 32}
model: {arch: helped, encoder: tu-mobilenetv4_conv_small_050, options: {decoder_channels: [8, 8, 8, 8, 8]}}
method: {name: entropy, weight: 0.3}
train:
  steps: 8
  warmup_steps: 4
  batch_labeled: 2
  batch_unlabeled: 2
  epoch_steps: 4
  cache: null
  workers: 1
  precision: float32
  loss: {name: with_dice, options: {dice: 100.0}}
eval: {gallery: 0, postprocess: sharpened, postprocess_options: {power: 3.0}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """Parameters, data, and the page's code in two folders: a module, and a package that is installed."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "params.yaml").write_text(PARAMS)
    shutil.copytree(shapes, folder / "data")
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(METHOD)
    installed = folder / "site"
    (installed / "lab").mkdir(parents=True)
    (installed / "lab" / "__init__.py").write_text("")
    (installed / "lab" / "more.py").write_text(f"{IMPORTS}{NETWORK}{LOSS}{VERB}{POSTPROCESS}")
    install(installed, "lab.more")
    return folder


def install(folder: Path, module: str) -> None:
    """What pip leaves of a package ``lab`` with an entry point."""
    (folder / "lab-1.dist-info").mkdir()
    (folder / "lab-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1\n")
    (folder / "lab-1.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\nmore = {module}\n")


def cwbass(work: Path, *arguments: str, names: str = "mine") -> subprocess.CompletedProcess[str]:
    """A verb in a process of its own, in the folder of the work."""
    return python(work, "-m", "cwbass", *arguments, names=names)


def python(work: Path, *arguments: str, names: str = "mine") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (TOP, TOP / "tests/steps", work / "code", work / "site")))
    environment = {**os.environ, "PYTHONPATH": path, VARIABLE: names}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def compared(work: Path) -> str:
    """The table of a comparison, whose cells are processes of their own, with processes for loading."""
    assert cwbass(work, "compare", "--seeds", "0", "--list").returncode == 0
    code = "from pathlib import Path; from tiny import write_costs; write_costs(Path('artifacts/compare'))"
    assert python(work, "-c", code).returncode == 0
    done = cwbass(work, "compare", "--seeds", "0")
    logs = [path.read_text()[-2000:] for path in work.glob("artifacts/compare/**/*.log")]
    assert done.returncode == 0, (done.stderr, logs)
    return done.stdout


def test_a_comparison_trains_the_method_and_scores_it_by_the_postprocess(compared: str, work: Path) -> None:
    assert "| entropy |" in compared
    cell = work / "artifacts/compare/as-given/seed0/entropy"
    rows = [json.loads(line) for line in (cell / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss_sup"] + 0.3 * rows[-1]["loss_unsup"], rel=1e-4)
    metrics = json.loads((cell / "reports/metrics.json").read_text())
    assert (metrics["method"], metrics["protocol"]) == ("entropy", "whole scale:1 sharpened(power=3.0)")


def test_the_page_s_loss_by_hand() -> None:
    space: dict[str, Any] = {}
    exec(f"{IMPORTS}{LOSS}", space)
    logits = torch.tensor([[[[0.0, 50.0, 0.0]], [[0.0, 0.0, 9.0]]]])  # [1, 2, 1, 3]: even, class 0 for certain, ignored
    mask = torch.tensor([[[0, 0, 255]]])
    given = {"ignore_index": 255, "class_weight": None, "hard": None, "world": ALONE}
    found = space["with_dice"](logits, mask, dice=3.0, **given)
    # Class 0: 2 (0.5 + 1) + 1 over 1.5 + 2 + 1; class 1: 0 + 1 over 0.5 + 1.
    dice = 1 - (4 / 4.5 + 1 / 1.5) / 2
    assert found.item() == pytest.approx(math.log(2) / 2 + 3 * dice, rel=1e-5)
    assert space["with_dice"](logits, torch.full_like(mask, 255), **given).item() == 0  # no pixel is labelled


def test_a_loss_on_labels_is_that_of_warm_up_baseline_and_method(compared: str, work: Path) -> None:
    rows = [json.loads(line) for path in work.glob("artifacts/compare/as-given/seed0/*/history.jsonl") for line in path.open()]
    assert {row["stage"] for row in rows} == {"warmup", "baseline", "train"}
    assert min(row["loss_sup"] for row in rows) > 20  # nats are ln 7 at most, of a network that knows nothing; 100 times 1 - Dice


def test_a_networks_own_head_learns_in_the_plugins_method(compared: str, work: Path) -> None:
    group = work / "artifacts/compare/as-given/seed0"
    before, after = (
        torch.load(path, weights_only=True)["method_state"]
        for path in (*group.glob("warmup-*/warmup.pt"), group / "entropy/last.pt")
    )
    assert not torch.equal(before["student.helper.weight"], after["student.helper.weight"])


def test_the_run_says_which_plugins_it_was_made_with_and_goes_on_with_no_others(compared: str, work: Path) -> None:
    cell = work / "artifacts/compare/as-given/seed0/entropy"
    digest = source_sha256(work / "code" / "mine.py")[:12]
    assert json.loads((cell / "run.json").read_text())["run"]["plugin.mine"] == digest
    table = json.loads((work / "artifacts/compare/table.json").read_text())
    assert len(table["code"]) == 1 and f"mine+{digest}" in table["code"][0]
    changed = work / "changed"
    shutil.copytree(work / "code", changed)
    (changed / "mine.py").write_text(METHOD + "# changed\n")
    other = source_sha256(changed / "mine.py")[:12]
    shutil.copytree(cell, work / "again")
    warmup = next((work / "artifacts/compare/as-given/seed0").glob("warmup-*"))
    given = ["--manifest", str(cell.parent / "split/manifest.json"), "--warmup", str(warmup / "warmup.pt"), "--out", "again"]
    params = ["--params", str(cell / "params.yaml")]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (TOP, changed, work / "site"))), VARIABLE: "mine"}
    done = subprocess.run(
        [sys.executable, "-m", "cwbass", "train", *params, *given],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 3
    assert f'plugin.mine: "{digest}" there, "{other}" now' in done.stderr


def test_several_processes_train_it(compared: str, work: Path) -> None:
    group = work / "artifacts/compare/as-given/seed0"
    warmup = next(group.glob("warmup-*")) / "warmup.pt"
    given = ["--manifest", str(group / "split/manifest.json"), "--warmup", str(warmup), "--out", "two"]
    sets = ["--params", str(group / "entropy/params.yaml"), "--set", "train.processes=2", "--set", "train.workers=0"]
    done = cwbass(work, "train", *sets, *given)
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((folder / "history.jsonl").read_text().splitlines()[-1]) for folder in (group / "entropy", work / "two")
    )
    assert two["loss_unsup"] == pytest.approx(one["loss_unsup"], rel=0.05)


def test_an_ablation_is_of_the_terms_that_the_method_names(work: Path) -> None:
    done = cwbass(work, "ablate", "--list", "--out", "ablate")
    assert done.returncode == 0, done.stderr
    names = [cell["variant"] for cell in json.loads(done.stdout)]
    assert names == ["supervised", "entropy", "no-entropy", "no-power", "plain", "only-entropy", "only-power"]
    variants = json.loads((work / "ablate/plan.json").read_text())["variants"]
    assert [(variants[name]["weight"], variants[name]["power"]) for name in names[1:]] == [
        *((0.3, 2.0), (0.0, 2.0), (0.3, 1.0), (0.0, 1.0)),
        *((0.3, 1.0), (0.0, 2.0)),
    ]


def test_a_plugin_may_add_a_verb_and_is_told_by_the_doctor(work: Path) -> None:
    done = cwbass(work, "greet", "you")
    assert (done.returncode, done.stdout) == (0, "hello you\n"), done.stderr
    found = {check["name"]: check["value"] for check in json.loads(cwbass(work, "doctor", "--json").stdout)["checks"]}
    assert found["plugin mine"] == f"{work / 'code/mine.py'}, source {source_sha256(work / 'code/mine.py')[:12]}"
    assert found["plugin lab.more"].startswith(f"{work / 'site/lab'}, source ")


def test_no_checkpoint_brings_code_in(compared: str, work: Path) -> None:
    checkpoint = work / "artifacts/compare/as-given/seed0/entropy/last.pt"
    images = ["--images", str(next((work / "data/images").iterdir()))]
    done = cwbass(work, "predict", "--checkpoint", str(checkpoint), *images, names="")
    assert done.returncode == 3
    assert "method.name is 'entropy'; choose one of 'supervised', " in done.stderr
    assert cwbass(work, "predict", "--checkpoint", str(checkpoint), *images).returncode == 0


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of modules, and plugins that are looked for anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    load_plugins.cache_clear()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    load_plugins.cache_clear()


def test_what_cannot_be_imported_is_named_with_what_named_it(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "broken_plugin.py").write_text("raise ZeroDivisionError('a half')")
    (fresh / "script_plugin.py").write_text("raise SystemExit(3)")
    reasons = {
        "broken_plugin": r"\(ZeroDivisionError: a half\)",
        "script_plugin": r"\(SystemExit: 3\)",
        "absent_plugin": "No module named 'absent_plugin'",
    }
    for name, said in reasons.items():
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(ParamsError, match=f"plugin {name}, named by CWBASS_PLUGINS, cannot be imported .*{said}"):
            load_params({}, Params)


def test_the_digest_of_a_package_is_of_all_its_files(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "pack_plugin" / "inner").mkdir(parents=True)
    for name in ("__init__", "one", "inner/two"):
        (fresh / "pack_plugin" / f"{name}.py").write_text(f"# {name}")
    monkeypatch.setenv(VARIABLE, "pack_plugin.one, ")
    (found,) = load_plugins()
    assert (found.name, found.path) == ("pack_plugin.one", fresh / "pack_plugin")
    assert run_identity("train", Params(), "ab")["plugin.pack_plugin.one"] == found.sha256[:12]
    (fresh / "pack_plugin/inner/two.py").write_text("# changed")
    assert source_sha256(fresh / "pack_plugin") != found.sha256


def test_the_digest_of_a_module_in_a_namespace_is_of_the_module(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "first" / "lab_space").mkdir(parents=True)  # no __init__.py: a namespace, of two folders
    (fresh / "second" / "lab_space").mkdir(parents=True)
    own = fresh / "second" / "lab_space" / "own_plugin.py"
    own.write_text("# mine")
    for folder in ("second", "first"):
        monkeypatch.syspath_prepend(str(fresh / folder))
    monkeypatch.setenv(VARIABLE, "lab_space.own_plugin")
    (found,) = load_plugins()
    assert (found.path, found.sha256) == (own, source_sha256(own))


def test_without_plugins_a_run_is_what_it_was(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert load_plugins() == ()
    assert not any(key.startswith("plugin") for key in run_identity("train", Params(), "ab"))


def test_methods_that_come_later_are_taken_and_offered(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cwbass.params`` was imported long before."""
    forget_after_the_test(monkeypatch, "entropy")
    (fresh / "late_plugin.py").write_text(METHOD)
    monkeypatch.setenv(VARIABLE, "late_plugin")
    with pytest.raises(ParamsError, match=r"method\.weight: is -1, should be greater than or equal to 0"):
        load_params({"method": {"name": "entropy", "weight": -1}}, Params)
    with pytest.raises(ParamsError, match=r"method\.wieght: unknown key; did you mean 'weight'"):
        load_params({"method": {"name": "entropy", "wieght": 1}}, Params)
    params = load_params({"method": {"name": "entropy", "weight": 2}}, Params)
    assert params.model_dump(mode="json")["method"] == {"name": "entropy", "weight": 2.0, "power": 2.0}
    assert "#/$defs/EntropyConfig" in json_schema()["properties"]["method"]["discriminator"]["mapping"].values()
    assert "entropy" not in supervised_methods()


def forget_after_the_test(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A method that a plugin will register."""
    monkeypatch.setitem(METHODS, method, METHODS["supervised"])
    del METHODS[method]


@pytest.mark.parametrize(
    ("place", "registry", "name", "there"),
    [
        ("cwbass.methods", "METHODS", "fixmatch", "cwbass.methods.fixmatch.FixMatch"),
        ("cwbass.methods", "OFFLINE", "cw_bass", "cwbass.methods.offline.OfflineCwBass"),
        ("cwbass.data", "LAYOUTS", "folder", "cwbass.data.folder.folder"),
        ("cwbass.data.remote", "STORES", "s3", "cwbass.data.remote._s3"),
        ("cwbass.optimizers", "OPTIMIZERS", "sgd", "cwbass.optimizers.sgd"),
        ("cwbass.optimizers", "SCHEDULES", "poly", "cwbass.optimizers.poly"),
    ],
)
def test_a_plugin_that_registers_a_name_that_is_taken_is_refused(
    place: str, registry: str, name: str, there: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = getattr(importlib.import_module(place), registry)[name]
    (fresh / "taking_plugin.py").write_text(f"from {place} import {registry}\ndef own(): ...\n{registry}.update({name}=own)\n")
    monkeypatch.setenv(VARIABLE, "taking_plugin")
    said = f"{name!r} is the name of {there}; register taking_plugin.own under another one"
    for _ in range(2):  # who asks again is told again
        with pytest.raises(ParamsError, match=rf"plugin taking_plugin, named by {VARIABLE}, .*{re.escape(said)}"):
            load_params({}, Params)
    assert getattr(importlib.import_module(place), registry)[name] is before


def test_a_plugin_may_be_imported_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_after_the_test(monkeypatch, "entropy")
    (fresh / "again_plugin.py").write_text(METHOD)
    monkeypatch.setenv(VARIABLE, "again_plugin")
    load_plugins()
    first = METHODS["entropy"]
    load_plugins.cache_clear()
    del sys.modules["again_plugin"]
    load_plugins()
    assert METHODS["entropy"] is sys.modules["again_plugin"].Entropy is not first
