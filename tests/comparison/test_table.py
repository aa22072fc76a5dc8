"""A grid of two methods, two seeds and two test images, whose every number is worked by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwbass.comparison.budget import Budget, Cost, MethodCost
from cwbass.comparison.exports import latex, runs_csv
from cwbass.comparison.page import draw_page
from cwbass.comparison.plan import Cell, Plan
from cwbass.comparison.results import Result
from cwbass.comparison.sheets import bounds, budget, markdown, spread
from cwbass.comparison.table import tabulate
from cwbass.comparison.variants import method_variants
from cwbass.evaluation.per_image import PerImage
from cwbass.headline import points
from cwbass.params import Params, load_params

NAMES = ("road", "<b>|sky")
RIGHT, HALF = [[2, 0], [0, 2]], [[1, 1], [1, 1]]
# The second image right, half right, or, its two pixels of sky swapped with road, wrong: mIoU 1, 0.6 and 1/3 of the whole.
SCORES = {"right": (RIGHT, 1.0), "half": (HALF, 0.6), "wrong": ([[0, 2], [2, 0]], 1 / 3)}


def result(variant: str, seed: int, kind: str, snapshots: dict[int, float], weights: str = "teacher") -> Result:
    second, miou = SCORES[kind]
    row = {"pixel_accuracy": 0.5, "ece": 0.1}
    metrics: dict[str, Any] = {
        **row,
        "miou": miou,
        "boundary_iou": 0.25,
        "boundary_f1_3px": None,
        "protocol": "whole scale:1",
        "weights": weights,
        "split_hash": f"{seed}" * 64,
        "split": {"counts": {"labeled": 9, "selection": 3, "unlabeled": 5, "test": 2}},
        "checkpoints": {"teacher selected": {"miou": miou}, "teacher last": {"miou": 0.5}, "student last": {"miou": 0.99}},
        "snapshots": [{"step": step, "miou": score, **row} for step, score in snapshots.items()],
        "per_class": {NAMES[0]: {"iou": miou}, NAMES[1]: {"iou": None}},
    }
    images = PerImage(("a", "b"), NAMES, np.array([RIGHT, second]))
    folder = Path("out") / "1-4" / f"seed{seed}" / variant
    return Result(Cell("1-4", seed, variant), folder, metrics, images, "0.1.0+a", 0.123, 61.4, 2048.0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    params = load_params({"train": {"steps": 300, "warmup_steps": 100}}, Params)
    labels = {"1-4": {"labeled": 0.25}}
    return Plan(tmp_path, params, Budget("steps", 300), method_variants(["cw_bass", "fixmatch"], params), [0, 1], labels)


@pytest.fixture
def table(plan: Plan) -> dict[str, Any]:
    plan.cost_file("cw_bass").parent.mkdir()
    plan.cost_file("cw_bass").write_text('{"step": {"seconds": 1, "passes": 8, "passes_no_grad": 4}}')
    assert plan.cost("cw_bass") == MethodCost(Cost(1, 8, 4))
    cells = [
        result("supervised", 0, "half", {100: 0.2, 200: 0.3, 300: 0.5}),
        result("cw_bass", 0, "right", {200: 0.7, 300: 0.5}),
        result("supervised", 1, "wrong", {100: 0.4, 200: 0.35, 300: 0.5}),
        result("cw_bass", 1, "half", {200: 0.65, 300: 0.5}),
    ]
    return tabulate(plan, cells)


def test_the_markdown_is_what_was_worked_by_hand(table: dict[str, Any]) -> None:
    # mIoU: supervised 60 and 33.3, deviation 18.86, so 46.7 +- 12.7062 x 18.86 / 2 ** 0.5; cw_bass 100 and 60.
    # Resamples: both images (half of them), or one of them twice (a quarter each), which has
    #   seed 0: cw_bass 1, 1, 1; supervised 0.6, 1, 1/3. Seed 1: cw_bass 0.6, 1, 1/3; supervised 1/3, 1, 0.
    # so that the mean difference is 1/3, 0, or 1/2: from 0 to 50 points over images. Over seeds 40 and 26.7, deviation 9.43, so
    # 33.3 +- 12.7062 x 9.43 / 2 ** 0.5.
    assert (
        markdown(table)
        == """\
