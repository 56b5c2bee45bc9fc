"""Specification of agent.kube.events."""

import re

import pytest

from agent.core.findings import Finding
from agent.kube import events
from agent.kube.events import BURST, NOTE_BYTES, REFILL_SECONDS, Bucket, Happened
from tests.api_server import NAME, UID
from tests.reports import SET, report, row

BAD = (Finding(code="not_json", location="line 3", message="no comma"),)
WORSE = (Finding(code="not_json", location="line 3", message="no bracket"),)
WHAT = f'seccomp profile "a.json" of {SET}'


def told(after, before=None):
    """Return what happened from one row to another; None: there was no such row before."""
    first = report(*([before] if before is not None else []))
    return events.transitions(first, report(after))


def normal(reason, action, note):
    return (Happened(type="Normal", reason=reason, action=action, note=note),)


def warning(reason, action, note):
    return (Happened(type="Warning", reason=reason, action=action, note=note),)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (
            row(action="install", reason="new"),
            normal("ProfileLoaded", "Load", f"{WHAT} is loaded (new)"),
        ),
        (
            row(action="replace", reason="unfinished"),
            normal("ProfileLoaded", "Load", f"{WHAT} is loaded (unfinished)"),
        ),
        (
            row(action="replace", reason="changed"),
            normal("ProfileUpdated", "Update", f"{WHAT} is updated (changed)"),
        ),
        (
            row(action="replace", reason="recompiled"),
            normal("ProfileUpdated", "Update", f"{WHAT} is updated (recompiled)"),
        ),
        (
            row(action="restore", reason="drifted"),
            warning(
                "ProfileRestored", "Restore", f"{WHAT} was changed on the node and is restored"
            ),
        ),
        (
            row(state="held", action="restore", reason="went missing"),
            warning("ProfileRestored", "Restore", f"{WHAT} was gone from the node and is restored"),
        ),
        (
            row(state="outdated", action="restore", reason="went missing", findings=BAD),
            warning("ProfileRestored", "Restore", f"{WHAT} was gone from the node and is restored"),
        ),
        (
            row(state="removed", action="remove", desired=False),
            normal("ProfileRemoved", "Remove", f"{WHAT} is no longer desired and is removed"),
        ),
    ],
)
@pytest.mark.parametrize("before", [None, row(), row(state="failed", findings=BAD)])
def test_what_the_agent_did_is_told_each_time(after, before, expected):
    """Whatever was before: it happened now."""
    assert told(after, before) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (
            row(state="rejected", action="reject", findings=BAD),
            warning("ProfileRejected", "Reject", f"{WHAT}: rejected: no comma (line 3)"),
        ),
        (
            row(state="outdated", action="reject", findings=BAD + WORSE),
            warning(
                "ProfileRejected",
                "Reject",
                f"{WHAT}: outdated; the last good version stays: "
                "no comma (line 3); no bracket (line 3)",
            ),
        ),
        (
            row(state="foreign", findings=BAD),
            warning("ProfileForeign", "Hold", f"{WHAT}: foreign: no comma (line 3)"),
        ),
        (
            row(state="failed", action="install", reason="new", findings=BAD),
            warning("ProfileFailed", "Load", f"{WHAT}: failed: no comma (line 3)"),
        ),
        (
            row(state="unobservable", findings=BAD),
            warning("ProfileUnobservable", "Hold", f"{WHAT}: unobservable: no comma (line 3)"),
        ),
        (
            row(state="unsupported", findings=BAD),
            warning("ProfileUnsupported", "Hold", f"{WHAT}: unsupported: no comma (line 3)"),
        ),
        (
            row(state="held", desired=False, reason="prune=never"),
            normal("ProfileHeld", "Hold", f"{WHAT} stays on the node: prune=never"),
        ),
        (
            row(state="held", desired=False, findings=BAD),
            normal("ProfileHeld", "Hold", f"{WHAT} stays on the node: no comma (line 3)"),
        ),
    ],
)
def test_what_got_worse_is_told_once(after, expected):
    """With every reason and its place; what stays as it is says nothing more."""
    assert told(after, row()) == expected
    assert told(after, after) == ()


@pytest.mark.parametrize(
    "after",
    [
        row(),
        row(state="held", desired=False),
        row(state="released", desired=False),
        row(state="accepted"),
        row(state="failed", reason="nothing is known"),
    ],
)
def test_the_first_report_of_a_process_repeats_nothing(after):
    """A restart is no transition, and a warning without a reason says nothing."""
    assert events.transitions(None, report(after)) == ()


def test_the_first_report_tells_what_is_wrong():
    """Whoever looks at the Node within the hour sees it."""
    bad = row(state="rejected", action="reject", findings=BAD)
    found = events.transitions(None, report(row("b.json"), bad))
    assert [one.reason for one in found] == ["ProfileRejected"]


@pytest.mark.parametrize("after", [row(), row(state="released", desired=False)])
def test_what_got_better_by_itself_is_not_told(after):
    """The next Load or Update is, and that is what follows."""
    assert told(after, row(state="failed", findings=BAD)) == ()


