"""Tests that a real Prometheus accepts the metrics and the rules, and scrapes the agent."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ModuleMode
from agent.reporting.http_server import READING_CONNECTIONS, HttpServer
from agent.reporting.metrics import Metrics
from tests.reports import scrape, status_store
from tests.system.cluster import free_port, until
from tests.system.guest import pace

MONITORING = Path("manifests/monitoring")
ALERTS = Path("tests/system/alerts.yaml")
PATIENCE_SECONDS = 60.0


def promtool(*words, stdin=None, cwd=None):
    """Run promtool, and return its exit status and its output."""
    result = subprocess.run(
        ["promtool", *words], input=stdin, cwd=cwd, capture_output=True, check=False
    )
    return result.returncode, (result.stdout + result.stderr).decode()


@pytest.fixture
def metrics():
    """Return metrics with a value for every series."""
    one = Metrics("1.2.3")
    finding = Finding(code=FindingCode.NOT_JSON, location="b.json", message="no JSON")
    fields = {"profile_set": "configmap ns/web", "key": "k", "localhost_profile": ""}
    rows = (
        ProfileStatus(
            kind="seccomp",
            name="a.json",
            state="installed",
            action="restore",
            reason="went missing",
            **fields,
        ),
        ProfileStatus(
            kind="seccomp",
            name='odd "\\ name',
            state="installed",
            action="keep",
            reason="",
            **fields,
        ),
        ProfileStatus(
            kind="apparmor",
            name="web",
            state="rejected",
            action="reject",
            reason="",
            findings=(finding,),
            **fields,
        ),
    )
    enabled = KindSupport(state="enabled", sandboxed=True)
    report = Report(
        profiles=rows,
        profile_sets=(
            ProfileSetStatus(profile_set="configmap ns/web", state="read", keys=3),
            ProfileSetStatus(profile_set="dir /etc/profiles", state="missing"),
        ),
        kind_support={"apparmor": enabled, "seccomp": enabled},
        security_modules={"selinux": ModuleMode.PERMISSIVE},
        seconds={"act": 0.1},
        pass_number=1,
    )
    one.count_pass(report, time.time())
    one.request("GET", "200", 0.1)
    one.watch_restarted("node")
    one.events_dropped(1)
    one.show_unconfined_processes(0)
    one.parser_ran(0.2)
    return one


@pytest.fixture
def server(metrics):
    """Return an HTTP server that serves these metrics."""
    store = status_store(metrics, version="1.2.3")
    running = HttpServer("127.0.0.1:0", store)
    running.start()
    return running


@pytest.fixture
def rules(tmp_path):
    """Return a directory with a file rules.yaml that contains the groups of the PrometheusRule."""
    manifest = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(manifest["spec"]))
    return tmp_path


def test_promtool_accepts_the_metrics(metrics):
    """The names, types, units and help texts of the metrics follow the conventions."""
    _, body = scrape(metrics, "text/plain")
    assert promtool("check", "metrics", stdin=body) == (0, "")


def test_promtool_accepts_the_rules(rules):
    """The expressions and templates of the rules are valid, and have no lint warning."""
    status, output = promtool(
        "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", cwd=rules
    )
    number = len(yaml.safe_load((rules / "rules.yaml").read_text())["groups"][0]["rules"])
    assert (status, re.findall(r"SUCCESS: (\d+) rules", output)) == (0, [str(number)]), output


def test_every_alert_fires_in_its_case_and_in_no_other(rules):
    """For each alert, alerts.yaml contains a case in which the alert fires and a case in which it
    does not fire.
    """
    shutil.copy(ALERTS, rules)
    status, output = promtool("test", "rules", ALERTS.name, cwd=rules)
    assert (status, "SUCCESS" in output) == (0, True), output
    alerts = {
        rule["alert"]
        for rule in yaml.safe_load((rules / "rules.yaml").read_text())["groups"][0]["rules"]
    }
    cases = [
        check
        for case in yaml.safe_load(ALERTS.read_text())["tests"]
        for check in case["alert_rule_test"]
    ]
    assert {check["alertname"] for check in cases if "exp_alerts" in check} == alerts
    assert {check["alertname"] for check in cases if "exp_alerts" not in check} == alerts


# --- a Prometheus that scrapes --------------------------------------------------------------------


class Prometheus:
    """A Prometheus that scrapes a server every second and evaluates the rules."""

    def __init__(self, folder, target):
        self.url = f"http://127.0.0.1:{free_port()}"
        job = {"job_name": "profile-loader", "static_configs": [{"targets": [target]}]}
        job["static_configs"][0]["labels"] = {"node": "n1"}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [job],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def query(self, expression):
        """Return the values in the result of a query, by labels."""
        words = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(  # noqa: S310 - http only
            f"{self.url}/api/v1/query?{words}", timeout=50
        ) as response:
            series = json.load(response)["data"]["result"]
        return {tuple(sorted(item["metric"].items())): float(item["value"][1]) for item in series}

    def until(self, expression, expected):
        """Repeat a query until the result has these values."""

        def is_expected():
            assert self.process.poll() is None, self.log_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                return list(self.query(expression).values()) == expected
            return False

        until(
            is_expected, lambda: f"{expression} is {expected}: {self.log_text()}", PATIENCE_SECONDS
        )

    def log_text(self):
        self.log.seek(0)
        return self.log.read().decode()[-2000:]

    def stop(self):
        self.process.terminate()
        self.process.wait(pace.scaled(20))
        self.log.close()


@pytest.fixture
def prometheus(rules, server):
    """Yield a Prometheus that scrapes the server."""
    running = Prometheus(rules, f"127.0.0.1:{server.port}")
    try:
        yield running
    finally:
        running.stop()


def dashboard():
    """Return the expressions of the dashboard, with values in place of the variables."""
    content = json.loads((MONITORING / "dashboard.json").read_text())
    return [
        target["expr"].replace("$node", ".*").replace("$__rate_interval", "1m")
        for panel in content["panels"]
        for target in panel["targets"]
    ]


def test_a_real_prometheus_scrapes_the_agent(prometheus, server, metrics):
    """Prometheus scrapes the agent while many idle connections are open, and stores unusual names
    unchanged.

    Every expression of the dashboard has a result.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(2 * READING_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        prometheus.until('up{job="profile-loader"}', [1.0])
    prometheus.until("count_over_time(profile_loader_converged[5m]) >= bool 3", [1.0])
    assert list(
        prometheus.query('profile_loader_profile_available{name="odd \\"\\\\ name"}').values()
    ) == [1.0]
    assert prometheus.query("profile_loader_build_info").popitem()[1] == 1.0
    # A rate has no value yet, but an invalid expression would cause an error.
    empty = [text for text in dashboard() if not prometheus.query(text)]
    assert [text for text in empty if "rate(" not in text] == []


def test_an_alert_is_pending_in_a_real_prometheus(prometheus):
    """An alert becomes pending, because the labels in the rules match the labels of the scraped
    metrics.
    """
    prometheus.until('ALERTS{alertname="ProfileLoaderNotConverged", alertstate="pending"}', [1.0])
    prometheus.until('ALERTS{alertname="ProfileLoaderSourceStale"}', [1.0])
    assert {dict(labels)["alertname"] for labels in prometheus.query("ALERTS")} == {
        "ProfileLoaderNotConverged",
        "ProfileLoaderProfileRejected",
        "ProfileLoaderSourceStale",
    }
