"""What in a history deserves a second look: rules of thumb, each a sentence with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from cwbass.errors import counted
from cwbass.reporting.curves import Row, number

STARVED_EPOCHS = 3  # without one pseudo-label of a class
PRECISION_FALL = 0.05  # below its best, while retention rises
LOOSE_RETENTION = 0.99  # above which a filter filters nothing
LONG_WAIT = 0.3  # share of the time spent waiting for data


def find_concerns(history: Sequence[Row], class_names: Sequence[str]) -> list[str]:
    """Sentences on what may have gone wrong; empty where no rule applies.

    Args:
        history: Rows of history.jsonl, in order.
        class_names: Names of the C classes.
    """
    train = [row for row in history if row.get("stage") == "train"]
    doubts = [*_collapse(train), *_loose(train), *_starved(train, class_names)]
    return [*_nonfinite(history), *_incidents(history), *doubts, *_waiting(history)]


def _nonfinite(history: Sequence[Row]) -> list[str]:
    skipped = int(sum(number(row.get("nonfinite")) or 0 for row in history))
    why = "had a loss that was not finite and"
    return [f"{counted(skipped, f'step {why} was', f'steps {why} were')} skipped."] if skipped else []


def _incidents(history: Sequence[Row]) -> list[str]:
    sentences = []
    for row in history:
        incident = row.get("incident")
        if incident is None:
            continue
        back = "" if incident["back_to"] is None else f", and training went on with the weights of step {incident['back_to']}"
        sentences.append(
            f"At step {row['step']} the collapse guard acted: {'; '.join(incident['reasons'])}. The unlabelled loss had "
            f"{incident['unsup_scale'] * 100:.3g}% of its weight from there{back}."
        )
    return sentences


def _collapse(train: Sequence[Row]) -> list[str]:
    pairs = [(number(row.get("precision")), number(row.get("retention"))) for row in train]
    known = [(precision, retention) for precision, retention in pairs if precision is not None and retention is not None]
    if not known:
        return []
    best, last = max(known), known[-1]
    if best[0] - last[0] <= PRECISION_FALL or last[1] <= best[1]:
        return []
    return [
        f"Precision of the pseudo-labels fell from {best[0] * 100:.1f}% to {last[0] * 100:.1f}% while retention rose "
        f"from {best[1] * 100:.1f}% to {last[1] * 100:.1f}%: the model may be teaching itself its own mistakes."
    ]


def _loose(train: Sequence[Row]) -> list[str]:
    retention = number(train[-1].get("retention")) if train else None
    if retention is None or retention < LOOSE_RETENTION:
        return []
    return [f"The threshold rejects almost nothing: {retention * 100:.1f}% of the unlabelled pixels were kept at the end."]


def _starved(train: Sequence[Row], class_names: Sequence[str]) -> list[str]:
    recent = [row["retention_per_class"] for row in train if row.get("retention_per_class")][-STARVED_EPOCHS:]
    if len(recent) < STARVED_EPOCHS:
        return []
    starved = [name for c, name in enumerate(class_names) if all(c < len(row) and row[c] == 0 for row in recent)]
    if not starved:
        return []
    return [f"No pseudo-label was kept in the last {STARVED_EPOCHS} epochs for: {', '.join(starved)}."]


def _waiting(history: Sequence[Row]) -> list[str]:
    waits = [wait for row in history if (wait := number(row.get("data_wait"))) is not None]
    mean = sum(waits) / len(waits) if waits else 0.0
    return (
        [f"Training waited for data {mean * 100:.0f}% of the time; more workers or a cache would speed it up."]
        if mean > LONG_WAIT
        else []
    )
