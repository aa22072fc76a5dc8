"""No way from a file or a string to code: the calls that open one stand nowhere in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
FOLDERS = ("cwbass", "components", "pipeline", "benchmarks", "scripts")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.unsafe_load",
    "yaml.full_load",
    "extractall",
    "extract",
    "subprocess.getoutput",
}
SAFE_LOADERS = {"_UniqueKeyLoader", "SafeLoader", "CSafeLoader"}
# The fuzzer writes hostile pickles; it reads none.
ALLOWED = {("benchmarks/fuzz.py", "import pickle")}


def unsafe(source: str) -> Iterator[str]:
    """What a file does that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            yield from unsafe_call(node)


def unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    last = name.rpartition(".")[2]
    if name in FORBIDDEN or ("." in name and last in ("extractall", "extract")):
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        yield "np.load with allow_pickle"
    if name in ("yaml.load", "yaml.load_all") and given.get("Loader", "").rpartition(".")[2] not in SAFE_LOADERS:
        yield "yaml.load without a safe loader"
    if given.get("shell", "False") != "False":
        yield f"{name} with shell"


def python_files() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((TOP / folder).rglob("*")) if path.is_file()]
    return [path for path in found if path.suffix == ".py" or (not path.suffix and b"python" in path.read_bytes()[:40])]


def test_no_source_file_runs_what_it_reads() -> None:
    files = python_files()
    assert len(files) > 80
    found = {(path.relative_to(TOP).as_posix(), what) for path in files for what in unsafe(path.read_text(encoding="utf-8"))}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tarfile.open(path).extractall(folder)",
        "eval(text)",
    ],
)
def test_each_unsafe_call_is_seen(line: str) -> None:
    assert list(unsafe(line))


@pytest.mark.parametrize(
    "line", ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)", "subprocess.run(['ls'])", "net.eval()"]
)
def test_safe_calls_are_let_pass(line: str) -> None:
    assert not list(unsafe(line))


def test_the_loader_of_parameters_is_a_safe_one() -> None:
    import yaml

    from cwbass.params import _UniqueKeyLoader

    assert issubclass(_UniqueKeyLoader, yaml.SafeLoader)
