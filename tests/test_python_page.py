"""What docs/python.md says runs as it stands there, and gives what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_checkpoint
from torch.nn import functional as F

from cwbass.errors import CheckpointError
from cwbass.training.checkpoint import load_checkpoint, save_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
CLASSES = ("sky", "road", "car")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the names of the page mean at its end."""
    work = tmp_path_factory.mktemp("page")
    (work / "artifacts/train").mkdir(parents=True)
    save_checkpoint(tiny_checkpoint(class_names=CLASSES), work / "artifacts/train/best.pt")
    (work / "artifacts/train/history.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    (work / "reports").mkdir()
    (work / "reports/metrics.json").write_text(json.dumps({"miou": 0.5}))
    code = [line.removeprefix("    ") if line.startswith("    ") else "" for line in PAGE.read_text().splitlines()]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        exec(compile("\n".join(code), str(PAGE), "exec"), names)
    return names


def test_the_network_and_its_prediction_are_what_the_page_says(said: dict[str, Any]) -> None:
    assert said["names"] == CLASSES
    assert said["logits"].shape == (2, 3, 96, 96)
    assert not said["network"].training
    torch.testing.assert_close(said["probs"].sum(0), torch.ones(96, 96))
    assert said["result"].images == 1


def test_the_loss_is_that_of_the_formulas(said: dict[str, Any]) -> None:
    student, teacher = said["student_logits"].detach(), said["teacher_logits"]
    top, label = teacher.softmax(1).max(1)
    kept = top > said["tau"]
    cost = F.cross_entropy(student, label, reduction="none")
    weighted = (0.9 * top * cost)[kept].sum() / kept.sum()
    planes = F.one_hot(label, 5).permute(0, 3, 1, 2).float().flatten(0, 1)[:, None]
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    answer = F.conv2d(planes, torch.stack([sobel, sobel.T])[:, None], padding=1).abs().sum(1)
    on_edge = (answer.view(2, 5, 64, 64).sum(1) > 0) & kept
    torch.testing.assert_close(said["loss"].detach(), weighted + 0.5 * cost[on_edge].mean())


def test_a_step_teaches_the_student(said: dict[str, Any]) -> None:
    decoder = said["method"].student.net.segmentation_head.parameters()
    assert all(p.grad is not None and bool(p.grad.any()) for p in decoder)
    assert said["output"].sums["kept"].shape == (3,)
    assert [row["epoch"] for row in said["history"]] == [0, 1]


def test_a_checkpoint_is_found_by_text_and_shown_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(tiny_checkpoint(), path)
    assert load_checkpoint(str(path)).step == load_checkpoint(path).step == 40
    shown = repr(load_checkpoint(path))
    assert "method='cw_bass'" in shown and "networks=('student', 'teacher')" in shown
    assert "tensor" not in shown and len(shown) < 1000
    with pytest.raises(CheckpointError, match=r"nothing\.pt: no such checkpoint"):
        load_checkpoint("nothing.pt")
