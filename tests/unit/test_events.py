"""Tests of agent.kube.events."""

import re

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import ProfileStatus
from agent.kube import events
from agent.kube.events import BURST, NOTE_BYTES, REFILL_SECONDS, NodeEvent, TokenBucket
from tests.api_server import NAME, UID
from tests.json_object import JsonObject
from tests.reports import SET, report, row

BAD = (Finding(code=FindingCode.NOT_JSON, location="line 3", message="no comma"),)
WORSE = (Finding(code=FindingCode.NOT_JSON, location="line 3", message="no bracket"),)
PROFILE = f'seccomp profile "a.json" of {SET}'


def event_of(
    after: ProfileStatus, before: ProfileStatus | None = None
) -> tuple[events.NodeEvent, ...]:
    """Return the Events for the change of a row. The value None represents a row that does not
    exist.
    """
    first = report(*([before] if before is not None else []))
    return events.transitions(first, report(after))


def normal(reason: str, action: str, note: str) -> tuple[events.NodeEvent]:
    return (NodeEvent(type="Normal", reason=reason, action=action, note=note),)


def warning(reason: str, action: str, note: str) -> tuple[events.NodeEvent]:
    return (NodeEvent(type="Warning", reason=reason, action=action, note=note),)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (
            row(action="install", reason="new"),
            normal("ProfileLoaded", "Load", f"{PROFILE} was loaded (new)"),
        ),
        (
            row(action="replace", reason="unfinished"),
            normal("ProfileLoaded", "Load", f"{PROFILE} was loaded (unfinished)"),
        ),
        (
            row(action="replace", reason="changed"),
            normal("ProfileUpdated", "Update", f"{PROFILE} was updated (changed)"),
        ),
        (
            row(action="replace", reason="recompiled"),
            normal("ProfileUpdated", "Update", f"{PROFILE} was updated (recompiled)"),
        ),
        (
            row(action="restore", reason="drifted"),
            warning(
                "ProfileRestored", "Restore", f"{PROFILE} was changed on the node, and was restored"
            ),
        ),
        (
            row(state="held", action="restore", reason="went missing"),
            warning(
                "ProfileRestored", "Restore", f"{PROFILE} was missing on the node, and was restored"
            ),
        ),
        (
            row(action="restore", reason="same content"),
            normal("ProfileUpdated", "Update", f"{PROFILE} was updated (same content)"),
        ),
        (
            row(state="outdated", action="restore", reason="went missing", findings=BAD),
            warning(
                "ProfileRestored", "Restore", f"{PROFILE} was missing on the node, and was restored"
            ),
        ),
        (
            row(state="removed", action="remove", desired=False),
            normal("ProfileRemoved", "Remove", f"{PROFILE} is no longer desired, and was removed"),
        ),
    ],
)
@pytest.mark.parametrize("before", [None, row(), row(state="failed", findings=BAD)])
def test_each_action_of_the_agent_causes_an_event(
    after: ProfileStatus, before: ProfileStatus | None, expected: tuple[events.NodeEvent]
) -> None:
    """Each action of the agent causes an Event, for any previous state."""
    assert event_of(after, before) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (
            row(state="rejected", action="reject", findings=BAD),
            warning("ProfileRejected", "Reject", f"{PROFILE}: rejected: no comma (line 3)"),
        ),
        (
            row(state="outdated", action="reject", findings=BAD + WORSE),
            warning(
                "ProfileRejected",
                "Reject",
                f"{PROFILE}: outdated; the last good version stays: "
                "no comma (line 3); no bracket (line 3)",
            ),
        ),
        (
            row(state="foreign", findings=BAD),
            warning("ProfileForeign", "Hold", f"{PROFILE}: foreign: no comma (line 3)"),
        ),
        (
            row(state="failed", action="install", reason="new", findings=BAD),
            warning("ProfileFailed", "Load", f"{PROFILE}: failed: no comma (line 3)"),
        ),
        (
            row(state="unobservable", findings=BAD),
            warning("ProfileUnobservable", "Hold", f"{PROFILE}: unobservable: no comma (line 3)"),
        ),
        (
            row(state="unsupported", findings=BAD),
            warning("ProfileUnsupported", "Hold", f"{PROFILE}: unsupported: no comma (line 3)"),
        ),
        (
            row(state="held", desired=False, reason="prune=never"),
            normal("ProfileHeld", "Hold", f"{PROFILE} stays on the node: prune=never"),
        ),
        (
            row(state="held", desired=False, findings=BAD),
            normal("ProfileHeld", "Hold", f"{PROFILE} stays on the node: no comma (line 3)"),
        ),
    ],
)
def test_a_problem_causes_one_event(
    after: ProfileStatus, expected: tuple[events.NodeEvent]
) -> None:
    """A problem causes one Event that contains each finding with its location. An unchanged problem
    causes no Event.
    """
    assert event_of(after, row()) == expected
    assert event_of(after, after) == ()


