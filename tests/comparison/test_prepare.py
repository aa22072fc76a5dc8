"""What is asked for is checked before it is written down, and nothing that is refused stands in the way of the next call."""

from __future__ import annotations

from pathlib import Path

from tiny import smoke_params

from cwbass.comparison.variants import method_variants
from cwbass.params import Params
from cwbass.steps.compare import Comparison, prepare


def params(data: Path) -> Params:
    base = smoke_params()
    return base.model_copy(update={"data": base.data.model_copy(update={"root": str(data)})})


def ask(
    data: Path, out: Path, methods: str = "fixmatch", *, seeds: str = "0", labels: str = "4", budget: str = "steps=16"
) -> Comparison:
    base = params(data)
    variants = method_variants(methods.split(","), base)
    return prepare(base, variants, seeds=seeds.split(","), labels=labels.split(","), budget=budget, out_dir=out)


def test_a_method_that_joins_a_budget_of_passes_with_another_seed_is_measured_beside_the_others(
    shapes: Path, tmp_path: Path
) -> None:
    """Costs are looked for where the first call wrote them. Batches are of two labelled and two unlabelled images."""
    ask(shapes, tmp_path, "fixmatch", seeds="0", budget="passes=120")
    found = ask(shapes, tmp_path, "mean_teacher", seeds="1", budget="passes=120")
    # half of the steps are the warm-up's, of 2 images: 60 x 2; 15 x 2 + 15 x 6; 12 x 2 + 12 x (4 + 4)
    steps = {name: found.plan.length(name).steps for name in found.plan.variants}
    costs = {name: found.plan.cost(name) for name in found.plan.variants}
    assert {name: (cost.step.passes, cost.step.passes_no_grad) for name, cost in costs.items() if cost} == {
        "supervised": (2, 0),
        "fixmatch": (6, 0),
        "mean_teacher": (4, 4),
    }
    assert steps == {"supervised": 60, "fixmatch": 30, "mean_teacher": 24}
    assert [cell.id for cell in found.asked.cells()] == ["4/seed1/supervised", "4/seed1/mean_teacher"]