300 steps for every run, warm-up included. Scores are those of 2 test images, whole scale:1, in per cent; differences are in \
points. Intervals are 95 %, and of two kinds. What stands after ± is Student's t over seeds: what other seeds might have given. \
What stands in brackets is a paired bootstrap over the test images (2,000 resamples): what other images might have given these \
very networks; of other seeds it knows nothing. Take a difference for real where both intervals lie on one side of 0. The oracle \
is the best of the states that were kept, on the test images: an upper bound by which nobody may choose.

## Labels 1-4: 12 images

Splits by seed: 0: 000000000000, 1: 111111111111.

### mIoU

| method | weights | seed 0 | seed 1 | deviation | mean ± over seeds |
| --- | --- | --- | --- | --- | --- |
| supervised | averaged | 60.0 | 33.3 | 18.9 | 46.7 ± 169.4 |
| cw\\_bass | averaged | 100.0 | 60.0 | 28.3 | 80.0 ± 254.1 |

### Difference from cw_bass

| method | seed 0 | seed 1 | mean ± over seeds | on other test images |
| --- | --- | --- | --- | --- |
| supervised | -40.0 | -26.7 | -33.3 ± 84.7 | (-50.0 to 0.0) |

### Difference from supervised

| method | seed 0 | seed 1 | mean ± over seeds | on other test images |
| --- | --- | --- | --- | --- |
| cw\\_bass | +40.0 | +26.7 | +33.3 ± 84.7 | (0.0 to +50.0) |

### mIoU of other checkpoints

| method | last | selected | oracle | student last |
| --- | --- | --- | --- | --- |
| supervised | 50.0 ± 0.0 | 46.7 ± 169.4 | 55.0 ± 63.5 | 99.0 ± 0.0 |
| cw\\_bass | 50.0 ± 0.0 | 80.0 ± 254.1 | 82.5 ± 222.4 | 99.0 ± 0.0 |

### Other scores

| method | boundary IoU | boundary F1 3 px | pixel accuracy | ECE |
| --- | --- | --- | --- | --- |
| supervised | 25.0 ± 0.0 | - | 50.0 ± 0.0 | 10.0 ± 0.0 |
| cw\\_bass | 25.0 ± 0.0 | - | 50.0 ± 0.0 | 10.0 ± 0.0 |

### IoU of each class

| method | road | \\<b\\>\\|sky |
| --- | --- | --- |
| supervised | 46.7 | - |
| cw\\_bass | 80.0 | - |

### IoU of each class, difference from cw_bass

Mean over the seeds of both, and its interval on other test images, of those resamples that show the class.

| method | road | \\<b\\>\\|sky |
| --- | --- | --- |
| supervised | -33.3 (-50.0 to 0.0) | - |

### Cost

| method | steps | of them warm-up | ms a step | training s | peak MB |
| --- | --- | --- | --- | --- | --- |
| supervised | 300 | 100 | 123 | 61 | 2,048 |
| cw\\_bass | 300 | 100 | 123 | 61 | 2,048 |

### Images through an encoder

With a gradient + without: counted at a real step of each kind, and multiplied.

| method | a step | training |
| --- | --- | --- |
| supervised | - | - |
| cw\\_bass | 8 + 4 | 1,600 + 800 |

Not done: 1-4/seed0/fixmatch, 1-4/seed1/fixmatch.

