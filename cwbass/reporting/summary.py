"""A run in a few numbers and lines, for places that show no more: a pipeline's UI, a chat, a pull request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwbass.errors import DataError
from cwbass.headline import certainty, false_classes, score_table, scored_on
from cwbass.jsonfile import read_metrics, read_object, read_rows
from cwbass.markdown import markdown_table, markdown_text
from cwbass.params import Params, flatten, load_params, read_params

METRICS = "metrics.json"
HEADLINE = ("miou", "baseline_miou", "miou_gain", "boundary_iou", "boundary_f1_3px", "ece", "pixel_accuracy")
MAX_CLASSES = 30  # of a confusion matrix in a database that keeps it as one value
REST = "(others)"


def headline(reports: Path) -> dict[str, float]:
    """The scores that describe a run, by the names of metrics.json; those that were not measured are left out.

    To the test scores, fractions in [0, 1], come from the last epoch of training ``pseudo_label_precision`` and
    ``pseudo_label_retention``, fractions too, and ``images_per_second``.

    Args:
        reports: Folder that ``cwbass eval --out`` wrote.
    """
    metrics = read_metrics(reports / METRICS)
    values = {key: metrics.get(key) for key in HEADLINE}
    rows = read_rows(reports / "history.jsonl", writer="cwbass eval")
    if kept := [row for row in rows if row.get("retention") is not None]:
        values["pseudo_label_precision"] = kept[-1].get("precision")
        values["pseudo_label_retention"] = kept[-1]["retention"]
        if seconds := kept[-1].get("step_seconds"):
            train = load_params(read_params(reports / "params.yaml"), Params).train
            values["images_per_second"] = (train.labeled_a_step + train.unlabeled_a_step) / seconds
    return {key: value for key, value in values.items() if value is not None}


def facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """A step's report by dotted keys, for the metadata of its artifact; what is None is left out, for Kubeflow's launcher fails on it."""
    return {key: value for key, value in flatten(report).items() if value is not None}


def confusion_matrix(reports: Path, max_classes: int = MAX_CLASSES) -> tuple[list[str], list[list[int]]]:
    """Class names and test pixels, a row for each true class.

    Args:
        reports: Folder that ``cwbass eval --out`` wrote.
        max_classes: With more, those of the fewest true pixels are added up in one, named "(others)".
    """
    confusion = read_metrics(reports / METRICS)["confusion"]
    names, matrix = list(confusion["class_names"]), [list(row) for row in confusion["matrix"]]
    if len(names) <= max_classes:
        return names, matrix
    by_pixels = sorted(range(len(names)), key=lambda index: (-sum(matrix[index]), index))
    kept = sorted(by_pixels[: max_classes - 1])
    place = {index: kept.index(index) if index in kept else max_classes - 1 for index in range(len(names))}
    merged = [[0] * max_classes for _ in range(max_classes)]
    for i, row in enumerate(matrix):
        for j, pixels in enumerate(row):
            merged[place[i]][place[j]] += pixels
    return [*(names[index] for index in kept), REST], merged


def scores_page(reports: Path) -> str:
    """The table of a run as Markdown: the model beside its baseline, in per cent."""
    metrics = read_metrics(reports / METRICS)
    table = score_table(metrics)
    title = f"{scored_on(metrics)}, seed {metrics['seed']}."
    rows = [*table.scores, *([f"IoU of {name}", *values] for name, *values in table.classes)]
    parts = [markdown_text(title), markdown_table(table.header, rows)]
    if (sure := certainty(metrics)) is not None:
        parts.append(markdown_text(sure))
    if absent := metrics.get("absent_classes"):
        parts.append(f"Absent from the test split: {markdown_text(', '.join(absent))}.")
    if false := false_classes(metrics):
        parts.append(f"Absent, but predicted there, so 0 in the mean: {markdown_text(', '.join(false))}.")
    return "\n\n".join(parts) + "\n"


def read_decision(registration: Path) -> dict[str, Any]:
    """What became of a model: the content of registration.json, with the gate's page itself as ``page``.

    Raises:
        DataError: The file is missing or says nothing.
    """
    decision = read_object(registration / "registration.json", writer="cwbass register")
    if decision.get("decision") not in ("registered", "refused"):
        raise DataError(f"{registration / 'registration.json'} holds no decision. Run `cwbass register` again.")
    # The page lies beside the decision, wherever both were copied to.
    page = registration / Path(str(decision.get("page") or "gate.md")).name
    text = page.read_text(encoding="utf-8") if page.is_file() else None
    return {**decision, "reasons": list(decision.get("reasons") or ()), "page": text}


def decision_page(decision: Mapping[str, Any]) -> str:
    """The outcome of a registration as Markdown: the gate's own page where there is one, else the reasons of a refusal."""
    if decision.get("page"):
        return str(decision["page"])
    name = markdown_text(str(decision["name"]))
    if decision["decision"] == "registered":
        return (
            f"# {name} {decision['version']} is registered\n\n{markdown_text(str(decision['uri']))}\n\n"
            f"Manifest SHA-256: `{decision['manifest_sha256']}`\n"
        )
    reasons = "".join(f"- {markdown_text(reason)}\n" for reason in decision["reasons"])
    return f"# {name} is refused\n\n{reasons}\nNothing was registered. Train a better model, or change the limit.\n"
