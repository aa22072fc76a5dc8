"""What the files at the top promise each other: dvc.yaml, params.yaml, configs, README and the CLI."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cwbass.cli import app
from cwbass.config import Section
from cwbass.methods import METHODS
from cwbass.methods.cw_bass import CWBASS, PAPER
from cwbass.params import Params, dump_params, flatten, load_params, parse_yaml, read_params
from cwbass.steps.evaluate import EvaluateParams
from cwbass.steps.init import WEIGHTS
from cwbass.steps.register import RegisterParams
from cwbass.steps.split import SplitParams
from cwbass.steps.train import TrainParams
from cwbass.steps.training import WarmupParams

TOP = Path(__file__).parents[1]
DVC: dict[str, Any] = yaml.safe_load((TOP / "dvc.yaml").read_text())
STEPS: dict[str, type[Section]] = {
    "split": SplitParams,
    "warmup": WarmupParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
}
COMMAND = typer.main.get_command(app)
PARAM_FILES = [TOP / "params.yaml", *sorted((TOP / "configs").glob("*.yaml"))]


def test_the_stages_are_the_five_steps_in_order() -> None:
    assert list(DVC["stages"]) == list(STEPS)


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_tracks_exactly_the_sections_its_step_takes(stage: str) -> None:
    assert sorted(DVC["stages"][stage]["params"]) == sorted(STEPS[stage].model_fields)


def sections(section: Section) -> list[type[Section]]:
    """The classes of all sections of a section."""
    inside = [value for _, value in section if isinstance(value, Section)]
    return [found for value in inside for found in (type(value), *sections(value))]


@pytest.mark.parametrize("stage", [*STEPS, "compare"])
def test_a_stage_depends_on_the_files_that_hold_the_defaults_of_its_sections(stage: str) -> None:
    """params.yaml may leave out a key: a new default is then a new number."""
    plan = yaml.safe_load((TOP / "compare" / "dvc.yaml").read_text())["stages"]["plan"]
    deps = plan["deps"] if stage == "compare" else DVC["stages"][stage]["deps"]
    found = sections(TrainParams() if stage == "compare" else STEPS[stage]())
    for path in {Path(inspect.getfile(each)).relative_to(TOP) for each in found}:
        assert any(path == Path(dep) or Path(dep) in path.parents for dep in deps), path


@pytest.mark.parametrize("stage", STEPS)
def test_a_step_takes_its_sections_with_the_types_bounds_and_defaults_of_params_yaml(stage: str) -> None:
    for name, field in STEPS[stage].model_fields.items():
        whole = Params.model_fields[name]
        assert (field.annotation, field.metadata, field.default) == (whole.annotation, whole.metadata, whole.default), name


@pytest.mark.parametrize("stage", STEPS)
def test_the_command_of_a_stage_parses(stage: str) -> None:
    program, verb, *arguments = DVC["stages"][stage]["cmd"].split()
    command = COMMAND.commands[verb]  # type: ignore[attr-defined]
    assert program == "cwbass"
    command.make_context(verb, arguments)  # a UsageError says what does not parse


@pytest.mark.parametrize("stage", STEPS)
def test_what_a_stage_depends_on_exists_or_is_made_by_an_earlier_stage(stage: str) -> None:
    made = {"${data.root}"}
    for name, each in DVC["stages"].items():
        if name == stage:
            break
        outs = [*each.get("outs", []), *each.get("metrics", []), *each.get("plots", [])]
        made |= {next(iter(out)) if isinstance(out, dict) else out for out in outs}
    for dep in DVC["stages"][stage]["deps"]:
        inside = any(dep == out or dep.startswith(f"{out}/") for out in made)
        assert inside or (TOP / dep).exists(), dep


def test_the_grid_of_dvc_stages_calls_cells_that_a_plan_has() -> None:
    """`compare/dvc.yaml`, its variables filled in as DVC does with `parsing.list append`."""
    grid = yaml.safe_load((TOP / "compare" / "params.yaml").read_text())["grid"]
    stages = yaml.safe_load((TOP / "compare" / "dvc.yaml").read_text())["stages"]
    assert "list = append" in (TOP / ".dvc" / "config").read_text()
    given = " ".join(f"--{name} {value}" for name, values in grid.items() for value in values)
    for name, stage in stages.items():
        text = stage["cmd"].replace("${grid}", given).replace("${item.seed}", "0").replace("${item.method}", grid["methods"][0])
        program, *rest = text.split()
        verb, *arguments = [part for part in rest if part != "--quiet"]
        context = COMMAND.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]
        assert (program, context.params["out"]) == ("cwbass", Path("artifacts/compare")), name
        if cell := context.params["cell"]:
            assert cell in (f"as-given/seed0/{method}" for method in ("supervised", *grid["methods"]))
    assert set(grid["methods"]) <= set(METHODS)
    assert sorted(stages["plan"]["params"]) == sorted(set(TrainParams.model_fields) - {"seed"})


@pytest.mark.parametrize("path", PARAM_FILES, ids=lambda path: path.name)
def test_a_shipped_parameter_file_is_valid_and_has_every_section_that_dvc_tracks(path: Path) -> None:
    values = read_params(path)
    load_params(values, Params)
    tracked = {name for stage in DVC["stages"].values() for name in stage["params"]}
    assert tracked <= values.keys()


def test_dumped_parameters_read_back_to_the_same() -> None:
    params = load_params(read_params(TOP / "params.yaml"), Params)
    assert load_params(parse_yaml(dump_params(params), "dump"), Params) == params


def test_the_recipes_in_params_yaml_hold_threshold_and_decay() -> None:
    method = load_params(read_params(TOP / "params.yaml"), Params).method
    paper = method.paper  # type: ignore[attr-defined]
    assert (paper.threshold.rule, paper.threshold.base, paper.threshold.beta) == ("logistic", 0.6, 0.5)
    assert (paper.decay.rule, paper.decay.factor) == ("constant", 0.9)


def test_params_yaml_lists_every_number_in_which_the_recipes_differ() -> None:
    recipes = {name: flatten(terms.model_dump(mode="json")) for name, terms in (("cwbass", CWBASS), ("paper", PAPER))}
    differing = {
        key
        for key, value in recipes["cwbass"].items()
        if float in (type(value), type(recipes["paper"][key]))
        and value != recipes["paper"][key]
        and key != "threshold.scale"  # no number of paper's rule
    }
    assert {"unsup_weight", "fade", "ema.decay", "threshold.high"} < differing
    method = read_params(TOP / "params.yaml")["method"]
    for name, terms in recipes.items():
        listed = flatten(method[name])
        assert {key: listed.get(key) for key in differing} == {key: terms[key] for key in differing}, name


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cwbass.cli import app; "
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0, r.output; "
        "sys.exit(','.join(m for m in ('torch', 'kfp', 'dvc', 'boto3', 'pydantic_settings') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_every_command_in_the_readme_exists() -> None:
    text = (TOP / "README.md").read_text()
    verbs = set(re.findall(r"^cwbass ([a-z]+)", text, flags=re.MULTILINE))
    listed = re.search(r"^cwbass ((?:[a-z]+ \| )+[a-z]+)$", text, flags=re.MULTILINE)
    assert listed
    verbs |= set(listed.group(1).split(" | "))
    assert verbs <= set(COMMAND.commands)  # type: ignore[attr-defined]
    for target in re.findall(r"^make ([a-z]+)$", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (TOP / "Makefile").read_text(), flags=re.MULTILINE), target


@pytest.mark.parametrize("target", ["run", "install"])
def test_what_makes_the_environment_for_init_makes_the_weights_that_init_proposes(target: str) -> None:
    """Else `cwbass init` after it would propose a download."""
    (named,) = re.findall(r"the environment that `make (\w+)` or `make (\w+)` has made", (TOP / "README.md").read_text())
    assert target in named
    needed = re.search(rf"^{target}: (.*?) *##", (TOP / "Makefile").read_text(), flags=re.MULTILINE)
    assert needed is not None and "$(WEIGHTS)" in needed.group(1).split()
    assert f"\nWEIGHTS := {WEIGHTS}\n" in (TOP / "Makefile").read_text()


def test_every_method_has_a_row_in_the_page_on_methods() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (TOP / "docs" / "methods.md").read_text(), flags=re.MULTILINE)
    assert set(METHODS) <= set(rows)


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [TOP / "README.md", TOP / "CONTRIBUTING.md", *TOP.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_on_data_tells_the_rule_by_which_a_checkpoint_is_selected() -> None:
    text = (TOP / "docs" / "data.md").read_text().split("### The selection slice\n")[1].split("\n## ")[0]
    section = " ".join(text.split())  # lines may be broken anywhere
    assert "the latest epoch whose mIoU on it is within one standard error of the highest" in section
    assert "(decisions/0012-latest-within-one-standard-error.md)" in section


LAYERS = (  # each may import those above it, and itself
    "errors memory world markdown provenance progress search_path",
    "types jsonfile files memory_format pixels telemetry train_jobs headline plugins",
    "config pseudo_labels storage",
    "data losses models optimizers",
    "methods",
    "evaluation",
    "params",
    "training",
    "reporting export doctor",
    "comparison registry",
    "steps",
    "cli",
)


def test_imports_point_down() -> None:
    """At the top of a module; what a function imports when it runs, and types alone, may point anywhere."""
    rank = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    for path in (TOP / "cwbass").rglob("*.py"):
        here = path.relative_to(TOP / "cwbass").with_suffix("").parts[0]
        if here in ("__init__", "__main__"):
            continue
        for statement in ast.parse(path.read_text()).body:
            for name in imported(statement):
                assert name == here or rank[name] < rank[here], f"{path} imports {name}"


def imported(statement: ast.stmt) -> list[str]:
    """First part below cwbass of what a statement imports."""
    if not isinstance(statement, ast.ImportFrom) or statement.module is None:
        return []
    top, *below = statement.module.split(".")
    return (below[:1] or [alias.name for alias in statement.names if alias.name != "__version__"]) if top == "cwbass" else []


def test_nothing_in_the_package_imports_the_extras() -> None:
    for path in (TOP / "cwbass").rglob("*.py"):
        assert not re.search(r"^\s*(?:import|from) (?:kfp|dvc)\b", path.read_text(), flags=re.MULTILINE), path
