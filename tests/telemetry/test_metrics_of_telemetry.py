"""The definitions: what is exposed, under which names, and that docs/monitoring.md lists it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_servers import promtool

from cwbass.telemetry.metrics import CONFIDENCES, OPEN, CountedHistogram, Definition, Exposed, Metrics

DOCS = Path(__file__).parents[2] / "docs" / "monitoring.md"
DEFINITIONS = Metrics(CollectorRegistry()).definitions


def exposed(metrics: Metrics, names: set[str] | None = None) -> str:
    shown = CollectorRegistry()
    shown.register(Exposed(metrics.registry, names))
    return generate_latest(shown).decode()


def fill(metrics: Metrics) -> None:
    """A sample of every metric."""
    for attribute in vars(metrics).values():
        labels = getattr(attribute, "_labelnames", None)
        if labels is not None:
            child = attribute.labels(*("x" for _ in labels)) if labels else attribute
            getattr(child, {"gauge": "set", "counter": "inc", "histogram": "observe"}[attribute._type])(1)
    metrics.confidence.add([1.0] * 100, 50.0)


def table() -> str:
    """What docs/monitoring.md must hold."""
    rows = ["| metric | type | labels | pushed | meaning |", "|---|---|---|---|---|"]
    for found in DEFINITIONS:
        labels = ", ".join(f"`{name}`" + (f" ({', '.join(values)})" if values else "") for name, values in found.labels.items())
        rows.append(f"| `{found.name}` | {found.kind} | {labels} | {'yes' if found.outcome else ''} | {found.help} |")
    return "\n".join(rows)


def test_the_documented_metrics_are_those_of_the_code() -> None:
    assert table() in DOCS.read_text(), f"put this into {DOCS.name}:\n{table()}"


@pytest.mark.parametrize("found", DEFINITIONS, ids=lambda found: found.name)
def test_a_name_says_unit_and_type(found: Definition) -> None:
    assert re.fullmatch(r"cwbass_[a-z]+(_[a-z0-9]+)*", found.name)
    assert found.name.endswith("_total") == (found.kind == "counter")
    assert not re.search(r"_(percent|ms|minutes|mb|gb|count|sum|bucket)(_|$)", found.name)
    if "run_id" in found.labels:
        assert found.name == "cwbass_run_info"


def test_promtool_finds_nothing_to_say_of_the_exposition() -> None:
    metrics = Metrics(CollectorRegistry())
    fill(metrics)
    text = exposed(metrics)
    families = {family.name for family in text_string_to_metric_families(text)}
    assert families == {found.name.removesuffix("_total") for found in DEFINITIONS}
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_what_was_not_measured_is_not_shown_and_what_was_counted_is_shown_from_zero_on() -> None:
    text = exposed(Metrics(CollectorRegistry()))
    assert "cwbass_train_epoch" not in text  # 0 would be a lie
    assert "cwbass_train_last_step_timestamp_seconds" not in text  # and here, an alert
    assert "cwbass_train_nonfinite_steps_total 0.0" in text
    assert 'cwbass_checkpoints_total{outcome="failed"} 0.0' in text
    assert "_created" not in text


def test_only_outcomes_are_pushed() -> None:
    metrics = Metrics(CollectorRegistry())
    fill(metrics)
    text = exposed(metrics, {found.name for found in DEFINITIONS if found.outcome})
    assert "cwbass_registry_operations_total" in text
    # An old time of a training in a Pushgateway would fire the alerts of one that ended long ago.
    assert set(re.findall(r"^cwbass_(?:train|checkpoint)\w+", text, flags=re.MULTILINE)) == {"cwbass_train_interruptions_total"}


def test_labels_that_are_not_listed_come_from_the_data_or_the_build() -> None:
    open_labels = {name for found in DEFINITIONS for name, values in found.labels.items() if values == OPEN}
    build = {"version", "revision", "python", "torch", "cuda", "device"}
    assert open_labels - build == {"run_id", "data_version", "params_digest", "model", "class"}


def test_a_histogram_of_counts_is_cumulative() -> None:
    registry = CollectorRegistry()
    histogram = CountedHistogram(Definition("x", "histogram", "X.", {}, False), (0.3, 0.5, 0.95), registry)
    counts = [0.0] * 100
    counts[29], counts[30], counts[94], counts[95], counts[99] = 1, 2, 4, 8, 16
    histogram.add(counts, 20.0)
    histogram.add(counts, 20.0)
    values = {sample.labels.get("le", sample.name): sample.value for family in registry.collect() for sample in family.samples}
    assert values == {"0.3": 2, "0.5": 6, "0.95": 14, "+Inf": 62, "x_count": 62, "x_sum": 40}


def test_the_edges_of_the_confidence_histogram_lie_between_its_bins() -> None:
    from cwbass.pseudo_labels import CONFIDENCE_BINS

    assert [edge * CONFIDENCE_BINS for edge in CONFIDENCES] == pytest.approx(
        [round(edge * CONFIDENCE_BINS) for edge in CONFIDENCES]
    )