Fewer than three seeds say little.
"""
    )


@pytest.mark.parametrize(
    ("kind", "amount", "said"),
    [
        ("steps", 1500, "1,500 steps"),
        ("minutes", 2.5, "2.5 minutes"),
        ("minutes", 20.0, "20 minutes"),
        ("passes", 48e6, "48,000,000 images through the encoder"),
        ("passes", 1234567.0, "1,234,567 images through the encoder"),
    ],
)
def test_a_budget_is_written_out(kind: str, amount: float, said: str) -> None:
    assert budget({"budget": {"kind": kind, "amount": amount}}) == said


def test_a_difference_that_rounds_to_nothing_has_no_sign() -> None:
    assert bounds({"value": -0.0001, "low": -0.0004, "high": 0.0006}) == "(0.0 to +0.1)"
    assert spread({"value": -0.0001, "low": -0.0021, "high": 0.0019}, points) == "0.0 ± 0.2"


def test_one_test_image_gives_no_interval_over_test_images(plan: Plan) -> None:
    cells = []
    for each in (
        result(name, seed, kind, {}) for name, kind in (("cw_bass", "right"), ("supervised", "half")) for seed in (0, 1)
    ):
        cells.append(replace(each, images=PerImage(("b",), NAMES, each.images.matrices[1:])))
    found = tabulate(plan, cells)
    row = found["labels"]["1-4"]["rows"]["supervised"]
    assert row["against_reference"]["value"] == pytest.approx(-0.4)
    assert (row["against_reference"]["low"], row["against_reference"]["high"]) == (None, None)
    assert "| supervised | -40.0 | -40.0 | -40.0 ± 0.0 | - |" in markdown(found)
    assert "| supervised | -40.0 | - |" in markdown(found)  # of each class
    assert ", over test images" not in draw_page(found)  # the text of a chart


def test_a_curve_begins_with_the_warm_up_that_is_shared(table: dict[str, Any]) -> None:
    rows = table["labels"]["1-4"]["rows"]
    assert rows["supervised"]["curve"] == [(100, pytest.approx(0.3)), (200, pytest.approx(0.325)), (300, 0.5)]
    assert rows["cw_bass"]["curve"] == [(100, pytest.approx(0.3)), (200, pytest.approx(0.675)), (300, 0.5)]


def test_a_curve_has_the_steps_of_every_seed(plan: Plan) -> None:
    cells = [result("cw_bass", 0, "right", {200: 0.7, 300: 0.5}), result("cw_bass", 1, "right", {250: 0.1, 300: 0.6})]
    warm = result("supervised", 0, "half", {100: 0.2, 300: 0.5})
    assert tabulate(plan, [warm, *cells])["labels"]["1-4"]["rows"]["cw_bass"]["curve"] == [(300, pytest.approx(0.55))]


def test_a_curve_of_another_length_begins_with_its_own_steps(plan: Plan) -> None:
    for name, passes in (("supervised", 2), ("cw_bass", 5)):  # 100 x 2 + 200 x 5 is 1,200; and supervised has 600 steps
        plan.cost_file(name).parent.mkdir(exist_ok=True)
        plan.cost_file(name).write_text(json.dumps(MethodCost(Cost(None, passes, 0)).to_dict()))
    cells = [result("supervised", 0, "half", {100: 0.2, 600: 0.5}), result("cw_bass", 0, "right", {200: 0.7, 300: 0.5})]
    rows = tabulate(replace(plan, budget=Budget("passes", 1200)), cells)["labels"]["1-4"]["rows"]
    assert [(row["steps"], row["warmup_steps"]) for row in rows.values()] == [(600, 200), (300, 100)]
    assert rows["cw_bass"]["curve"] == [(200, 0.7), (300, 0.5)]


def test_gains_are_of_the_seeds_that_both_have(plan: Plan) -> None:
    cells = [
        *(result("supervised", seed, kind, {}) for seed, kind in ((0, "half"), (1, "wrong"))),
        *(result("cw_bass", seed, kind, {}) for seed, kind in ((1, "right"), (2, "right"))),
    ]
    found = tabulate(plan, cells)
    row = found["labels"]["1-4"]["rows"]["cw_bass"]
    assert row["gain"] == {1: pytest.approx(2 / 3)}
    assert row["against_supervised"]["each"] == row["gain"]
    text = markdown(json.loads(json.dumps(found)))
    assert "| cw\\_bass | - | +66.7 | - | +66.7 | (0.0 to +100.0) |" in text
    assert "\nRows have different seeds; a difference is taken over those that both have.\n" in text


def test_seconds_are_means_over_seeds_and_memory_is_the_most(plan: Plan) -> None:
    cells = [
        replace(result("cw_bass", seed, "right", {}), step_seconds=step, train_seconds=train, peak_mb=peak)
        for seed, (step, train, peak) in enumerate([(0.1, 60.0, 100.0), (0.2, 70.0, 300.0), (0.6, 110.0, None)])
    ]
    assert "| cw\\_bass | 300 | 100 | 300 | 80 | 300 |" in markdown(tabulate(plan, [result("supervised", 0, "half", {}), *cells]))


def test_a_curve_joins_no_two_kinds_of_network(plan: Plan) -> None:
    warm = result("supervised", 0, "half", {100: 0.2, 300: 0.5})
    raw = result("fixmatch", 0, "right", {200: 0.7, 300: 0.5}, weights="student")
    table = tabulate(plan, [warm, raw])
    row = table["labels"]["1-4"]["rows"]["fixmatch"]
    assert (row["weights"], row["curve"]) == ("student", [(200, 0.7), (300, 0.5)])
    text = markdown(table)
    assert "| fixmatch | raw | 100.0 | - | 100.0 |" in text
    assert "Some methods are scored by averaged weights, others by raw ones" in text


def test_where_no_states_were_kept_nobody_knows_the_best(plan: Plan) -> None:
    table = tabulate(plan, [result("supervised", 0, "half", {300: 0.5}), result("cw_bass", 0, "right", {})])
    text = markdown(table)
    assert "| supervised | 50.0 | 60.0 | 60.0 | 99.0 |" in text
    assert "| cw\\_bass | 50.0 | 100.0 | - | 99.0 |" in text
    assert "No states were kept of cw\\_bass: no oracle, and no curve. --set train.snapshots=N with another --out" in text
    assert "second stage" not in text


def test_three_methods_are_compared_pair_by_pair(plan: Plan) -> None:
    kinds = {"supervised": "half", "cw_bass": "right", "fixmatch": "wrong"}
    text = markdown(tabulate(plan, [result(name, 0, kind, {}) for name, kind in kinds.items()]))
    # On resamples with both images, the first twice, or the second: right 1, 1, 1; half 0.6, 1, 1/3; wrong 1/3, 1, 0.
    assert (
        """