@pytest.mark.parametrize(
    "after",
    [
        row(),
        row(state="held", desired=False),
        row(state="released", desired=False),
        row(state="accepted"),
        row(state="failed", reason="unchecked"),
    ],
)
def test_the_first_report_of_a_process_has_no_events_of_normal_states(after: ProfileStatus) -> None:
    """The first report of an agent process causes no Events about profiles without findings."""
    assert events.transitions(None, report(after)) == ()


def test_the_first_report_of_a_process_reports_problems() -> None:
    """The first report of an agent process causes Events about problems, because earlier Events may
    have expired.
    """
    bad = row(state="rejected", action="reject", findings=BAD)
    result = events.transitions(None, report(row("b.json"), bad))
    assert [item.reason for item in result] == ["ProfileRejected"]


@pytest.mark.parametrize("after", [row(), row(state="released", desired=False)])
def test_the_end_of_a_problem_causes_no_event(after: ProfileStatus) -> None:
    """The end of a problem does not cause an Event."""
    assert event_of(after, row(state="failed", findings=BAD)) == ()


def test_an_unreadable_source_causes_no_events_of_its_profiles() -> None:
    """The profiles of an unreadable source cause no Events, because they do not change."""
    away = row(state="held", reason="source unavailable")
    assert (event_of(away, row()), event_of(row(), away)) == ((), ())


def test_a_new_reason_of_a_waiting_removal_causes_one_event() -> None:
    """A removal that waits for its label causes no Event. If a process uses the profile, the
    removal causes one Event.
    """
    first = row(state="held", desired=False, reason="label_pending")
    used = row(state="held", desired=False, reason="in_use", findings=BAD)
    assert event_of(first, row()) == ()
    assert event_of(used, first) == normal(
        "ProfileHeld", "Hold", f"{PROFILE} stays on the node: no comma (line 3)"
    )
    assert event_of(row(state="held", desired=False, reason="in_use", findings=WORSE), used) == ()


def test_a_new_reason_for_a_rejection_causes_an_event() -> None:
    """If another version is rejected for a new reason, the rejection causes another Event."""
    assert event_of(
        row(state="rejected", findings=WORSE), row(state="rejected", findings=BAD)
    ) == warning("ProfileRejected", "Reject", f"{PROFILE}: rejected: no bracket (line 3)")


def test_a_key_with_several_profiles_causes_one_event() -> None:
    """A key with several profiles causes one Event. Two reports are compared by kind, profile set,
    key and name.
    """
    bad = row("", "rejected", key="a.json", findings=BAD)
    assert event_of(bad) == warning(
        "ProfileRejected", "Reject", f"{PROFILE}: rejected: no comma (line 3)"
    )
    assert len(events.transitions(None, report(bad, bad))) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (FindingCode.DRIFT_FOUGHT, "ProfileFoughtOver"),
        (FindingCode.CONFINEMENT_LOST, "ConfinementLost"),
    ],
)
def test_contention_and_lost_confinement_cause_events_when_they_begin(
    code: FindingCode, reason: str
) -> None:
    """Findings of contention and lost confinement cause one Event each, when they begin."""
    finding = Finding(code=code, location="web", message="It event.", hint="Find who.")
    with_it = report(findings=(finding,))
    expected = warning(reason, "Repair", "It event. Find who.")
    assert events.transitions(None, with_it) == expected
    assert events.transitions(report(), with_it) == expected
    assert events.transitions(with_it, with_it) == ()
    assert events.transitions(with_it, report()) == ()
    more = Finding(code=code, location="web", message="It event twice.", hint="Find who.")
    assert events.transitions(with_it, report(findings=(more,))) == ()


