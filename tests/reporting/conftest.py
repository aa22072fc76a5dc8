"""A made-up run with plausible numbers: three curves that rise, six images of coloured shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cwbass.data.base import DatasetSpec
from cwbass.evaluation.probes import ProbeBook, draw_frame, draw_probe
from cwbass.evaluation.sweep import Sweep
from cwbass.reporting.gallery import GalleryItem
from cwbass.types import Reliability

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "cyclist")
PALETTE = ((128, 160, 200), (128, 64, 64), (128, 64, 128), (244, 35, 232), (107, 142, 35), (0, 0, 142), (220, 20, 60))
WARMUP, STEPS, EPOCH = 400, 4000, 200


@pytest.fixture(scope="session")
def spec() -> DatasetSpec:
    return DatasetSpec(CLASSES, PALETTE, ids={index: index for index in range(len(CLASSES))})


@pytest.fixture(scope="session")
def run(spec: DatasetSpec) -> dict[str, Any]:
    """Arguments of write_report, all parts filled."""
    rng = np.random.default_rng(0)
    return {
        "name": "CW-BASS trained on camvid, seed 0",
        "metrics": _metrics(rng),
        "history": _history(rng),
        "gallery": [_item(rng, f"0016E5_{index:05d}") for index in range(6)],
        "spec": spec,
        "params_text": "seed: 0\ndata:\n  layout: pascal_voc\n  root: data/camvid\nmethod:\n  name: cw_bass\n  recipe: cwbass\n",
    }


@pytest.fixture(scope="session")
def flight(run: dict[str, Any], spec: DatasetSpec) -> dict[str, Any]:
    """Arguments of write_flight, all parts filled: 18 epochs, two images, seven classes."""
    rng = np.random.default_rng(0)
    classes = spec.num_classes
    history = []
    for row in run["history"]:
        more = {
            "seen_per_class": [1_234_567, *[1000] * (classes - 2), 0],
            "kept_per_class": [1_000_000, *[250] * (classes - 2), 0],
            "confidence_histogram": [[0] * 10 + list(range(10)) for _ in range(classes)],
            "labeled_share": [1 / classes] * classes,
            "pseudo_label_share": [0.9, *[0.1 / (classes - 1)] * (classes - 1)],
            "interior_precision": 0.95, "interior_precision_per_class": [0.9] * classes,
            "boundary_precision": 0.6, "boundary_precision_per_class": [0.5] * (classes - 1) + [None],
            "selection_iou_per_class": [0.7] * classes, "student_gap_per_class": [-0.021] * classes,
            "disagreement": 0.04, "disagreement_per_class": [0.04] * classes,
        }  # fmt: skip
        history.append({**row, **more} if row["stage"] == "train" else row)
    steps = [row["step"] for row in history if row["stage"] == "train"]
    label = rng.integers(0, classes, (12, 16), dtype=np.uint8)
    image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    frame = draw_frame(label, rng.random((12, 16), dtype=np.float32), label > 2, label == 1, label, spec)
    book = ProbeBook(
        [draw_probe("unlabelled", "u1", image, None, spec), draw_probe("selection", "s1", image, label, spec)],
        {step: [replace(frame, right=None), frame] for step in steps},
    )
    total = torch.full((classes, 100), 10.0, dtype=torch.float64)
    sweep = Sweep(spec.class_names, Reliability(total * 0.95, total), {"network": "teacher", "step": 400, "images": 8})
    return {"name": run["name"], "history": history, "probes": book, "sweep": sweep, "spec": spec}


def _metrics(rng: np.random.Generator) -> dict[str, Any]:
    iou = np.array([0.921, 0.812, 0.938, 0.742, 0.771, 0.702, 0.318])
    lower = np.array([0.918, 0.774, 0.921, 0.683, 0.742, 0.641, 0.342])
    pixels = np.array([16.9, 22.6, 31.1, 7.2, 11.8, 8.1, 2.3]) * 1e6
    per_class = {
        name: {
            "iou": iou[c], "baseline_iou": lower[c], "boundary_iou": iou[c] - 0.16, "baseline_boundary_iou": lower[c] - 0.2,
            "accuracy": min(0.99, iou[c] + 0.07), "pixels": int(pixels[c]),
        }
        for c, name in enumerate(CLASSES)
    }  # fmt: skip
    per_class["cyclist"] |= {"boundary_iou": 0.201, "baseline_boundary_iou": 0.214}
    matrix = rng.dirichlet(np.full(len(CLASSES), 0.25), size=len(CLASSES)) * (1 - iou - 0.05)[:, None] + np.diag(iou + 0.05)
    centers = np.linspace(1 / 30, 1 - 1 / 30, 15)
    return {
        "miou": float(iou.mean()), "baseline_miou": float(lower.mean()), "miou_gain": float((iou - lower).mean()),
        "boundary_iou": 0.583, "baseline_boundary_iou": 0.524, "boundary_f1_1px": 0.412, "boundary_f1_3px": 0.688,
        "boundary_f1_5px": 0.761, "baseline_boundary_f1_3px": 0.631, "ece": 0.043, "baseline_ece": 0.061, "pixel_accuracy": 0.914,
        "baseline_pixel_accuracy": 0.897, "per_class": per_class, "absent_classes": [], "split_hash": "3fa1c09be2d4",
        "protocol": "whole image, scale 1.0, no flip", "seed": 0, "weights": "teacher, selected", "images": 233,
        "checkpoints": {
            "baseline last": {"miou": 0.711, "boundary_iou": 0.519}, "baseline selected": {"miou": 0.717, "boundary_iou": 0.524},
            "student last": {"miou": 0.731, "boundary_iou": 0.571}, "student selected": {"miou": 0.734, "boundary_iou": 0.574},
            "teacher last": {"miou": 0.740, "boundary_iou": 0.581}, "teacher selected": {"miou": 0.7434, "boundary_iou": 0.583},
        },
        "confusion": {"class_names": list(CLASSES), "matrix": (matrix * pixels[:, None]).round().tolist()},
        "calibration": {
            "confidence": centers.tolist(), "accuracy": (centers - 0.12 * np.sin(np.pi * centers)).tolist(),
            "count": (1e6 * np.exp(4 * centers)).round().tolist(),
        },
        "split": {
            "counts": {"labelled": 46, "selection": 8, "unlabelled": 313, "test": 233},
            "notes": [
                "Drawn with seed 0, stratified by the pixels of each class.", "Sequences stay together (group_pattern ^[^_]+).",
            ],
        },
    }  # fmt: skip


def _history(rng: np.random.Generator) -> list[dict[str, Any]]:
    def rise(step: int, top: float) -> float:
        return float(top - 0.42 * np.exp(-step / 900) + rng.normal(0, 0.006))

    rows: list[dict[str, Any]] = []
    for stage, first, last, top in (
        ("warmup", 0, WARMUP, 0.72),
        ("baseline", WARMUP, STEPS, 0.72),
        ("train", WARMUP, STEPS, 0.765),
    ):
        for epoch, step in enumerate(range(first + EPOCH, last + 1, EPOCH)):
            supervised = 1.6 * np.exp(-step / 700) + 0.2 + rng.normal(0, 0.02)
            row = {
                "stage": stage, "epoch": epoch, "step": step, "lr": 1e-3 * (1 - step / STEPS) ** 0.9, "seconds": 31.4,
                "data_wait": 0.06 + abs(rng.normal(0, 0.02)), "loss": supervised, "loss_sup": supervised, "nonfinite": 0,
                "selection_miou": rise(step, top),
            }  # fmt: skip
            if stage == "train":
                grown = 1 - np.exp(-step / 1500)
                unsup = 0.5 * np.exp(-step / 1800) + 0.1
                easy = np.array([0.99, 0.93, 0.98, 0.8, 0.85, 0.82, 0.4])
                precision = np.minimum(0.99, easy * 0.15 + 0.82 + 0.02 * grown)
                row |= {
                    "loss": supervised + unsup, "loss_unsup": unsup, "loss_boundary": 0.4 * unsup,
                    "selection_miou_student": row["selection_miou"] - 0.012, "retention": 0.55 + 0.3 * grown,
                    "mean_confidence": 0.78 + 0.13 * grown, "precision": 0.93 + 0.02 * grown + rng.normal(0, 0.003),
                    "threshold": (0.95 - 0.3 * easy * grown).tolist(),
                    "retention_per_class": (easy * (0.5 + 0.4 * grown)).tolist(),
                    "precision_per_class": [*precision[:-1].tolist(), None if step < 1200 else float(precision[-1])],
                    "unsup_weight": 1.0,
                }  # fmt: skip
            rows.append(row)
    return rows


def _item(rng: np.random.Generator, title: str) -> GalleryItem:
    truth = _street(rng)
    colors = np.array(PALETTE, dtype=np.float64)
    image = colors[truth] * 0.6 + 60 + rng.normal(0, 14, (*truth.shape, 3))
    truth_with_border = truth.copy()
    truth_with_border[:, :6] = 255
    prediction, baseline = (_shaken(rng, truth, size) for size in (5, 11))
    confidence = np.clip(1 - 0.6 * (prediction != baseline) - rng.random(truth.shape) * 0.15, 0, 1).astype(np.float32)
    pseudo_label = np.where(confidence > 0.5, prediction, 255).astype(np.uint8)
    return GalleryItem(
        title, image.clip(0, 255).astype(np.uint8), truth_with_border, prediction, baseline, pseudo_label, confidence
    )


def _street(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bands of sky, building and road, with trees, cars and a cyclist."""
    height, width = 360, 480
    y, x = np.mgrid[:height, :width]
    label = np.zeros((height, width), dtype=np.uint8)
    label[y > 90 + 40 * np.sin(x / 60 + rng.random() * 6)] = 1
    label[y > 220 + 0.1 * x] = 3
    label[y > 240 + 0.05 * x] = 2
    for index, size in ((4, 60), (4, 45), (5, 40), (5, 30), (6, 18)):
        cx, cy = rng.integers(40, width - 40), rng.integers(150, 290)
        label[((x - cx) / 1.3) ** 2 + (y - cy) ** 2 < size**2] = index
    return label


def _shaken(rng: np.random.Generator, label: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Shifted in waves, so that edges are wrong by up to ``size`` pixels."""
    height, width = label.shape
    y, x = np.mgrid[:height, :width]
    phase = rng.random() * 6
    moved_y = (y + size * np.sin(x / 17 + phase)).round().astype(int).clip(0, height - 1)
    moved_x = (x + size * np.cos(y / 23 + phase)).round().astype(int).clip(0, width - 1)
    shaken: NDArray[np.uint8] = label[moved_y, moved_x]
    return shaken
