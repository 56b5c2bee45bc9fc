"""Tests of agent.reporting.metrics and agent.reporting.status_store."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ProfileSetState, SupportState
from agent.heartbeat import Heartbeat
from agent.reporting import json_report
from agent.reporting.metrics import Metrics
from agent.reporting.report_metrics import NAMES, SETS
from agent.reporting.status_store import FORMATS, StatusStore
from tests.reports import scrape, status_store

PROBLEM = Finding(code=FindingCode.PARSER_REJECTED, location="web", message="refused")


def row(
    name: str = "a.json",
    state: str = "installed",
    action: str = "keep",
    **more: str | tuple[Finding, ...],
) -> ProfileStatus:
    fields = {
        "kind": "seccomp",
        "profile_set": "configmap ns/web",
        "key": name,
        "reason": "",
        **more,
    }
    return ProfileStatus(name=name, localhost_profile=name, state=state, action=action, **fields)


def report(
    *rows: ProfileStatus, sets: tuple[ProfileSetStatus, ...] = (), **more: int | tuple[Finding]
) -> Report:
    support = {"seccomp": KindSupport(state=SupportState.ENABLED)}
    fields = {"seconds": {"act": 0.25}, "pass_number": 1, **more}
    return Report(profiles=rows, profile_sets=sets, kind_support=support, **fields)


READ = ProfileSetStatus(profile_set="configmap ns/web", state=ProfileSetState.READ, keys=1)


def series(metrics: Metrics) -> dict[str, float]:
    """Return the value of every series of the agent."""
    _, body = scrape(metrics, "text/plain")
    lines = [line for line in body.decode().splitlines() if line.startswith("profile_loader_")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_pass_is_counted_and_shown() -> None:
    """After a pass, the series show its profiles, actions, repairs, findings, sources and times."""
    metrics = Metrics("1.2.3")
    metrics.count_pass(
        report(
            row(action="restore", reason="drifted"),
            row("b.json", "rejected", "reject", findings=(PROBLEM,)),
            sets=(READ,),
        ),
        1000.0,
    )
    values = series(metrics)
    expected = {
        'profile_loader_build_info{version="1.2.3"}': 1,
        'profile_loader_profiles{kind="seccomp",state="installed"}': 1,
        'profile_loader_profiles{kind="seccomp",state="rejected"}': 1,
        'profile_loader_profiles{kind="seccomp",state="failed"}': 0,
        'profile_loader_profile_available{kind="seccomp",mode="",name="a.json"}': 1,
        'profile_loader_profile_available{kind="seccomp",mode="",name="b.json"}': 0,
        'profile_loader_actions_total{action="restore",kind="seccomp"}': 1,
        'profile_loader_drift_repairs_total{cause="drifted",kind="seccomp"}': 1,
        'profile_loader_drift_repairs_total{cause="missing",kind="seccomp"}': 0,
        'profile_loader_passes_total{result="not_converged"}': 1,
        'profile_loader_problems{code="parser_rejected"}': 1,
        'profile_loader_source_up{origin="configmap ns/web"}': 1,
        'profile_loader_source_last_read_timestamp_seconds{origin="configmap ns/web"}': 1000,
        'profile_loader_kind_supported{kind="seccomp"}': 1,
        "profile_loader_converged": 0,
        "profile_loader_last_pass_timestamp_seconds": 1000,
        "profile_loader_last_converged_timestamp_seconds": 0,
        "profile_loader_pass_duration_seconds_sum": 0.25,
    }
    assert {name: values.get(name) for name in expected} == expected


def test_the_series_of_the_sandbox_exists_only_for_a_kind_with_a_parser() -> None:
    """The series for the sandbox exists only for a kind with a parser. The value of the series is 1
    with a sandbox, and 0 without a sandbox.
    """
    metrics = Metrics("1")
    supports = {
        "apparmor": KindSupport(state=SupportState.ENABLED, sandboxed=True),
        "seccomp": KindSupport(state=SupportState.ENABLED),
    }
    metrics.count_pass(replace(report(), kind_support=supports), 1000.0)
    name_of_series = 'profile_loader_parser_sandboxed{kind="apparmor"}'
    assert {name: value for name, value in series(metrics).items() if "sandboxed" in name} == {
        name_of_series: 1
    }
    supports["apparmor"] = KindSupport(state=SupportState.ENABLED, sandboxed=False)
    metrics.count_pass(replace(report(), kind_support=supports), 1001.0)
    assert series(metrics)[name_of_series] == 0


def test_the_mode_of_a_security_module_has_one_series_for_each_mode() -> None:
    """The series of the current mode is 1, and the other series are 0."""
    metrics = Metrics("1")
    metrics.count_pass(report(security_modules={"selinux": "permissive"}), 1000.0)
    modes = {name: value for name, value in series(metrics).items() if "security_module" in name}
    assert modes == {
        f'profile_loader_security_module_mode{{mode="{mode}",module="selinux"}}': value
        for mode, value in (
            ("enforcing", 0), ("permissive", 1), ("disabled", 0), ("unknown", 0),
        )
    }  # fmt: skip


def test_the_series_of_a_resolved_finding_is_zero() -> None:
    """The series of a resolved finding has the value 0. The series of a removed source is no longer
    exported.
    """
    metrics = Metrics("1")
    metrics.count_pass(report(row("old", findings=(PROBLEM,)), sets=(READ,)), 1000.0)
    metrics.count_pass(report(row("new")), 1300.0)
    values = series(metrics)
    assert values['profile_loader_problems{code="parser_rejected"}'] == 0
    assert not [name for name in values if "old" in name or "source_up" in name]
    assert values["profile_loader_last_converged_timestamp_seconds"] == 1300


def test_new_findings_between_passes_are_not_counted_as_a_pass() -> None:
    """New findings of the publisher change gauges but no counters, because no pass has run."""
    metrics = Metrics("1")
    metrics.count_pass(report(row(action="restore", reason="went missing")), 1000.0)
    metrics.show_report(report(row(action="restore", reason="went missing"), findings=(PROBLEM,)))
    values = series(metrics)
    assert values['profile_loader_drift_repairs_total{cause="missing",kind="seccomp"}'] == 1
    assert values['profile_loader_problems{code="parser_rejected"}'] == 1


def test_the_repair_of_a_duplicated_profile_counts_once() -> None:
    """If two keys provide the same content, the repair of this content counts once."""
    metrics = Metrics("1")
    duplicate = row(action="restore", reason="same content", reason_text='same content as "a"')
    metrics.count_pass(report(row(action="restore", reason="drifted"), duplicate), 1000.0)
    values = series(metrics)
    assert values['profile_loader_drift_repairs_total{cause="drifted",kind="seccomp"}'] == 1


def test_only_a_pass_changes_the_times() -> None:
    """Only a pass changes the times in the metrics, so that old times reveal a stuck loop."""
    metrics = Metrics("1")
    store = status_store(metrics)
    first = report(row(), sets=(READ,))
    store.on_report(first, 1000.0, passed=True)
    before = series(metrics)
    store.on_report(first, 1001.0, passed=False)
    assert series(metrics) == before
    times = {name: value for name, value in before.items() if "_timestamp_" in name}
    assert times == {
        "profile_loader_last_pass_timestamp_seconds": 1000,
        "profile_loader_last_converged_timestamp_seconds": 1000,
        'profile_loader_source_last_read_timestamp_seconds{origin="configmap ns/web"}': 1000,
    }


def test_a_node_without_a_kind_is_converged_if_that_is_allowed() -> None:
    """If --allow-unsupported is set, a node without AppArmor counts as converged."""
    for allowed in (True, False):
        metrics = Metrics("1", allow_unsupported=allowed)
        metrics.count_pass(report(row("web", "unsupported")), 1000.0)
        values = {name: value for name, value in series(metrics).items() if "converged" in name}
        assert values == {
            "profile_loader_converged": allowed,
            "profile_loader_last_converged_timestamp_seconds": 1000 * allowed,
            'profile_loader_passes_total{result="converged"}': allowed,
            'profile_loader_passes_total{result="not_converged"}': not allowed,
        }


def test_a_finding_about_a_whole_kind_counts_once() -> None:
    """A finding about a whole kind counts once."""
    none = Finding(
        code=FindingCode.KIND_UNSUPPORTED, location="kernel", message="No AppArmor here."
    )
    refused = row("two", "rejected", "reject", findings=(none, PROBLEM))
    for rows in ((), (row("one", "unsupported", findings=(none,)), refused)):
        metrics = Metrics("1")
        support = {"apparmor": KindSupport(state=SupportState.DISABLED, finding=none)}
        metrics.count_pass(replace(report(*rows), kind_support=support), 1.0)
        assert series(metrics)['profile_loader_problems{code="kind_unsupported"}'] == 1
    assert series(metrics)['profile_loader_problems{code="parser_rejected"}'] == 1


def test_an_acknowledged_warning_counts() -> None:
    """The acknowledgement hides a warning only from tables. Metrics and JSON still count it."""
    accepted = Finding(
        code=FindingCode.NOT_ENFORCING, location="a", message="m", is_acknowledged=True
    )
    other = replace(accepted, is_acknowledged=False)
    built = report(row("one", findings=(accepted,)), row("two", findings=(other,)))
    metrics = Metrics("1")
    metrics.count_pass(built, 1.0)
    assert series(metrics)['profile_loader_problems{code="not_enforcing"}'] == 2
    document = json.loads(json_report.document(built, exit_status=0))
    problems = [problem for line in document["profiles"] for problem in line["problems"]]
    assert [(problem["code"], problem["acknowledged"]) for problem in problems] == [
        ("not_enforcing", True),
        ("not_enforcing", False),
    ]


def test_a_repeated_report_counts_no_action_again() -> None:
    """If a pass returns the previous report, only the number of passes and the time of the last
    pass change.
    """
    metrics = Metrics("1")
    first = report(row(action="restore", reason="went missing"))
    for at in (1000.0, 1001.0):
        metrics.count_pass(replace(first, findings=()), at)
    values = series(metrics)
    assert values['profile_loader_passes_total{result="converged"}'] == 2
    assert values['profile_loader_actions_total{action="restore",kind="seccomp"}'] == 1
    assert values["profile_loader_pass_duration_seconds_count"] == 1
    assert values["profile_loader_last_pass_timestamp_seconds"] == 1001


def test_the_number_of_series_is_limited() -> None:
    """A thousand profiles and a thousand sources add at most 200 series."""
    metrics = Metrics("1")
    sets = [replace(READ, profile_set=f"configmap ns/{number}") for number in range(1000)]
    sets[-1] = replace(sets[-1], state=ProfileSetState.UNREADABLE)
    metrics.count_pass(
        report(*(row(f"{number}.json") for number in range(1000)), sets=tuple(sets)), 1.0
    )
    values = series(metrics)
    assert len([name for name in values if "profile_available" in name]) == NAMES
    assert len([name for name in values if "source_up" in name]) == SETS
    assert values['profile_loader_source_up{origin="configmap ns/999"}'] == 0
    assert len(values) < NAMES + 2 * SETS + 60


def test_the_default_configuration_has_few_series() -> None:
    """With the default configuration, two kinds, five profiles, two sources and four verbs have
    fewer than 150 series.
    """
    metrics = Metrics("1")
    both = {
        "apparmor": KindSupport(state=SupportState.ENABLED),
        "seccomp": KindSupport(state=SupportState.ENABLED),
    }
    sets = (READ, replace(READ, profile_set="configmap ns/more"))
    rows = tuple(row(f"{number}.json", findings=(PROBLEM,)) for number in range(5))
    metrics.count_pass(replace(report(*rows, sets=sets), kind_support=both), 1.0)
    for verb in ("GET", "PATCH", "POST", "WATCH"):
        metrics.request(verb, "200", 0.1)
    for what in ("configmaps", "node"):
        metrics.watch_restarted(what)
    _, body = scrape(metrics, "text/plain")
    assert len([line for line in body.splitlines() if not line.startswith(b"#")]) < 150


def test_a_name_of_two_keys_is_available_if_one_of_them_is_installed() -> None:
    """A name that two keys provide is available if one of these keys is installed."""
    metrics = Metrics("1")
    installed, rejected = row("web", mode="enforce"), row("web", "rejected", "reject")
    for rows in ((installed, rejected), (rejected, installed)):
        metrics.count_pass(report(*rows), 1.0)
        values = {name: value for name, value in series(metrics).items() if "available" in name}
        expected_name = 'profile_loader_profile_available{kind="seccomp",mode="enforce",name="web"}'
        assert values == {expected_name: 1}


def test_an_unreadable_source_keeps_the_time_of_its_last_read() -> None:
    """While a source is unreadable, its last read time stays. A removed source, or a source that
    was never read, has no such time.
    """
    metrics = Metrics("1")
    metrics.count_pass(report(sets=(READ,)), 1000.0)
    unreadable = replace(READ, state=ProfileSetState.UNREADABLE)
    never = replace(unreadable, profile_set="configmap ns/never")
    metrics.count_pass(report(sets=(unreadable, never)), 1300.0)
    sources = {name: value for name, value in series(metrics).items() if "_source_" in name}
    assert sources == {
        'profile_loader_source_up{origin="configmap ns/web"}': 0,
        'profile_loader_source_up{origin="configmap ns/never"}': 0,
        'profile_loader_source_last_read_timestamp_seconds{origin="configmap ns/web"}': 1000,
    }
    metrics.count_pass(report(), 1600.0)
    assert [name for name in series(metrics) if "_source_" in name] == []


def test_the_counters_of_the_api_client_are_exposed() -> None:
    """Counters show the requests, watches and Events of the API client, and lost confinement."""
    metrics = Metrics("1")
    metrics.request("PATCH", "200", 0.25)
    metrics.request("WATCH", "200", 300.0)
    metrics.parser_ran(0.5)
    metrics.watch_restarted("node")
    metrics.events_dropped(3)
    metrics.show_unconfined_processes(2)
    values = series(metrics)
    assert values['profile_loader_api_requests_total{code="200",verb="PATCH"}'] == 1
    durations = {name: value for name, value in values.items() if "duration_seconds_sum" in name}
    assert durations == {
        'profile_loader_api_request_duration_seconds_sum{verb="PATCH"}': 0.25,
        "profile_loader_parser_duration_seconds_sum": 0.5,
        "profile_loader_pass_duration_seconds_sum": 0,
    }
    assert values['profile_loader_watch_restarts_total{what="node"}'] == 1
    assert values["profile_loader_events_dropped_total"] == 3
    assert values["profile_loader_confinement_lost_processes"] == 2


def test_a_scrape_can_request_openmetrics() -> None:
    """A scrape can request the OpenMetrics format, and the response then has its content type."""
    content_type, body = scrape(Metrics("1"), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_every_metric_is_documented() -> None:
    """docs/metrics.md contains a row with the type of each metric."""
    documented = dict(re.findall(r"^\| `(profile_loader_\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE))
    suffix = {"counter": "_total"}
    collected = [
        metric for metric in Metrics("1").registry.collect() if "profile_loader" in metric.name
    ]
    assert documented == {
        metric.name + suffix.get(metric.type, ""): metric.type for metric in collected
    }


DOCUMENT = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def store_of(**more: Any) -> StatusStore:
    """Return a status store that has its own metrics."""
    return status_store(Metrics("1"), **more)


def test_the_agent_is_ready_after_a_pass_that_observed_the_whole_node() -> None:
    """The agent is ready after a pass that observed the whole node. A rejected profile does not
    affect readiness.
    """
    store = store_of()
    assert store.ready() == "no pass has ended yet"
    store.on_report(report(row("bad", "rejected")), 1.0, passed=True)
    assert store.ready() == ""
    blind = Report(
        profiles=(),
        profile_sets=(),
        kind_support={"apparmor": KindSupport(state=SupportState.UNKNOWN)},
    )
    store.on_report(blind, 2.0, passed=True)
    assert store.ready() == "cannot observe apparmor on this node"


def test_health_depends_only_on_the_heartbeat_of_the_loop() -> None:
    """Health depends only on the heartbeat of the loop, and not on the API server or the
    profiles.
    """
    now = [1000.0]
    store = store_of(heartbeat=Heartbeat(lambda: now[0]))
    assert store.health() == ""
    now[0] += 100.0
    assert store.health() == "no heartbeat from the main loop for 100 s"


def test_a_pass_that_repeats_a_report_has_no_row_on_the_page() -> None:
    """The status page does not list passes that returned the previous report."""
    store = store_of()
    for at, number in ((1.0, 1), (2.0, 1), (3.0, 2)):
        store.on_report(report(row(), pass_number=number), at, passed=True)
    text = b"".join(store.status()).decode()
    times = re.findall(r"1970-01-01 00:00:0\d UTC", text.partition("<h2>Last passes</h2>")[2])
    assert times == ["1970-01-01 00:00:03 UTC", "1970-01-01 00:00:01 UTC"]


def test_the_page_is_rendered_once_per_report_and_set_of_labels() -> None:
    """The page is rendered once, and all requests share one bytes object until the report or the
    labels change. Only the beginning of the page, which contains the age of the report, is rendered
    for each request.
    """
    labels = {}
    store = store_of(labels=lambda: labels)
    store.on_report(report(row()), 1.0, passed=True)
    beginning, first = store.status()
    assert store.status()[1] is first
    assert len(beginning) < 10_000
    store.on_report(report(row()), 2.0, passed=True)
    _, second = store.status()
    assert (second == first, store.status()[1] is second) == (False, True)
    labels["a.example.org/b"] = "installed"
    _, third = store.status()
    assert (b"a.example.org/b" in third, store.status()[1] is third) == (True, True)


def test_the_json_report_is_rendered_once_per_report() -> None:
    """All requests share one bytes object until the next report."""
    store = store_of(allow_unsupported=True)
    assert store.json() == b""
    store.on_report(report(row("a", "unsupported")), 1.0, passed=True)
    first = store.json()
    assert store.json() is first
    assert json.loads(first)["exit_status"] == 0
    store.on_report(report(row("a", "rejected")), 2.0, passed=True)
    second = store.json()
    assert (json.loads(second)["exit_status"], store.json() is second) == (1, True)


def test_a_scrape_is_shared_until_the_next_report() -> None:
    """Each format of the metrics is rendered once per report for many requests."""
    store = store_of()
    store.on_report(report(row()), 1.0, passed=True)
    scrapes = [store.metrics("")[1] for _ in range(1000)]
    assert len({id(scrape) for scrape in scrapes}) < 1000
    store.on_report(report(row("bad", "rejected")), 2.0, passed=True)
    assert (
        'profile_loader_profiles{kind="seccomp",state="rejected"} 1.0'
        in store.metrics("")[1].decode()
    )


def test_the_number_of_rendered_formats_is_limited() -> None:
    """The number of rendered formats is limited, so that a client cannot fill the memory with many
    format versions.
    """
    store = store_of()

    def scrape(version: int) -> bytes:
        accept = f"application/openmetrics-text; version={version}.0.0"
        return store.metrics(accept)[1]

    first = scrape(1)
    last = [scrape(version) for version in range(2, 2 + FORMATS)][-1]
    assert scrape(1) is not first
    assert scrape(1 + FORMATS) is last


@pytest.mark.parametrize("accept", ["text/plain;version=a", "text/plain;version=\xb2", "\0;;=,"])
def test_a_malformed_accept_header_selects_the_text_format(accept: str) -> None:
    """A malformed Accept header selects the text format."""
    assert scrape(Metrics("1"), accept)[0] == scrape(Metrics("1"))[0]
