"""Tests of the monitoring manifests with the CRDs of the Prometheus operator.

The CRDs come from the Go module of the operator. The operator itself does not run in these tests.
"""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.system import charts, go_build, kustomize
from tests.system.cluster import Cluster

MODULE = Path(__file__).parent / "operator"
REPOSITORY = "github.com/prometheus-operator/prometheus-operator"


def definitions():
    """Return the CRDs in the Go module of the operator."""
    words = ["mod", "download", "-json", REPOSITORY]
    result = subprocess.run(
        [go_build.go(), *words], cwd=MODULE, capture_output=True, text=True, check=True
    )
    folder = Path(json.loads(result.stdout)["Dir"]) / "example/prometheus-operator-crd"
    return sorted(folder.glob("*.yaml"))


@pytest.fixture(scope="module")
def cluster():
    """A control plane with the CRDs of the operator."""
    with Cluster() as one:
        words = ("apply", "--server-side", *(f"--filename={path}" for path in definitions()))
        one.kubectl(*words)
        one.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=1m")
        yield one


def monitoring(tool):
    """Return the PodMonitor and the PrometheusRule that a tool builds."""
    if tool == "kustomize":
        documents = kustomize.build(kustomize.ROOT / "monitoring")
    else:
        documents = charts.template(
            "--values", charts.CHART.parent / "values/monitoring.yaml",
            "--show-only", "templates/monitoring.yaml",
        )  # fmt: skip
    return documents


@pytest.mark.parametrize("tool", ["kustomize", "helm"])
def test_the_api_server_accepts_the_objects(cluster, tool):
    """The objects contain only fields that the CRDs define, with valid values."""
    words = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    result = cluster.kubectl(*words, stdin=monitoring(tool), check=False)
    assert (result.returncode, result.stderr) == (0, "")
    created = {line.partition("/")[0] for line in result.stdout.splitlines()}
    assert {"podmonitor.monitoring.coreos.com", "prometheusrule.monitoring.coreos.com"} <= created


def test_the_api_server_rejects_an_unknown_field(cluster):
    """The API server rejects an unknown field, which shows that the CRDs are effective."""
    (monitor,) = [
        item for item in yaml.safe_load_all(monitoring("kustomize")) if item["kind"] == "PodMonitor"
    ]
    monitor["spec"]["podMetricsEndpoints"][0]["ports"] = "metrics"
    words = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    result = cluster.kubectl(*words, stdin=monitor, check=False)
    assert result.returncode != 0
    assert "ports" in result.stderr


@pytest.mark.parametrize("tool", ["kustomize", "helm"])
def test_the_selectors_of_the_stack_select_the_objects(tool):
    """By default, kube-prometheus-stack selects objects in all namespaces by the name of its own
    Helm release (templates/prometheus/prometheus.yaml of that chart).
    """
    objects = kustomize.by_name(monitoring(tool))
    for kind in ("PodMonitor", "PrometheusRule"):
        labels = objects[kind, "profile-loader"]["metadata"]["labels"]
        assert labels["release"] == "kube-prometheus-stack"
