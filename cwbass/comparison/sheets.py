"""A comparison for people: its numbers as text, in per cent and points, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwbass.comparison.table import SCORES
from cwbass.headline import DASH, percent, points
from cwbass.markdown import markdown_table, markdown_text

WEIGHTS = {"teacher": "averaged", "student": "raw"}  # of the network that is scored
Numbers = Mapping[str, Any]  # of ``tabulate``, or a part of it


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""  # how to read it


def summary(table: Numbers) -> str:
    """What the numbers are, in a few sentences."""
    return (
        f"{budget(table)} for every run, warm-up included. Scores are those of {table['test_images']} test images, {table['protocol']}, "
        "in per cent; differences are in points. Intervals are 95 %, and of two kinds. What stands after ± is Student's t over seeds: what "
        "other seeds might have given. What stands in brackets is a paired bootstrap over the test images "
        f"({table['resamples']:,} resamples): what other images might have given these very networks; of other seeds it knows nothing. "
        "Take a difference for real where both intervals lie on one side of 0. The oracle is the best of the states that were kept, on the "
        "test images: an upper bound by which nobody may choose."
    )


def budget(table: Numbers) -> str:
    """``1,500 steps``; ``2.5 minutes``; ``48,000,000 images through the encoder``."""
    unit = {"passes": "images through the encoder"}.get(table["budget"]["kind"], table["budget"]["kind"])
    amount = float(table["budget"]["amount"])
    return f"{int(amount) if amount.is_integer() else amount:,} {unit}"


def notes(table: Numbers) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    if table["missing"]:
        found.append(f"Not done: {', '.join(table['missing'])}.")
    if len(table["code"]) > 1:
        found.append(f"The cells were trained by different code: {', '.join(table['code'])}.")
    every: list[Mapping[str, Numbers]] = [labels["rows"] for labels in table["labels"].values()]
    seeds = {tuple(row["seeds"]) for rows in every for row in rows.values()}
    if len(seeds) > 1:
        found.append("Rows have different seeds; a difference is taken over those that both have.")
    if any(len(each) < 3 for each in seeds):
        found.append("Fewer than three seeds say little.")
    unkept = {name: row for rows in every for name, row in rows.items() if row["checkpoints"]["oracle"] is None}
    if two := [name for name, row in unkept.items() if _of(row, "retraining")]:
        found.append(f"No states are kept of a method with a second stage: no oracle, and no curve, of {', '.join(two)}.")
    if one := [name for name in unkept if name not in two]:
        found.append(
            f"No states were kept of {', '.join(one)}: no oracle, and no curve. --set train.snapshots=N with another --out keeps N "
            "of a run."
        )
    if len({row["weights"] for rows in every for row in rows.values()}) > 1:
        found.append(
            "Some methods are scored by averaged weights, others by raw ones, as each ships them: averaging alone is worth something. "
            'The raw weights of the former are "student" under "mIoU of other checkpoints".'
        )
    for labels, rows in ((labels, each["rows"]) for labels, each in table["labels"].items()):
        found += [f"Labels {labels}: {line}" for line in (*_guarded(rows), *_unlike_means(rows))]
    return found


def _guarded(rows: Mapping[str, Numbers]) -> list[str]:
    """Runs on which the collapse guard acted: set back, or with less weight on unlabelled images from some step on."""
    return [
        f"the collapse guard acted on {name}, seed {seed}, at step {', '.join(map(str, steps))}; the report of its cell says why."
        for name, row in rows.items()
        for seed, steps in row["guarded"].items()
    ]


def _unlike_means(rows: Mapping[str, Numbers]) -> list[str]:
    """Where the means of one seed, or those of one method, are over different classes."""
    seeds = dict.fromkeys(seed for row in rows.values() for seed in row["undefined"])
    groups = {
        **{f"seed {seed}": {name: row["undefined"].get(seed) for name, row in rows.items()} for seed in seeds},
        **{name: {f"seed {seed}": classes for seed, classes in row["undefined"].items()} for name, row in rows.items()},
    }
    found = []
    for group, members in groups.items():
        left_out = {member: classes for member, classes in members.items() if classes is not None}
        if len({tuple(classes) for classes in left_out.values()}) > 1:
            each = "; ".join(f"{member} leaves out {', '.join(classes) or 'none'}" for member, classes in left_out.items())
            found.append(
                f"the means of {group} are over different classes. A class that no test image shows counts, as 0, for a network "
                f"that names it, and is left out for one that does not: {each}."
            )
    return found


def sheets(found: Numbers, table: Numbers) -> list[Sheet]:
    """The tables of one set of labels.

    Args:
        found: A value of ``table["labels"]``.
        table: All of it.
    """
    rows: Mapping[str, Numbers] = found["rows"]
    checkpoints = list(dict.fromkeys(name for row in rows.values() for name in row["checkpoints"]))
    others = {key: title for key, title in SCORES.items() if key != "miou"}
    seeds = list(found["splits"])
    return [
        Sheet(
            "mIoU",
            ["method", "weights", *(f"seed {seed}" for seed in seeds), "deviation", "mean ± over seeds"],
            [
                [name, WEIGHTS[row["weights"]], *_of_seeds(row, seeds), percent(row["miou"]["deviation"]), spread(row["miou"])]
                for name, row in rows.items()
            ],
        ),
        *(
            Sheet(
                f"Difference from {other}",
                ["method", *(f"seed {seed}" for seed in seeds), "mean ± over seeds", "on other test images"],
                [[name, *_differences(row[key], seeds)] for name, row in rows.items() if name != other],
            )
            for other, key in against(table).items()
            if any(row[key] for row in rows.values())
        ),
        *([_pairs(found)] if len(rows) > 2 else []),
        Sheet(
            "mIoU of other checkpoints",
            ["method", *checkpoints],
            [[name, *(spread(row["checkpoints"].get(each)) for each in checkpoints)] for name, row in rows.items()],
        ),
        Sheet(
            "Other scores",
            ["method", *others.values()],
            [[name, *(spread(row[key]) for key in others)] for name, row in rows.items()],
        ),
        Sheet(
            "IoU of each class",
            ["method", *table["class_names"]],
            [[name, *(percent(iou) for iou in row["per_class"].values())] for name, row in rows.items()],
        ),
        *([_classes(rows, table)] if any(row["per_class_against_reference"] for row in rows.values()) else []),
        _cost(rows, table["costs"]),
        _images(rows, table["costs"]),
    ]


def against(table: Numbers) -> dict[str, str]:
    """What every method is compared with, and the key of a row that says how."""
    return {table["reference"]: "against_reference", "supervised": "against_supervised"}


def markdown(table: Numbers) -> str:
    """The whole comparison."""
    lines = [summary(table)]
    for labels, found in table["labels"].items():
        splits = ", ".join(f"{seed}: {name[:12]}" for seed, name in found["splits"].items())
        lines += ["", f"## Labels {labels}: {found['labeled']} images", "", f"Splits by seed: {splits}."]
        for sheet in sheets(found, table):
            lines += [
                "",
                f"### {sheet.title}",
                "",
                *([sheet.note, ""] if sheet.note else []),
                markdown_table(sheet.header, sheet.rows),
            ]
    lines += [line for note in notes(table) for line in ("", markdown_text(note))]
    return "\n".join(lines) + "\n"


def spread(found: Numbers | None, write: Callable[[float], str] = percent) -> str:
    """A mean over seeds and half its interval: ``48.4 ± 1.7``; a mean of differences, in points, where ``write`` says so."""
    if found is None:
        return DASH
    half = "" if found["high"] is None else f" ± {percent(found['high'] - found['value'])}"
    return f"{write(found['value'])}{half}"


def bounds(found: Numbers | None) -> str:
    """An interval of a difference, in points: ``(+0.3 to +2.0)``; a dash where there is none."""
    return DASH if found is None or found["low"] is None else f"({points(found['low'])} to {points(found['high'])})"


def number(value: float | None, factor: float = 1.0) -> str:
    """A number times a factor, without decimals, or a dash."""
    return DASH if value is None else f"{factor * value:,.0f}"


def difference(found: Numbers | None) -> str:
    """A difference with its interval over test images: ``+1.2 (+0.3 to +2.0)``."""
    return DASH if found is None else f"{points(found['value'])} {bounds(found)}".removesuffix(f" {DASH}")


def _pairs(found: Numbers) -> Sheet:
    names = list(found["rows"])
    return Sheet(
        "All pairs",
        ["method less", *names],
        [[name, *(difference(found["pairs"][name].get(other)) for other in names)] for name in names],
        "mIoU of the row's method less that of the column's, mean over the seeds of both, and its interval on other test images. "
        "Among many pairs, some lie beside 0 by chance: about one in twenty of those that do not differ.",
    )


def _classes(rows: Mapping[str, Numbers], table: Numbers) -> Sheet:
    names, reference = table["class_names"], table["reference"]
    return Sheet(
        f"IoU of each class, difference from {reference}",
        ["method", *names],
        [
            [name, *(difference(row["per_class_against_reference"].get(each)) for each in names)]
            for name, row in rows.items()
            if name != reference
        ],
        "Mean over the seeds of both, and its interval on other test images, of those resamples that show the class.",
    )


def _of_seeds(row: Numbers, seeds: Sequence[str]) -> list[str]:
    """mIoU of each seed, where the row has it."""
    values = dict(zip(map(str, row["seeds"]), row["miou"]["each"], strict=True))
    return [percent(values.get(str(seed))) for seed in seeds]


def _differences(found: Numbers | None, seeds: Sequence[str]) -> list[str]:
    """A difference of each seed, their mean over seeds, and its interval over test images."""
    if found is None:
        return [DASH] * (len(seeds) + 2)
    each = {str(seed): points(value) for seed, value in found["each"].items()}
    return [*(each.get(str(seed), DASH) for seed in seeds), spread(found["over_seeds"], points), bounds(found)]


def _cost(rows: Mapping[str, Numbers], costs: Numbers) -> Sheet:
    return _filled(
        "Cost",
        rows,
        {
            "steps": lambda name: _steps(rows[name]["stages"]),
            "of them warm-up": lambda name: _steps(_of(rows[name], "warm-up")),
            "of them retraining": lambda name: _steps(_of(rows[name], "retraining")),
            "ms a step": lambda name: number(rows[name]["step_seconds"], 1000),
            "training s": lambda name: number(rows[name]["train_seconds"]),
            "peak MB": lambda name: number(rows[name]["peak_mb"]),
            "peak MB of the GPU": lambda name: number(_device_mb(costs.get(name, {}))),
        },
    )


def _device_mb(cost: Numbers) -> float | None:
    """Most memory of the accelerator, of any step of a method; None where it was not measured, or has none."""
    found = [cost[stage]["device_mb"] for stage in ("step", "retraining") if cost.get(stage)]
    return max((each for each in found if each is not None), default=None)


def _images(rows: Mapping[str, Numbers], costs: Numbers) -> Sheet:
    """What each stage sends through an encoder."""
    return _filled(
        "Images through an encoder",
        rows,
        {
            "a step": lambda name: _passes([costs[name]["step"]] if name in costs else []),
            "warm-up": lambda name: _passes(_of(rows[name], "warm-up")),
            "training": lambda name: _passes(_of(rows[name], "training")),
            "labelling": lambda name: _passes(_of(rows[name], "labelling")),
            "retraining": lambda name: _passes(_of(rows[name], "retraining")),
            "all": lambda name: _passes(rows[name]["stages"]),
        },
        "With a gradient + without: counted at a real step of each kind, and multiplied.",
    )


def _filled(title: str, names: Collection[str], columns: Mapping[str, Callable[[str], str]], note: str = "") -> Sheet:
    """A row for each name, without the columns that nobody fills."""
    cells = {column: [write(name) for name in names] for column, write in columns.items()}
    cells = {column: found for column, found in cells.items() if any(cell != DASH for cell in found)}
    return Sheet(title, ["method", *cells], [*zip(names, *cells.values(), strict=True)], note)


def _of(row: Numbers, stage: str) -> list[Numbers]:
    return [each for each in row["stages"] if each["stage"] == stage]


def _steps(parts: Sequence[Numbers]) -> str:
    return number(sum(each["steps"] for each in parts)) if parts else DASH


def _passes(parts: Sequence[Numbers]) -> str:
    """``48,000 + 24,000``, of some stages together; a dash where one was not measured."""
    if not parts or any(each["passes"] is None for each in parts):
        return DASH
    return " + ".join(number(sum(each[key] for each in parts)) for key in ("passes", "passes_no_grad"))
