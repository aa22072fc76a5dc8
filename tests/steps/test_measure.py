"""What a step costs is counted at real steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import TinyRun, make_split, sections, smoke_params

from cwbass.data.synthetic import write_shapes
from cwbass.methods import METHODS
from cwbass.methods.st_plus_plus import OfflineStPlusPlus
from cwbass.steps.measure import measure
from cwbass.steps.train import TrainParams
from cwbass.types import PLACE, LabeledBatch, Progress, StepOutput, UnlabeledBatch


@pytest.fixture(scope="session")
def manifest(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(TinyRun(tmp_path_factory.mktemp("measure"), shapes, smoke_params()))


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


def test_a_second_stage_is_measured_with_tags_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shapes(tmp_path, seed=0, labeled=6, unlabeled=6, test=2, size=(64, 64))
    names = (tmp_path / "classes.txt").read_text().split()
    ids = sorted(path.stem for path in (tmp_path / "unlabeled").iterdir())
    (tmp_path / "tags.txt").write_text("".join(f"{name}, {names[turn]}\n" for turn, name in enumerate(ids)))
    seen: list[UnlabeledBatch] = []

    training_step = OfflineStPlusPlus.training_step

    def noting(
        method: OfflineStPlusPlus, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress
    ) -> StepOutput:
        assert unlabeled is not None
        seen.append(unlabeled)
        return training_step(method, labeled, unlabeled, progress)

    monkeypatch.setattr(OfflineStPlusPlus, "wants_places", True)
    monkeypatch.setattr(OfflineStPlusPlus, "training_step", noting)
    manifest = make_split(TinyRun(tmp_path, tmp_path, smoke_params()))
    measure(training_of("st_plus_plus"), manifest=manifest, data_root=tmp_path, timed=False)
    (batch,) = seen
    assert batch.place is not None and batch.tags is not None
    for image, tags in zip(batch.place[:, PLACE.index("index")].tolist(), batch.tags.tolist(), strict=True):
        assert tags == [int(index == image) for index in range(len(names))]  # the n-th image is said to show class n


def training_of(method: str) -> TrainParams:
    params = smoke_params().model_copy(update={"method": METHODS[method].config_cls(name=method)})
    return sections(params, TrainParams)