| method less | supervised | cw\\_bass | fixmatch |
| --- | --- | --- | --- |
| supervised | - | -40.0 (-66.7 to 0.0) | +26.7 (0.0 to +33.3) |
| cw\\_bass | +40.0 (0.0 to +66.7) | - | +66.7 (0.0 to +100.0) |
| fixmatch | -26.7 (-33.3 to 0.0) | -66.7 (-100.0 to 0.0) | - |
"""
        in text
    )


def test_a_second_stage_shows_all_that_it_takes(tmp_path: Path) -> None:
    params = load_params({"train": {"steps": 300, "warmup_steps": 100}}, Params)
    plan = Plan(
        tmp_path, params, Budget("steps", 1500), method_variants(["st_plus_plus"], params), [0], {"1-4": {"labeled": 0.25}}
    )
    step, retraining, labelling = Cost(1, 4, 0, 800), Cost(1, 8, 0, 1200.6), Cost(60, 0, 2400)
    for name, cost in (("supervised", MethodCost(Cost(1, 4, 0, 700))), ("st_plus_plus", MethodCost(step, retraining, labelling))):
        plan.cost_file(name).parent.mkdir(exist_ok=True)
        plan.cost_file(name).write_text(json.dumps(cost.to_dict()))
    results = [result("supervised", 0, "half", {}), result("st_plus_plus", 0, "right", {})]
    assert [row["steps"] for row in csv.DictReader(io.StringIO(runs_csv(plan, results)))] == ["1500", "1500"]
    text = markdown(tabulate(plan, results))
    assert "No states are kept of a method with a second stage: no oracle, and no curve, of st\\_plus\\_plus." in text
    # 1,500 steps pay for a schedule of 500, a third of it warm-up, and for two retrainings of as many.
    assert (
        """
| method | steps | of them warm-up | of them retraining | ms a step | training s | peak MB | peak MB of the GPU |
| --- | --- | --- | --- | --- | --- | --- | --- |
| supervised | 1,500 | 500 | - | 123 | 61 | 2,048 | 700 |
| st\\_plus\\_plus | 1,500 | 167 | 1,000 | 123 | 61 | 2,048 | 1,201 |
"""
        in text
    )
    assert (
        """
