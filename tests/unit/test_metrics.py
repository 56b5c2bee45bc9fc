"""Specification of agent.reporting.metrics and agent.reporting.status_store."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.heartbeat import Heartbeat
from agent.reporting.metrics import Metrics
from agent.reporting.report_metrics import NAMES, SETS
from agent.reporting.status_store import FORMATS
from tests.reports import status_store

PROBLEM = Finding(code="parser_rejected", location="web", message="refused")


def row(name="a.json", state="installed", action="keep", **more):
    fields = {
        "kind": "seccomp",
        "profile_set": "configmap ns/web",
        "key": name,
        "reason": "",
        **more,
    }
    return ProfileStatus(name=name, localhost_profile=name, state=state, action=action, **fields)


def report(*rows, sets=(), **more):
    support = {"seccomp": KindSupport(state="enabled")}
    fields = {"seconds": {"act": 0.25}, "pass_number": 1, **more}
    return Report(profiles=rows, profile_sets=sets, kind_support=support, **fields)


READ = ProfileSetStatus(profile_set="configmap ns/web", state="read", keys=1)


def shown(metrics):
    """Return every series of the agent and its value."""
    _, body = metrics.expose("text/plain")
    lines = [one for one in body.decode().splitlines() if one.startswith("profile_loader_")]
    return {one.rpartition(" ")[0]: float(one.rpartition(" ")[2]) for one in lines}


def test_a_pass_is_counted_and_shown():
    """Profiles by state, actions, repairs, problems, sources and times."""
    metrics = Metrics("1.2.3")
    metrics.passed(
        report(
            row(action="restore", reason="drifted"),
            row("b.json", "rejected", "reject", findings=(PROBLEM,)),
            sets=(READ,),
        ),
        1000.0,
    )
    found = shown(metrics)
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
    assert {name: found.get(name) for name in expected} == expected


def test_the_sandbox_of_a_parser_is_one_or_zero_and_absent_without_a_parser():
    """A kind that starts no program has no series."""
    metrics = Metrics("1")
    supports = {
        "apparmor": KindSupport(state="enabled", sandboxed=True),
        "seccomp": KindSupport(state="enabled"),
    }
    metrics.passed(replace(report(), kind_support=supports), 1000.0)
    series = 'profile_loader_parser_sandboxed{kind="apparmor"}'
    assert {one: value for one, value in shown(metrics).items() if "sandboxed" in one} == {
        series: 1
    }
    supports["apparmor"] = KindSupport(state="enabled", sandboxed=False)
    metrics.passed(replace(report(), kind_support=supports), 1001.0)
    assert shown(metrics)[series] == 0


def test_what_is_over_is_zero_and_what_is_gone_is_gone():
    """A problem's series stays at 0; a name's and a source's series end."""
    metrics = Metrics("1")
    metrics.passed(report(row("old", findings=(PROBLEM,)), sets=(READ,)), 1000.0)
    metrics.passed(report(row("new")), 1300.0)
    found = shown(metrics)
    assert found['profile_loader_problems{code="parser_rejected"}'] == 0
    assert not [one for one in found if "old" in one or "source_up" in one]
    assert found["profile_loader_last_converged_timestamp_seconds"] == 1300


def test_news_of_a_report_are_no_pass():
    """Other problems of the API change gauges and count nothing."""
    metrics = Metrics("1")
    metrics.passed(report(row(action="restore", reason="went missing")), 1000.0)
    metrics.shown(report(row(action="restore", reason="went missing"), findings=(PROBLEM,)))
    found = shown(metrics)
    assert found['profile_loader_drift_repairs_total{cause="missing",kind="seccomp"}'] == 1
    assert found['profile_loader_problems{code="parser_rejected"}'] == 1


def test_only_a_pass_moves_the_times():
    """A stuck loop is seen by them, however often the API server has news."""
    one = board()
    done = report(row(), sets=(READ,))
    one.on_report(done, 1000.0, passed=True)
    before = shown(one.shown)
    one.on_report(done, 1001.0, passed=False)
    assert shown(one.shown) == before
    times = {name: value for name, value in before.items() if "_timestamp_" in name}
    assert times == {
        "profile_loader_last_pass_timestamp_seconds": 1000,
        "profile_loader_last_converged_timestamp_seconds": 1000,
        'profile_loader_source_last_read_timestamp_seconds{origin="configmap ns/web"}': 1000,
    }


def test_a_node_that_may_lack_a_kind_is_converged_without_it():
    """With --allow-unsupported no alert stands for ever where there is no AppArmor."""
    for allowed in (True, False):
        metrics = Metrics("1", allow_unsupported=allowed)
        metrics.passed(report(row("web", "unsupported")), 1000.0)
        found = {name: value for name, value in shown(metrics).items() if "converged" in name}
        assert found == {
            "profile_loader_converged": allowed,
            "profile_loader_last_converged_timestamp_seconds": 1000 * allowed,
            'profile_loader_passes_total{result="converged"}': allowed,
            'profile_loader_passes_total{result="not_converged"}': not allowed,
        }