def test_problems_of_the_api_server_cause_no_events() -> None:
    """Problems of the API server cause no Events, because Events would increase the load."""
    finding = Finding(code=FindingCode.NODE_UNREACHABLE, location="n", message="x")
    assert events.transitions(None, report(findings=(finding,))) == ()


def test_the_bucket_allows_a_burst_and_then_one_event_in_five_minutes() -> None:
    """After a burst of Events, the bucket allows one Event every five minutes."""
    now = [0.0]
    bucket = TokenBucket(clock=lambda: now[0])
    assert [bucket.take() for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    now[0] = REFILL_SECONDS - 1
    assert bucket.take() is False
    now[0] = REFILL_SECONDS
    assert [bucket.take(), bucket.take()] == [True, False]
    now[0] = 1e6
    assert [bucket.take() for _ in range(BURST + 1)] == [True] * BURST + [False]


def test_warnings_have_priority_and_omitted_events_are_counted() -> None:
    """Warnings have priority over other Events, and omitted Events are counted. Events of the same
    type stay in order.
    """
    loaded = [NodeEvent(type="Normal", reason=f"R{n}", action="Load", note="") for n in range(30)]
    (bad,) = warning("ProfileFailed", "Load", "")
    bucket = TokenBucket(clock=lambda: 0.0)
    assert events.take_allowed([*loaded, bad], bucket) == ([bad, *loaded[: BURST - 1]], 31 - BURST)
    assert events.take_allowed([bad], bucket) == ([], 1)
    assert events.take_allowed([], bucket) == ([], 0)


def body(
    note: str = "said", node: str = NAME, at: float = 1_700_000_000.25, number: int = 1
) -> JsonObject:
    (event,) = normal("ProfileLoaded", "Load", note)
    return events.body(event, node=node, uid=UID, at=at, number=number)


def test_an_event_is_about_the_node_in_the_namespace_default() -> None:
    """An Event is about the Node, in the namespace default, so that `kubectl describe node` shows
    it.
    """
    result = body()
    name = result["metadata"]["name"]
    assert re.fullmatch(rf"{NAME}\.[0-9a-f]{{16}}", name)
    assert result == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "eventTime": "2023-11-14T22:13:20.250000Z",
        "reportingController": "profile-loader.io/agent",
        "reportingInstance": "profile-loader-worker",
        "type": "Normal",
        "reason": "ProfileLoaded",
        "action": "Load",
        "note": "said",
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": NAME, "uid": UID},
    }


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (1_700_000_000.0, "2023-11-14T22:13:20.000000Z"),
        (1_700_000_000.9999999, "2023-11-14T22:13:21.000000Z"),
        (1_700_000_000.1234567, "2023-11-14T22:13:20.123457Z"),
    ],
)
def test_the_time_of_an_event_has_six_fraction_digits(at: float, expected: str) -> None:
    """The time of an Event always has six fractional digits. Rounding up may lead to the next
    second.
    """
    assert body(at=at)["eventTime"] == expected


def test_each_event_has_its_own_name() -> None:
    """Each Event has a unique name. If two Events have the same time and content, a number makes
    their names different.
    """
    names = {body(number=number)["metadata"]["name"] for number in range(100)}
    assert len(names) == 100


def test_a_long_node_name_is_shortened() -> None:
    """A long Node name is shortened, because an object name has at most 253 characters and a
    reporting instance has at most 128.
    """
    result = body(node="n" * 253)
    assert (len(result["metadata"]["name"]), len(result["reportingInstance"])) == (217, 128)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ("a\nb\x00c\u202ed", "a b c d"),
        ("\ud800", " "),
        ("a" * NOTE_BYTES, "a" * NOTE_BYTES),
        ("a" * (NOTE_BYTES + 1), "a" * (NOTE_BYTES - 3) + "..."),
        ("ü" * NOTE_BYTES, "ü" * 510 + "..."),
    ],
)
def test_a_note_is_printable_and_at_most_1024_bytes(note: str, expected: str) -> None:
    """A note contains only printable characters and at most 1024 bytes. No character is truncated
    in the middle.
    """
    assert body(note)["note"] == expected