| method | a step | warm-up | training | labelling | retraining | all |
| --- | --- | --- | --- | --- | --- | --- |
| supervised | 4 + 0 | 2,000 + 0 | 4,000 + 0 | - | - | 6,000 + 0 |
| st\\_plus\\_plus | 4 + 0 | 668 + 0 | 1,332 + 0 | 0 + 2,400 | 8,000 + 0 | 10,000 + 2,400 |
"""
        in text
    )


def test_where_the_reference_is_missing_nothing_is_compared_with_it(plan: Plan) -> None:
    text = markdown(tabulate(plan, [result("supervised", 0, "half", {}), result("fixmatch", 0, "right", {})]))
    assert "ifference from cw_bass" not in text
    assert "| fixmatch | +40.0 | +40.0 | (0.0 to +66.7) |" in text


@pytest.fixture
def unequal(plan: Plan) -> list[Result]:
    """Two seeds of one set of labels, and one of another, of which a method is not done."""
    more = [replace(cell, cell=replace(cell.cell, labels="a_b")) for cell in (result("supervised", 1, "right", {}),)]
    return [*(result(name, seed, "half", {}) for name in ("supervised", "cw_bass") for seed in (0, 1)), *more]


def test_the_tables_of_a_paper_have_the_deviation_over_seeds(plan: Plan, unequal: list[Result]) -> None:
    unequal[1] = result("supervised", 1, "wrong", {})
    found = latex(json.loads(json.dumps(tabulate(plan, unequal))))
    assert (
        found
        == r"""% cwbass compare: 300 steps for every run, warm-up included; 2 test images, whole scale:1; code
% 0.1.0+a. In per cent; +- is the standard deviation over seeds, and no interval.
% labels 1-4: 12 images; seeds 0, 1.
% labels a_b: 12 images; seeds 1.

\begin{tabular}{lrr}
\toprule
mIoU & 1-4 (12) & a\_b (12) \\
\midrule
supervised & 46.7 $\pm$ 18.9 & 100.0 \\
cw\_bass & 60.0 $\pm$ 0.0 & -- \\
\bottomrule
\end{tabular}

\begin{tabular}{lrrrrr}
\toprule
1-4 (12) & mIoU & boundary IoU & boundary F1 3 px & pixel accuracy & ECE \\
\midrule
supervised & 46.7 $\pm$ 18.9 & 25.0 $\pm$ 0.0 & -- & 50.0 $\pm$ 0.0 & 10.0 $\pm$ 0.0 \\
cw\_bass & 60.0 $\pm$ 0.0 & 25.0 $\pm$ 0.0 & -- & 50.0 $\pm$ 0.0 & 10.0 $\pm$ 0.0 \\
\bottomrule
\end{tabular}

