"""Tests that the alerts and panels use existing metrics, labels and headings."""

import json
import re
from pathlib import Path

import yaml

from agent.core.finding_codes import FindingCode
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


def exposed() -> dict[str, str]:
    """Return the metric of each sample, by the name of the sample."""
    return {
        metric.name + part: metric.name
        for metric in Metrics("1").registry.collect()
        if metric.name.startswith("profile_loader_")
        for part in PARTS[metric.type]
    }


def expressions() -> list[str]:
    """Return every expression of the alerts and the dashboard."""
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [rule_or_target["expr"] for rule_or_target in (*RULES, *targets)]


def test_alerts_and_panels_use_exactly_the_existing_metrics() -> None:
    """Alerts and panels use every metric of the agent, and no other metric."""
    used = {name for text in expressions() for name in re.findall(r"profile_loader_\w+", text)}
    metrics = exposed()
    assert sorted(used - metrics.keys()) == []
    assert sorted(set(metrics.values()) - {metrics[name] for name in used}) == []


def test_alerts_use_codes_that_exist() -> None:
    """The alerts use only existing codes of findings."""
    codes = [code for text in expressions() for code in re.findall(r'code="(\w+)"', text)]
    assert codes != []
    assert set(codes) <= set(FindingCode)


def test_the_runbook_has_one_heading_for_each_alert_in_the_same_order() -> None:
    """The runbook has one heading for each alert, in the same order."""
    alerts = [rule["alert"] for rule in RULES]
    text = Path("docs/runbook.md").read_text()
    assert re.findall(r"^### (ProfileLoader\w+)$", text, re.MULTILINE) == alerts
    settings = yaml.safe_load((MONITORING / "settings.yaml").read_text())
    assert [rule["annotations"]["runbook_url"] for rule in RULES] == [
        f"{settings['data']['runbook']}#{alert.lower()}" for alert in alerts
    ]


def test_every_alert_has_a_severity_and_a_summary() -> None:
    """Every alert has a severity, a summary, a description and a link to the runbook."""
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["summary"].endswith(".")


def test_the_monitor_scrapes_the_port_of_the_daemon_set() -> None:
    """The PodMonitor uses the labels, the namespace and the port name of the DaemonSet."""
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())
    daemon = yaml.safe_load(Path("manifests/base/daemonset.yaml").read_text())
    template = daemon["spec"]["template"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = template["spec"]["containers"]
    assert monitor["metadata"]["namespace"] == daemon["metadata"]["namespace"]
    selected = monitor["spec"]["selector"]["matchLabels"]
    assert selected.items() <= template["metadata"]["labels"].items()
    assert endpoint["port"] in [port["name"] for port in container["ports"]]
    # The alerts select series with this job label.
    assert template["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "profile-loader"


def test_the_kustomization_contains_every_file() -> None:
    """The kustomization contains every file, and the dashboard has the label for Grafana's
    sidecar.
    """
    content = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    (dashboard,) = content["configMapGenerator"]
    files = {*content["resources"], *(entry.partition("=")[2] for entry in dashboard["files"])}
    assert files == {path.name for path in MONITORING.iterdir()} - {"kustomization.yaml"}
    assert dashboard["options"]["labels"] == {"grafana_dashboard": "1"}


def test_panels_do_not_overlap() -> None:
    """The panels of the dashboard do not overlap in the grid of 24 columns, and each panel has a
    unique number.
    """
    panels = DASHBOARD["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    cells = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + line)
        for panel in panels
        for column in range(panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
