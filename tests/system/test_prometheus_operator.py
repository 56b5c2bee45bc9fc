"""Tests of the monitoring manifests with the real Prometheus operator and its CRDs.

The CRDs come from the Go module of the operator. The group `operator` also builds the operator,
which then generates the configuration of a Prometheus with the selectors of kube-prometheus-stack.
"""

import base64
import contextlib
import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.system import charts, go_build, kustomize
from tests.system.cluster import NAMESPACE, Cluster, free_port, until

MODULE = Path(__file__).parent / "operator"
REPOSITORY = "github.com/prometheus-operator/prometheus-operator"
STACK = "kube-prometheus-stack"
# The default selectors of kube-prometheus-stack (templates/prometheus/prometheus.yaml) select a
# label with the release name in all namespaces.
SELECTED = {"matchLabels": {"release": STACK}}
PROMETHEUS = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "Prometheus",
    "metadata": {"name": "stack", "namespace": "monitoring"},
    "spec": {
        "podMonitorSelector": SELECTED,
        "podMonitorNamespaceSelector": {},
        "ruleSelector": SELECTED,
        "ruleNamespaceSelector": {},
        "serviceMonitorSelector": SELECTED,
        "probeSelector": SELECTED,
    },
}


def definitions():
    """Return the CRDs in the Go module of the operator."""
    words = ["mod", "download", "-json", REPOSITORY]
    done = subprocess.run(
        [go_build.go(), *words], cwd=MODULE, capture_output=True, text=True, check=True
    )
    folder = Path(json.loads(done.stdout)["Dir"]) / "example/prometheus-operator-crd"
    return sorted(folder.glob("*.yaml"))


@pytest.fixture(scope="module")
def cluster():
    """A control plane with the CRDs of the operator."""
    with Cluster() as one:
        words = ("apply", "--server-side", *(f"--filename={path}" for path in definitions()))
        one.kubectl(*words)
        one.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=1m")
        one.kubectl("create", "namespace", "monitoring")
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
    done = cluster.kubectl(*words, stdin=monitoring(tool), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    created = {line.partition("/")[0] for line in done.stdout.splitlines()}
    assert {"podmonitor.monitoring.coreos.com", "prometheusrule.monitoring.coreos.com"} <= created


def test_the_api_server_rejects_an_unknown_field(cluster):
    """The API server rejects an unknown field, which shows that the CRDs are effective."""
    (monitor,) = [
        item for item in yaml.safe_load_all(monitoring("kustomize")) if item["kind"] == "PodMonitor"
    ]
    monitor["spec"]["podMetricsEndpoints"][0]["ports"] = "metrics"
    words = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    done = cluster.kubectl(*words, stdin=monitor, check=False)
    assert done.returncode != 0
    assert "ports" in done.stderr


@contextlib.contextmanager
def running_operator(cluster):
    """Run the operator for a cluster."""
    program = go_build.program(MODULE, "operator", f"{REPOSITORY}/cmd/operator")
    environ = {"PATH": os.environ["PATH"], "KUBECONFIG": str(cluster.folder / "admin.kubeconfig")}
    address = f"--web.listen-address=127.0.0.1:{free_port()}"
    log = cluster.folder / "operator.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, address], env=environ, stdout=output, stderr=output, cwd=cluster.folder
        )
    try:
        yield log
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.terminate()
        process.wait()


def configuration(cluster):
    """Return the configuration that the operator generated, or None."""
    secret = cluster.get("/api/v1/namespaces/monitoring/secrets/prometheus-stack")
    content = (secret or {}).get("data", {}).get("prometheus.yaml.gz")
    if content is None:
        return None
    return yaml.safe_load(gzip.decompress(base64.b64decode(content)))


def generated_rules(cluster):
    """Return the rules that the operator passes to Prometheus."""
    config_maps = cluster.get("/api/v1/namespaces/monitoring/configmaps")["items"]
    files = [
        yaml.safe_load(content)
        for item in config_maps
        if item["metadata"]["name"].startswith("prometheus-stack-rulefiles")
        for content in item["data"].values()
    ]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


@pytest.mark.operator
@pytest.mark.parametrize("tool", ["kustomize", "helm"])
def test_a_prometheus_of_the_stack_scrapes_the_agent_and_has_the_alerts(cluster, tool, tmp_path):
    """The selectors of kube-prometheus-stack select the PodMonitor and every alert."""
    documents = monitoring(tool)
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=documents)
    cluster.apply(PROMETHEUS)
    (rule,) = [item for item in yaml.safe_load_all(documents) if item["kind"] == "PrometheusRule"]
    alerts = [item["alert"] for group in rule["spec"]["groups"] for item in group["rules"]]
    job = f"podMonitor/{NAMESPACE}/profile-loader/0"
    try:
        with running_operator(cluster) as log:
            until(lambda: generated_rules(cluster), lambda: log.read_text()[-3000:], 120)
            until(lambda: job in str(configuration(cluster)), lambda: log.read_text()[-3000:], 120)
        found = configuration(cluster)
        (scrape,) = [item for item in found["scrape_configs"] if item["job_name"] == job]
        rules = generated_rules(cluster)
        assert [item["alert"] for item in rules] == alerts
        assert all("#" in item["annotations"]["runbook_url"] for item in rules)
        targets = {item.get("target_label") for item in scrape["relabel_configs"]}
        assert {"job", "node", "namespace", "pod"} <= targets
        file = tmp_path / "prometheus.yaml"
        file.write_text(yaml.safe_dump({"scrape_configs": found["scrape_configs"]}))
        done = subprocess.run(
            ["promtool", "check", "config", "--syntax-only", file],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        cluster.kubectl("-n", "monitoring", "delete", "prometheus", "stack")
        words = ("delete", "podmonitor,prometheusrule", "--all")
        cluster.kubectl("-n", NAMESPACE, *words)
        cluster.kubectl("-n", "monitoring", "delete", "configmap,secret", "--all")
