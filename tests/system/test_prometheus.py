"""Real Prometheus: it likes the metrics, the alerts fire when they should, and it scrapes them."""

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

from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.reporting.http_server import READING_CONNECTIONS, HttpServer
from agent.reporting.metrics import Metrics
from tests.reports import status_store
from tests.system.cluster import free_port, until
from tests.system.guest import pace

MONITORING = Path("manifests/monitoring")
ALERTS = Path("tests/system/alerts.yaml")
PATIENCE_SECONDS = 60.0


def promtool(*words, stdin=None, cwd=None):
    done = subprocess.run(
        ["promtool", *words], input=stdin, cwd=cwd, capture_output=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.fixture
def metrics():
    """Give metrics in which everything has happened once."""
    one = Metrics("1.2.3")
    finding = Finding(code="not_json", location="b.json", message="no JSON")
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
    """Return a server of these metrics."""
    store = status_store(metrics, version="1.2.3")
    running = HttpServer("127.0.0.1:0", store)
    running.start()
    return running


@pytest.fixture
def rules(tmp_path):
    """Give a directory with the groups of the PrometheusRule as rules.yaml."""
    made = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(made["spec"]))
    return tmp_path


def test_promtool_has_nothing_to_say_about_the_metrics(metrics):
    """Names, types, units and helps are as the conventions want them."""
    _, body = metrics.expose("text/plain")
    assert promtool("check", "metrics", stdin=body) == (0, "")


def test_promtool_accepts_the_rules(rules):
    """Every expression and template is read; lint is an error."""
    status, said = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", cwd=rules)
    number = len(yaml.safe_load((rules / "rules.yaml").read_text())["groups"][0]["rules"])
    assert (status, re.findall(r"SUCCESS: (\d+) rules", said)) == (0, [str(number)]), said


def test_every_alert_fires_in_its_case_and_in_no_other(rules):
    """Each has a case of its own in alerts.yaml, and is silent when all is well."""
    shutil.copy(ALERTS, rules)
    status, said = promtool("test", "rules", ALERTS.name, cwd=rules)
    assert (status, "SUCCESS" in said) == (0, True), said
    alerts = {
        one["alert"]
        for one in yaml.safe_load((rules / "rules.yaml").read_text())["groups"][0]["rules"]
    }
    cases = [
        one
        for case in yaml.safe_load(ALERTS.read_text())["tests"]
        for one in case["alert_rule_test"]
    ]
    assert {one["alertname"] for one in cases if "exp_alerts" in one} == alerts
    assert {one["alertname"] for one in cases if "exp_alerts" not in one} == alerts


# --- a Prometheus that scrapes --------------------------------------------------------------------


class Prometheus:
    """One that scrapes a server every second, with the rules loaded."""

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
        """Return what it answers: value by labels."""
        words = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(  # noqa: S310 - http only
            f"{self.url}/api/v1/query?{words}", timeout=50
        ) as answer:
            found = json.load(answer)["data"]["result"]
        return {
            tuple(sorted((key, value) for key, value in one["metric"].items())): float(
                one["value"][1]
            )
            for one in found
        }

    def until(self, expression, expected):
        """Ask again and again until the answer's values are these."""

        def asked():
            assert self.process.poll() is None, self.said()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                return list(self.query(expression).values()) == expected
            return False

        until(asked, lambda: f"{expression} is {expected}: {self.said()}", PATIENCE_SECONDS)

    def said(self):
        self.log.seek(0)
        return self.log.read().decode()[-2000:]

    def stop(self):
        self.process.terminate()
        self.process.wait(pace.scaled(20))
        self.log.close()


@pytest.fixture
def prometheus(rules, server):
    """Give a Prometheus that scrapes the server."""
    one = Prometheus(rules, f"127.0.0.1:{server.port}")
    try:
        yield one
    finally:
        one.stop()


def dashboard():
    """Return the dashboard's expressions, with its variables filled in as Grafana does."""
    made = json.loads((MONITORING / "dashboard.json").read_text())
    return [
        target["expr"].replace("$node", ".*").replace("$__rate_interval", "1m")
        for panel in made["panels"]
        for target in panel["targets"]
    ]


def test_a_real_prometheus_scrapes_the_agent(prometheus, server, metrics):
    """While idle connections are open, too; names and values arrive as they are meant.

    Every expression of the dashboard has an answer.
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
    # What there is nothing of (no rate yet) is an answer too; what cannot be read is an error.
    empty = [one for one in dashboard() if not prometheus.query(one)]
    assert [one for one in empty if "rate(" not in one] == []


def test_an_alert_is_pending_in_a_real_prometheus(prometheus):
    """The rules are loaded, and their labels fit the metrics as they are scraped."""
    prometheus.until('ALERTS{alertname="ProfileLoaderNotConverged", alertstate="pending"}', [1.0])
    prometheus.until('ALERTS{alertname="ProfileLoaderSourceStale"}', [1.0])
    assert {dict(one)["alertname"] for one in prometheus.query("ALERTS")} == {
        "ProfileLoaderNotConverged",
        "ProfileLoaderProfileRejected",
        "ProfileLoaderSourceStale",
    }
