"""Dashboard, alert rules and monitors, against the metrics that the code defines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_servers import need, promtool
from promql import problems, uses

from cwbass.telemetry.metrics import Metrics

TOP = Path(__file__).parents[2]
MONITORING = TOP / "k8s" / "base" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
CASES: dict[str, Any] = yaml.safe_load((TOP / "tests/k8s/alerts_test.yaml").read_text())
DEFINITIONS = {found.name: found for found in Metrics(CollectorRegistry()).definitions}
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
EXPRESSIONS = [target["expr"].replace("$window", "1h") for panel in PANELS.values() for target in panel["targets"]]


def base_name(series: str) -> str:
    """The metric that a series belongs to."""
    return series if series in DEFINITIONS else re.sub(r"_(bucket|sum|count)$", "", series)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_metrics_that_exist_with_their_type_and_labels(panel: str) -> None:
    for target in PANELS[panel]["targets"]:
        assert problems(target["expr"].replace("$window", "1h"), DEFINITIONS) == []
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        (asked, *_) = uses(target["expr"].replace("$window", "1h"))
        assert shown <= {*DEFINITIONS[base_name(asked.name)].labels, "instance", "pipeline", "stage", "le"}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_asks_for_metrics_that_exist_with_their_type_and_labels(alert: str) -> None:
    assert problems(ALERTS[alert]["expr"], DEFINITIONS) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("cwbass_train_loses", "cwbass_train_loses does not exist"),
        ("rate(cwbass_train_epoch[5m])", "rate of cwbass_train_epoch, which is a gauge"),
        ("cwbass_train_steps_total > 3", "cwbass_train_steps_total is a counter: only its rate or increase means something"),
        ("sum by (clas) (cwbass_pseudo_label_threshold)", "cwbass_pseudo_label_threshold has no label clas"),
        ('cwbass_train_loss{term="all"}', "cwbass_train_loss never has term='all'"),
        ("cwbass_train_epoch + on (phase) cwbass_train_grad_norm", "cwbass_train_epoch has no label phase"),
        ("rate(cwbass_train_step_duration_seconds[5m])", "cwbass_train_step_duration_seconds is no series of a histogram"),
    ],
)
def test_an_expression_that_is_wrong_is_found(expression: str, problem: str) -> None:
    assert problem in problems(expression, DEFINITIONS)


def test_every_metric_is_shown_on_the_dashboard() -> None:
    assert {base_name(use.name) for expression in EXPRESSIONS for use in uses(expression)} == set(DEFINITIONS)


def test_panels_have_places_and_ids_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    covered = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(covered)) == len(covered)
    assert max(x for x, _ in covered) < 24


def test_every_variable_of_an_expression_is_one_of_the_dashboard() -> None:
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    asked = {name for panel in PANELS.values() for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
    assert asked == known - {"datasource"}


def test_promtool_accepts_the_rules_and_each_alert_fires_and_stays_silent_as_its_cases_say(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(RULES))
    shutil.copy(TOP / "tests/k8s/alerts_test.yaml", tmp_path)
    checked = promtool("check", "rules", tmp_path / "alerts.yaml")
    assert (checked.returncode, f"{len(ALERTS)} rules found" in checked.stdout) == (0, True), checked.stdout + checked.stderr
    tested = promtool("test", "rules", tmp_path / "alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_firing_and_a_silent_case_and_a_page_that_says_what_to_do(alert: str) -> None:
    expected = [case["exp_alerts"] for test in CASES["tests"] for case in test["alert_rule_test"] if case["alertname"] == alert]
    assert [] in expected
    assert any(expected)
    assert f"\n### {alert}\n" in (TOP / "docs" / "monitoring.md").read_text()


def test_kustomize_makes_a_config_map_that_grafana_finds() -> None:
    rendered = subprocess.run([need("kubectl"), "kustomize", str(MONITORING)], capture_output=True, text=True, check=True)
    manifests = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(rendered.stdout)}
    found = manifests["ConfigMap", "cwbass-dashboard"]
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(found["data"]["cwbass.json"]) == DASHBOARD
    selected = manifests["Service", "pushgateway"]["spec"]["selector"].items()
    assert selected <= manifests["Deployment", "pushgateway"]["spec"]["template"]["metadata"]["labels"].items()