def test_what_a_whole_kind_has_is_one_problem():
    """A node without AppArmor says so once, with no profile of it and with many."""
    none = Finding(code="kind_unsupported", location="kernel", message="No AppArmor here.")
    refused = row("two", "rejected", "reject", findings=(none, PROBLEM))
    for rows in ((), (row("one", "unsupported", findings=(none,)), refused)):
        metrics = Metrics("1")
        support = {"apparmor": KindSupport(state="disabled", finding=none)}
        metrics.passed(replace(report(*rows), kind_support=support), 1.0)
        assert shown(metrics)['profile_loader_problems{code="kind_unsupported"}'] == 1
    assert shown(metrics)['profile_loader_problems{code="parser_rejected"}'] == 1


def test_a_pass_that_found_nothing_new_counts_no_action_again():
    """It is counted as a pass; what the former one did and how long that took is not."""
    metrics = Metrics("1")
    done = report(row(action="restore", reason="went missing"))
    for at in (1000.0, 1001.0):
        metrics.passed(replace(done, findings=()), at)
    found = shown(metrics)
    assert found['profile_loader_passes_total{result="converged"}'] == 2
    assert found['profile_loader_actions_total{action="restore",kind="seccomp"}'] == 1
    assert found["profile_loader_pass_duration_seconds_count"] == 1
    assert found["profile_loader_last_pass_timestamp_seconds"] == 1001


def test_series_are_bounded():
    """A thousand profiles and sources have no more series of their own than a hundred and fifty."""
    metrics = Metrics("1")
    sets = [replace(READ, profile_set=f"configmap ns/{number}") for number in range(1000)]
    sets[-1] = replace(sets[-1], state="unreadable")
    metrics.passed(report(*(row(f"{one}.json") for one in range(1000)), sets=tuple(sets)), 1.0)
    found = shown(metrics)
    assert len([one for one in found if "profile_available" in one]) == NAMES
    assert len([one for one in found if "source_up" in one]) == SETS
    assert found['profile_loader_source_up{origin="configmap ns/999"}'] == 0
    assert len(found) < NAMES + 2 * SETS + 60


def test_with_the_defaults_there_are_few_series():
    """Both kinds, five profiles, two sources, every verb of the API: fewer than 150."""
    metrics = Metrics("1")
    both = {"apparmor": KindSupport(state="enabled"), "seccomp": KindSupport(state="enabled")}
    sets = (READ, replace(READ, profile_set="configmap ns/more"))
    rows = tuple(row(f"{one}.json", findings=(PROBLEM,)) for one in range(5))
    metrics.passed(replace(report(*rows, sets=sets), kind_support=both), 1.0)
    for verb in ("GET", "PATCH", "POST", "WATCH"):
        metrics.request(verb, "200", 0.1)
    for what in ("configmaps", "node"):
        metrics.watch_restarted(what)
    _, body = metrics.expose("text/plain")
    assert len([one for one in body.splitlines() if not one.startswith(b"#")]) < 150


def test_a_name_of_two_keys_is_there_if_one_of_them_provides_it():
    """The refused one does not hide the other."""
    metrics = Metrics("1")
    one, two = row("web", mode="enforce"), row("web", "rejected", "reject")
    for rows in ((one, two), (two, one)):
        metrics.passed(report(*rows), 1.0)
        found = {name: value for name, value in shown(metrics).items() if "available" in name}
        series = 'profile_loader_profile_available{kind="seccomp",mode="enforce",name="web"}'
        assert found == {series: 1}


def test_a_source_keeps_the_time_when_it_was_last_read():
    """While it cannot be read the time stands still; one that is gone has no series at all."""
    metrics = Metrics("1")
    metrics.passed(report(sets=(READ,)), 1000.0)
    away = replace(READ, state="unreadable")
    never = replace(away, profile_set="configmap ns/never")
    metrics.passed(report(sets=(away, never)), 1300.0)
    sources = {name: value for name, value in shown(metrics).items() if "_source_" in name}
    assert sources == {
        'profile_loader_source_up{origin="configmap ns/web"}': 0,
        'profile_loader_source_up{origin="configmap ns/never"}': 0,
        'profile_loader_source_last_read_timestamp_seconds{origin="configmap ns/web"}': 1000,
    }
    metrics.passed(report(), 1600.0)
    assert [name for name in shown(metrics) if "_source_" in name] == []