\begin{tabular}{lrrrrr}
\toprule
a\_b (12) & mIoU & boundary IoU & boundary F1 3 px & pixel accuracy & ECE \\
\midrule
supervised & 100.0 & 25.0 & -- & 50.0 & 10.0 \\
\bottomrule
\end{tabular}
"""
    )


def test_methods_of_other_seeds_say_so_in_the_tables_of_a_paper(plan: Plan, unequal: list[Result]) -> None:
    text = latex(tabulate(plan, unequal[:3]))
    assert "% labels 1-4: 12 images; supervised: seeds 0, 1; cw_bass: seeds 0.\n" in text


def test_a_score_that_older_cells_lack_is_a_dash(plan: Plan, unequal: list[Result]) -> None:
    newer, older = unequal[0], unequal[2]  # supervised and cw_bass
    older = replace(older, metrics={key: value for key, value in older.metrics.items() if key != "ece"})
    assert "| cw\\_bass | 25.0 | - | 50.0 | - |" in markdown(tabulate(plan, [newer, older]))
    # nor is a mean of the seeds that have it set beside means of all
    assert "| cw\\_bass | 25.0 ± 0.0 | - | 50.0 ± 0.0 | - |" in markdown(tabulate(plan, [newer, older, unequal[3]]))
    assert [row["ece"] for row in csv.DictReader(io.StringIO(runs_csv(plan, [older, newer])))] == ["", "0.1"]


def test_every_run_is_a_row_of_csv(plan: Plan, unequal: list[Result]) -> None:
    rows = list(csv.DictReader(io.StringIO(runs_csv(plan, unequal))))
    assert [(row["labels"], row["method"], row["seed"]) for row in rows] == [
        *(("1-4", name, seed) for name in ("supervised", "cw_bass") for seed in ("0", "1")),
        ("a_b", "supervised", "1"),
    ]
    assert rows[4] == {
        **{"labels": "a_b", "labeled_images": "12", "seed": "1", "method": "supervised", "weights": "teacher", "steps": "300"},
        **{
            "pixel_accuracy": "0.5",
            "ece": "0.1",
            "miou": "1.0",
            "boundary_iou": "0.25",
            "boundary_f1_3px": "",
            "miou_last": "0.5",
        },
        **{
            "iou_road": "1.0",
            "iou_<b>|sky": "",
            "guard_acted": "0",
            "train_seconds": "61.4",
            "split_hash": "1" * 64,
            "code": "0.1.0+a",
        },
    }


def test_a_cell_that_the_guard_changed_is_named(plan: Plan, unequal: list[Result]) -> None:
    unequal[3] = replace(unequal[3], guarded=[120, 210])
    text = markdown(json.loads(json.dumps(tabulate(plan, unequal))))
    assert text.count("collapse guard") == 1
    assert (
        "\nLabels 1-4: the collapse guard acted on cw\\_bass, seed 1, at step 120, 210; the report of its cell says why.\n"
        in text
    )
    assert [row["guard_acted"] for row in csv.DictReader(io.StringIO(runs_csv(plan, unequal)))] == ["0", "0", "0", "2", "0"]


def test_means_over_different_classes_are_told_with_the_seed(plan: Plan, unequal: list[Result]) -> None:
    assert "different classes" not in markdown(tabulate(plan, unequal))
    named = {**unequal[2].metrics, "per_class": {NAMES[0]: {"iou": 0.6}, NAMES[1]: {"iou": 0.0}}}
    unequal[2] = replace(unequal[2], metrics=named)
    text = markdown(json.loads(json.dumps(tabulate(plan, unequal))))
    assert "\nLabels 1-4: the means of seed 0 are over different classes." in text
    assert "does not: supervised leaves out \\<b\\>\\|sky; cw\\_bass leaves out none.\n" in text
    assert "seed 1 are over" not in text
    assert "\nLabels 1-4: the means of cw\\_bass are over different classes." in text
    assert "does not: seed 0 leaves out none; seed 1 leaves out \\<b\\>\\|sky.\n" in text
    assert "the means of supervised" not in text


def test_the_page_shows_each_number_and_takes_no_name_for_markup(table: dict[str, Any]) -> None:
    page = draw_page(table)
    for cell in ("46.7 ± 169.4", "+33.3 ± 84.7", "(0.0 to +50.0)", "82.5 ± 222.4"):
        assert f"<td>{cell}</td>" in page
    assert '<th scope="col">&lt;b&gt;|sky</th>' in page
    assert "<b>" not in page
    assert "cw_bass: 33.3, over seeds -51.4 to 118.0, over test images 0.0 to 50.0<" in page
    assert page.count("95 % over seeds") == 3 and page.count("95 % over test images") == 2  # the latter of differences alone
    assert page.count('<svg class="chart"') == 4  # mIoU, against cw_bass, against supervised, steps: one set of labels
    for forbidden in ("<script", "http://", "https://", "url("):
        assert forbidden not in page


@pytest.mark.parametrize(("labeled", "drawn"), [(12, False), (24, True)])
def test_scores_are_drawn_against_labels_where_their_numbers_differ(table: dict[str, Any], labeled: int, drawn: bool) -> None:
    table["labels"]["other"] = {**table["labels"]["1-4"], "labeled": labeled}
    page = draw_page(table)
    assert ("<h3>mIoU against labels</h3>" in page) is drawn
    assert [f"supervised, {images}: 46.7%" in page for images in (12, 24)] == [drawn, drawn]