def test_a_source_that_is_away_makes_no_event_of_its_profiles():
    """Nothing changed on the node; a thousand nodes would say so a hundred times each."""
    away = row(state="held", reason="source unavailable")
    assert (told(away, row()), told(row(), away)) == ((), ())


def test_a_removal_that_waits_for_another_reason_is_told_once():
    """Not that its label comes off first, which passes; but who uses it then."""
    first = row(state="held", desired=False, reason="label_pending")
    used = row(state="held", desired=False, reason="in_use", findings=BAD)
    assert told(first, row()) == ()
    assert told(used, first) == normal(
        "ProfileHeld", "Hold", f"{WHAT} stays on the node: no comma (line 3)"
    )
    assert told(row(state="held", desired=False, reason="in_use", findings=WORSE), used) == ()


def test_another_reason_for_the_same_refusal_is_told():
    """The author has changed something, and it is still wrong."""
    assert told(
        row(state="rejected", findings=WORSE), row(state="rejected", findings=BAD)
    ) == warning("ProfileRejected", "Reject", f"{WHAT}: rejected: no bracket (line 3)")


def test_the_same_is_told_once_for_a_key_that_provides_several_names():
    """Rows are compared by kind, set, key and name; a row without a name says its key."""
    bad = row("", "rejected", key="a.json", findings=BAD)
    assert told(bad) == warning("ProfileRejected", "Reject", f"{WHAT}: rejected: no comma (line 3)")
    assert len(events.transitions(None, report(bad, bad))) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [("drift_fought", "ProfileFoughtOver"), ("confinement_lost", "ConfinementLost")],
)
def test_what_somebody_did_to_the_node_is_told_when_it_begins(code, reason):
    """Once for each, not while it lasts, whatever it says meanwhile, and not when it is over."""
    finding = Finding(code=code, location="web", message="It happened.", hint="Find who.")
    with_it = report(findings=(finding,))
    expected = warning(reason, "Repair", "It happened. Find who.")
    assert events.transitions(None, with_it) == expected
    assert events.transitions(report(), with_it) == expected
    assert events.transitions(with_it, with_it) == ()
    assert events.transitions(with_it, report()) == ()
    more = Finding(code=code, location="web", message="It happened twice.", hint="Find who.")
    assert events.transitions(with_it, report(findings=(more,))) == ()


def test_what_is_wrong_with_the_api_server_is_no_event():
    """It is asked to store it."""
    finding = Finding(code="node_unreachable", location="n", message="x")
    assert events.transitions(None, report(findings=(finding,))) == ()


def test_the_bucket_gives_a_burst_and_then_one_in_five_minutes():
    """And never holds more than a burst, however long nothing happened."""
    now = [0.0]
    bucket = Bucket(clock=lambda: now[0])
    assert [bucket.take() for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    now[0] = REFILL_SECONDS - 1
    assert bucket.take() is False
    now[0] = REFILL_SECONDS
    assert [bucket.take(), bucket.take()] == [True, False]
    now[0] = 1e6
    assert [bucket.take() for _ in range(BURST + 1)] == [True] * BURST + [False]


def test_warnings_are_chosen_first_and_the_rest_is_counted():
    """In their order otherwise."""
    loaded = [Happened(type="Normal", reason=f"R{n}", action="Load", note="") for n in range(30)]
    (bad,) = warning("ProfileFailed", "Load", "")
    bucket = Bucket(clock=lambda: 0.0)
    assert events.chosen([*loaded, bad], bucket) == ([bad, *loaded[: BURST - 1]], 31 - BURST)
    assert events.chosen([bad], bucket) == ([], 1)
    assert events.chosen([], bucket) == ([], 0)


def body(note="said", node=NAME, at=1_700_000_000.25, serial=1):
    (happened,) = normal("ProfileLoaded", "Load", note)
    return events.body(happened, node=node, uid=UID, at=at, serial=serial)


def test_an_event_is_about_the_node_and_lies_in_default():
    """As kubectl describe node finds it; six digits after the second, always."""
    found = body()
    name = found["metadata"]["name"]
    assert re.fullmatch(rf"{NAME}\.[0-9a-f]{{16}}", name)
    assert found == {
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
def test_the_time_of_an_event_is_exact_to_the_digit(at, expected):
    """A whole second has its digits too, and rounding up reaches the next."""
    assert body(at=at)["eventTime"] == expected


def test_no_two_events_have_the_same_name():
    """By the serial number, where time and text are the same."""
    names = {body(serial=serial)["metadata"]["name"] for serial in range(100)}
    assert len(names) == 100


def test_a_long_node_name_fits():
    """The name of an object has 253 characters, a reporting instance 128."""
    found = body(node="n" * 253)
    assert (len(found["metadata"]["name"]), len(found["reportingInstance"])) == (217, 128)


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
def test_a_note_is_one_printable_text_of_at_most_1024_bytes(note, expected):
    """A parser's message may hold anything; no character is cut in two."""
    assert body(note)["note"] == expected
