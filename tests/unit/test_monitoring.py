"""manifests/monitoring speaks of metrics, labels and headings that exist."""

import json
import re
from pathlib import Path

import yaml

from agent.core.findings import CODES
from agent.reporting.metrics import Metrics

MONITORING = Path("manifests/monitoring")
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PARTS = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "gauge": ("",),
}


def exposed():
    """Return every sample's name of the agent, by its metric."""
    return {
        metric.name + part: metric.name
        for metric in Metrics("1").registry.collect()
        if metric.name.startswith("profile_loader_")
        for part in PARTS[metric.type]
    }


def expressions():
    """Return every expression of alerts and dashboard."""
    asked = [one["expr"] for panel in DASHBOARD["panels"] for one in panel["targets"]]
    return [*(rule["expr"] for rule in RULES), *asked]


def test_alerts_and_panels_ask_for_metrics_that_exist_and_for_all_of_them():
    """No name without a metric, and no metric that nobody looks at."""
    asked = {name for one in expressions() for name in re.findall(r"profile_loader_\w+", one)}
    there = exposed()
    assert sorted(asked - there.keys()) == []
    assert sorted(set(there.values()) - {there[name] for name in asked}) == []


def test_alerts_name_codes_that_exist():
    """A code that was renamed would silence its alert."""
    codes = [code for one in expressions() for code in re.findall(r'code="(\w+)"', one)]
    assert codes != []
    assert set(codes) <= set(CODES)


def test_the_runbook_has_one_heading_for_each_alert_in_the_same_order():
    """And each alert's annotation leads to its own."""
    alerts = [rule["alert"] for rule in RULES]
    text = Path("docs/runbook.md").read_text()
    assert re.findall(r"^### (ProfileLoader\w+)$", text, re.MULTILINE) == alerts
    assert [rule["annotations"]["runbook"] for rule in RULES] == [
        f"docs/runbook.md#{one.lower()}" for one in alerts
    ]


def test_every_alert_says_what_and_how_bad():
    """Summary, description and severity."""
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["summary"].endswith(".")


def test_the_monitor_scrapes_the_port_of_the_daemon_set():
    """By the labels, the namespace and the port's name that the DaemonSet has."""
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())
    daemon = yaml.safe_load(Path("manifests/base/daemonset.yaml").read_text())
    template = daemon["spec"]["template"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = template["spec"]["containers"]
    assert monitor["metadata"]["namespace"] == daemon["metadata"]["namespace"]
    chosen = monitor["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= template["metadata"]["labels"].items()
    assert endpoint["port"] in [one["name"] for one in container["ports"]]
    # The alerts' job.
    assert template["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "profile-loader"


def test_the_kustomization_takes_everything():
    """Both manifests, and the dashboard as a ConfigMap that Grafana's sidecar finds."""
    made = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    (dashboard,) = made["configMapGenerator"]
    taken = {*made["resources"], *(one.partition("=")[2] for one in dashboard["files"])}
    assert taken == {one.name for one in MONITORING.iterdir()} - {"kustomization.yaml"}
    assert dashboard["options"]["labels"] == {"grafana_dashboard": "1"}


def test_panels_do_not_overlap():
    """Each has a number and a place of its own, within 24 columns."""
    panels = DASHBOARD["panels"]
    assert [one["id"] for one in panels] == list(range(1, len(panels) + 1))
    taken = [
        (one["gridPos"]["x"] + column, one["gridPos"]["y"] + line)
        for one in panels
        for column in range(one["gridPos"]["w"])
        for line in range(one["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) < 24