def test_counters_of_the_api_are_counted():
    """Requests by verb and code, watches, Events, lost confinement."""
    metrics = Metrics("1")
    metrics.request("PATCH", "200", 0.25)
    metrics.request("WATCH", "200", 300.0)
    metrics.parser_ran(0.5)
    metrics.watch_restarted("node")
    metrics.events_dropped(3)
    metrics.confinement_lost(2)
    found = shown(metrics)
    assert found['profile_loader_api_requests_total{code="200",verb="PATCH"}'] == 1
    durations = {name: value for name, value in found.items() if "duration_seconds_sum" in name}
    assert durations == {
        'profile_loader_api_request_duration_seconds_sum{verb="PATCH"}': 0.25,
        "profile_loader_parser_duration_seconds_sum": 0.5,
        "profile_loader_pass_duration_seconds_sum": 0,
    }
    assert found['profile_loader_watch_restarts_total{what="node"}'] == 1
    assert found["profile_loader_events_dropped_total"] == 3
    assert found["profile_loader_confinement_lost_processes"] == 2


def test_a_scrape_may_ask_for_openmetrics():
    """The content type is the one that was asked for."""
    content_type, body = Metrics("1").expose("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_every_metric_is_documented_as_it_is():
    """docs/metrics.md has a row for each, with its type."""
    told = dict(re.findall(r"^\| `(profile_loader_\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE))
    suffix = {"counter": "_total"}
    collected = [one for one in Metrics("1").registry.collect() if "profile_loader" in one.name]
    assert told == {one.name + suffix.get(one.type, ""): one.type for one in collected}


DOCUMENT = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def board(**more):
    return status_store(Metrics("1"), **more)


def test_ready_is_a_complete_look_and_not_convergence():
    """Before the first pass, and while a kind cannot be seen, it is not ready; else it is."""
    one = board()
    assert one.ready() == "no pass has ended yet"
    one.on_report(report(row("bad", "rejected")), 1.0, passed=True)
    assert one.ready() == ""
    blind = Report(
        profiles=(), profile_sets=(), kind_support={"apparmor": KindSupport(state="unknown")}
    )
    one.on_report(blind, 2.0, passed=True)
    assert one.ready() == "cannot look at apparmor on this node"


def test_health_depends_only_on_the_heartbeat_of_the_loop():
    """A silent API server or a bad profile does not make the agent unhealthy."""
    now = [1000.0]
    one = board(heartbeat=Heartbeat(lambda: now[0]))
    assert one.health() == ""
    now[0] += 100.0
    assert one.health() == "the loop has not turned for 100 s"


def test_passes_that_found_nothing_new_have_no_line():
    """The last passes of the page are those that did or compared something."""
    one = board()
    for at, number in ((1.0, 1), (2.0, 1), (3.0, 2)):
        one.on_report(report(row(), pass_number=number), at, passed=True)
    text = one.status().decode()
    times = re.findall(r"1970-01-01 00:00:0\d UTC", text.partition("<h2>Last passes</h2>")[2])
    assert times == ["1970-01-01 00:00:03 UTC", "1970-01-01 00:00:01 UTC"]


def test_the_page_is_made_once_per_report_and_set_of_labels():
    """Requests share one bytes object until a report or the labels on the Node change."""
    labels = {}
    one = board(labels=lambda: labels)
    one.on_report(report(row()), 1.0, passed=True)
    first = one.status()
    assert one.status() is first
    one.on_report(report(row()), 2.0, passed=True)
    second = one.status()
    assert (second == first, one.status() is second) == (False, True)
    labels["a.example.org/b"] = "installed"
    third = one.status()
    assert (b"a.example.org/b" in third, one.status() is third) == (True, True)


def test_a_scrape_is_shared_until_the_next_report():
    """However often a format is requested, it is rendered once; a report is visible at once."""
    one = board()
    one.on_report(report(row()), 1.0, passed=True)
    scrapes = [one.metrics("")[1] for _ in range(1000)]
    assert len({id(scrape) for scrape in scrapes}) < 1000
    one.on_report(report(row("bad", "rejected")), 2.0, passed=True)
    assert (
        'profile_loader_profiles{kind="seccomp",state="rejected"} 1.0'
        in one.metrics("")[1].decode()
    )


def test_renderings_of_the_metrics_are_bounded_in_number():
    """A client that requests many versions of a format does not fill the cache."""
    one = board()

    def scrape(version):
        accept = f"application/openmetrics-text; version={version}.0.0"
        return one.metrics(accept)[1]

    first = scrape(1)
    last = [scrape(version) for version in range(2, 2 + FORMATS)][-1]
    assert scrape(1) is not first
    assert scrape(1 + FORMATS) is last


@pytest.mark.parametrize("accept", ["text/plain;version=a", "text/plain;version=\xb2", "\0;;=,"])
def test_an_accept_header_that_means_nothing_gives_the_text_format(accept):
    """Anybody may send one, as often as they like."""
    assert Metrics("1").expose(accept)[0] == Metrics("1").expose("")[0]
