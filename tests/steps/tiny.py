"""One tiny run of the first four stages, shared by the tests of steps and CLI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cwbass.comparison.plan import Plan
from cwbass.data.synthetic import write_shapes
from cwbass.params import P, Params, load_params, parse_yaml
from cwbass.steps.evaluate import EvaluateParams, evaluate
from cwbass.steps.split import SplitParams, split
from cwbass.steps.train import TrainParams, train
from cwbass.steps.training import TrainReport, WarmupParams
from cwbass.steps.warmup import warmup

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@dataclass(frozen=True)
class TinyRun:
    """Where the files of the run are, and the parameters that made them."""

    root: Path
    data: Path
    params: Params

    @property
    def manifest(self) -> Path:
        return self.root / "split" / "manifest.json"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def warmup(self) -> Path:
        return self.root / "warmup"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def inputs(self) -> dict[str, Path]:
        """What a training starts from."""
        return {"manifest": self.manifest, "warmup": self.warmup / "warmup.pt", "data_root": self.data}


def sections(params: Params, kind: type[P]) -> P:
    """The smaller parameters of one step."""
    dumped = params.model_dump(mode="json")
    return load_params({name: dumped[name] for name in kind.model_fields}, kind)


def changed(params: P, section: str = "train", **values: Any) -> P:
    """Some keys of a section replaced."""
    return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})


def make_split(run: TinyRun) -> Path:
    """Split below the run's root; returns the manifest."""
    split(sections(run.params, SplitParams), data_root=run.data, out_dir=run.manifest.parent)
    return run.manifest


def warm(run: TinyRun, out: Path | None = None, **settings: Any) -> TrainReport:
    """Warm up on the run's split, into its own folder or another."""
    params = sections(run.params, WarmupParams)
    return warmup(params, manifest=run.manifest, data_root=run.data, out_dir=out or run.warmup, **settings)


def training(run: TinyRun, out: Path | None = None, params: Params | None = None, **settings: Any) -> TrainReport:
    """Train from the run's warm-up, with its parameters or others; ``settings`` win over its files."""
    return train(sections(params or run.params, TrainParams), **{**run.inputs, "out_dir": out or run.train, **settings})


def run_training(root: Path, data: Path, params: Params) -> TinyRun:
    """Split, warm up, train and evaluate below ``root``."""
    run = TinyRun(root, data, params)
    make_split(run)
    warm(run)
    training(run)
    evaluate(
        sections(params, EvaluateParams),
        checkpoint=run.train,
        baseline=run.warmup,
        manifest=run.manifest,
        data_root=data,
        out_dir=run.reports,
    )
    return run


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def smoke_params(**train: object) -> Params:
    """configs/smoke.yaml without its cache on disk, with some of the train section changed."""
    values = parse_yaml(SMOKE.read_text(), str(SMOKE))
    values["train"] |= {"cache": None, **train}
    values["method"]["cwbass"] = {"ema": {"decay": 0.9}}  # `auto` is 0 in six steps: the teacher would be the student
    return load_params(values, Params)


def write_costs(out: Path) -> None:
    """What ``cwbass measure`` would say of each variant of a comparison that is planned there: it takes seconds, and is another test's."""
    plan = Plan.read(out)
    for name in plan.variants:
        plan.cost_file(name).parent.mkdir(exist_ok=True)
        plan.cost_file(name).write_text('{"step": {"seconds": 1, "passes": 2, "passes_no_grad": 0}}')


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "data"
    write_shapes(root, seed=0, labeled=12, unlabeled=16, test=6, size=(64, 64))
    return root


@pytest.fixture(scope="session")
def tiny_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return run_training(tmp_path_factory.mktemp("run"), shapes, changed(smoke_params(), "data", root=str(shapes)))
