"""A comparison in numbers: results -> JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwbass.comparison.pairs import Pairs, class_iou
from cwbass.comparison.plan import Plan
from cwbass.comparison.results import Result
from cwbass.comparison.variants import SUPERVISED
from cwbass.evaluation.statistics import RESAMPLES, draw_images, t_interval

SCHEMA = 1
SCORES = {
    "miou": "mIoU",
    "boundary_iou": "boundary IoU",
    "boundary_f1_3px": "boundary F1 3 px",
    "pixel_accuracy": "pixel accuracy",
    "ece": "ECE",
}


def tabulate(plan: Plan, results: Sequence[Result]) -> dict[str, Any]:
    """All numbers of a comparison; plain JSON values, fractions in [0, 1].

    Args:
        plan: Of the comparison.
        results: Its cells that are done, from ``read_results``.
    """
    first = results[0]
    draws = draw_images(len(first.images.ids))
    return {
        "schema": SCHEMA,
        "budget": {"kind": plan.budget.kind, "amount": plan.budget.amount},
        "reference": plan.reference,
        "protocol": first.metrics["protocol"],
        "test_images": len(first.images.ids),
        "class_names": list(first.images.class_names),
        "resamples": RESAMPLES,
        "code": sorted({result.code for result in results}),
        "missing": _missing(plan, results),
        "costs": {name: cost.to_dict() for name in plan.variants if (cost := plan.cost(name)) is not None},
        "labels": {
            labels: _label_set(plan, [result for result in results if result.cell.labels == labels], draws)
            for labels in dict.fromkeys(result.cell.labels for result in results)
        },
    }


def _label_set(plan: Plan, results: Sequence[Result], draws: NDArray[np.int64]) -> dict[str, Any]:
    """One table: the variants on the same labels."""
    by_variant: dict[str, dict[int, Result]] = {}
    for result in results:
        by_variant.setdefault(result.cell.variant, {})[result.cell.seed] = result
    pairs = Pairs(by_variant, draws)
    matrix = pairs.matrix()
    supervised = by_variant.get(SUPERVISED, {})
    rows = {}
    for name, cells in by_variant.items():
        ordered = list(cells.values())
        common = sorted(cells.keys() & supervised.keys())
        rows[name] = {
            "seeds": list(cells),
            "weights": ordered[0].metrics["weights"],
            "steps": plan.length(name).steps,
            "warmup_steps": plan.length(name).warmup,
            **{key: _interval([result.metrics.get(key) for result in ordered]) for key in SCORES},
            "checkpoints": _checkpoints(ordered),
            "gain": {seed: cells[seed].miou - supervised[seed].miou for seed in common} if name != SUPERVISED else {},
            "against_reference": matrix[name].get(plan.reference),
            "against_supervised": matrix[name].get(SUPERVISED),
            "per_class": {each: _mean(list(class_iou(cells, each).values())) for each in results[0].images.class_names},
            "per_class_against_reference": pairs.classes(name, plan.reference),
            "curve": _curve(name, plan, by_variant),
            "step_seconds": _mean([result.step_seconds for result in ordered]),
            "train_seconds": _mean([result.train_seconds for result in ordered]),
            "stages": stages(plan, name),
            "guarded": {seed: list(result.guarded) for seed, result in cells.items() if result.guarded},
            "undefined": {seed: _undefined(result) for seed, result in cells.items()},
            "peak_mb": max((result.peak_mb for result in ordered if result.peak_mb is not None), default=None),
            "cells": {seed: str(result.folder) for seed, result in cells.items()},
        }
    return {
        "labeled": results[0].labeled,
        "splits": {result.cell.seed: result.metrics["split_hash"] for result in results},
        "rows": rows,
        "pairs": matrix,
    }


def _undefined(result: Result) -> list[str]:
    """Classes that the mean IoU of a cell leaves out: no test image shows them, and its network names them nowhere."""
    return [name for name in result.images.class_names if result.metrics["per_class"][name]["iou"] is None]


def _checkpoints(results: Sequence[Result]) -> dict[str, Any]:
    """mIoU of the network that counts, last, selected and at its best; and of the others as ``metrics.json`` names them.

    Without snapshots nobody knows the best.
    """
    weights = results[0].metrics["weights"]
    found = {kind: [result.of_checkpoint(kind) for result in results] for kind in ("last", "selected")}
    found["oracle"] = [result.oracle if result.curve else None for result in results]
    for name in sorted(results[0].metrics["checkpoints"]):
        if not name.startswith(f"{weights} "):
            found[name] = [result.metrics["checkpoints"].get(name, {}).get("miou") for result in results]
    return {name: _interval(values) for name, values in found.items()}


def _interval(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean over seeds with its bounds, their standard deviation, and every value; None where one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {**asdict(t_interval(known)), "deviation": deviation, "each": known}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _curve(name: str, plan: Plan, by_variant: Mapping[str, Mapping[int, Result]]) -> list[tuple[int, float]]:
    """Step and mIoU on the test images, mean over seeds.

    What shares its warm-up with supervised begins with that one's, where the same kind of network is scored in both.
    """
    curves = []
    for seed, result in by_variant[name].items():
        curve, warm = dict(result.curve), by_variant.get(SUPERVISED, {}).get(seed)
        shared = plan.length(name) == plan.length(SUPERVISED)
        if curve and warm and shared and warm.metrics["weights"] == result.metrics["weights"]:
            curve |= {step: miou for step, miou in warm.curve.items() if step <= plan.length(name).warmup}
        curves.append(curve)
    common = set.intersection(*(set(curve) for curve in curves))
    return [(step, statistics.mean(curve[step] for curve in curves)) for step in sorted(common)]


def stages(plan: Plan, name: str) -> list[dict[str, Any]]:
    """What a run goes through: optimiser steps, and images through an encoder where both were measured, with a gradient and without."""
    length, retraining = plan.length(name), plan.variants[name].retraining
    cost, supervised = plan.cost(name), plan.cost(SUPERVISED)
    parts = [
        ("warm-up", length.warmup, length.warmup, supervised and supervised.step),
        ("training", length.steps - length.warmup, length.steps - length.warmup, cost and cost.step),
    ]
    if retraining is not None:
        steps = 2 * (retraining.steps or length.steps)
        parts += [("labelling", 0, 1, cost and cost.labelling), ("retraining", steps, steps, cost and cost.retraining)]
    return [
        {
            "stage": stage,
            "steps": steps,
            "passes": times * each.passes if each else None,
            "passes_no_grad": times * each.passes_no_grad if each else None,
        }
        for stage, steps, times, each in parts
    ]


def _missing(plan: Plan, results: Sequence[Result]) -> list[str]:
    done = {result.cell.id for result in results}
    return [cell.id for cell in plan.cells() if cell.id not in done]
