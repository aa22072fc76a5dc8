"""kfp and dvc are extras: a verb that has no need of them must not need them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tiny import TinyRun

from cwbass.cli import app
from cwbass.params import dump_params

TOP = Path(__file__).parents[1]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
BLOCKED = """
import sys
BLOCKED = sys.argv.pop().split(",")
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(code: str, cwd: Path, blocked: str = "kfp,kfp_server_api,dvc,components,pipeline") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code, blocked], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ran(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Every verb in turn in one process, which has seen neither kfp nor dvc."""
    work = tmp_path_factory.mktemp("without")
    params = tiny_run.params.model_copy(
        update={"train": tiny_run.params.train.model_copy(update={"steps": 2, "warmup_steps": 1})}
    )
    (work / "params.yaml").write_text(dump_params(params))
    commands = [
        ["synthesize"],
        ["check", "--params-only"],
        ["config", "show"],
        ["split"],
        ["warmup"],
        ["train"],
        ["eval", "--checkpoint", "artifacts/train", "--baseline", "artifacts/warmup", "--out", "reports"],
        ["predict", "--checkpoint", "artifacts/train/last.pt", "--images", str(tiny_run.data / "unlabeled")],
        ["register", "--set", "registry.onnx=false"],  # the file takes seconds, and is made elsewhere
        ["report"],
        *([verb, "--help"] for verb in sorted(VERBS)),
    ]
    code = f"""
from cwbass.cli import main
for command in {commands!r}:
    sys.argv = ["cwbass", *command]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{{command}} ends with {{stop.code}}")
"""
    return run(code, work)


def test_every_verb_works_without_kfp_and_dvc(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_the_block_is_one(tmp_path: Path) -> None:
    done = run("import kfp", tmp_path)
    assert "No module named 'kfp'" in done.stderr


def test_the_pipeline_says_how_to_get_kfp() -> None:
    code = """
sys.argv = ["pipeline", "compile"]
from pipeline.__main__ import main
main()
"""
    done = run(code, TOP, blocked="kfp")
    assert done.returncode == 3
    assert done.stderr.strip() == "error: kfp is not installed. Run: pip install -c constraints.txt -e '.[pipeline]'"
