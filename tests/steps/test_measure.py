"""What a step costs is counted at real steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import sections, smoke_params

from cwbass.methods import METHODS
from cwbass.steps.measure import measure
from cwbass.steps.split import SplitParams, split
from cwbass.steps.train import TrainParams


@pytest.fixture(scope="session")
def manifest(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measure")
    split(sections(smoke_params(), SplitParams), data_root=shapes, out_dir=folder)  # type: ignore[arg-type]
    return folder / "manifest.json"


@pytest.mark.parametrize(
    ("method", "passes", "without"),
    [("supervised", 2, 0), ("cw_bass", 2 + 2, 2), ("unimatch", 2 * (2 + 2), 0), ("cps", 2 * (2 + 2), 2 * 2)],
)
def test_images_through_the_encoder_are_counted_at_a_real_step(
    shapes: Path, manifest: Path, method: str, passes: int, without: int
) -> None:
    """Batches are of two labelled and two unlabelled images."""
    found = measure(training_of(method), manifest=manifest, data_root=shapes)
    assert (found.step.passes, found.step.passes_no_grad) == (passes, without)
    assert found.step.seconds is not None and found.step.seconds > 0
    assert found.retraining is None


def test_a_second_stage_is_measured_with_its_labels(shapes: Path, manifest: Path) -> None:
    found = measure(training_of("st_plus_plus"), manifest=manifest, data_root=shapes)
    unlabeled = len(json.loads(manifest.read_text())["unlabeled"])
    assert found.retraining is not None and found.labelling is not None
    assert (found.retraining.passes, found.retraining.passes_no_grad) == (4, 0)
    # ranked by three networks, and labelled over five scales and their mirror images
    assert found.labelling.passes_no_grad == unlabeled * (3 + 10)


def test_without_time_images_are_counted_all_the_same(shapes: Path, manifest: Path) -> None:
    found = measure(training_of("st_plus_plus"), manifest=manifest, data_root=shapes, timed=False)
    assert found.retraining is not None
    assert (found.step.seconds, found.step.passes, found.step.passes_no_grad) == (None, 2, 0)
    assert (found.retraining.seconds, found.retraining.passes, found.retraining.passes_no_grad) == (None, 4, 0)


def training_of(method: str) -> TrainParams:
    params = smoke_params().model_copy(update={"method": METHODS[method].config_cls(name=method)})
    found = sections(params, TrainParams)
    assert isinstance(found, TrainParams)
    return found
