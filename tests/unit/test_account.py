"""What a report says of each action and its outcome, and the exit status that follows."""

import pytest

from agent.core import account
from agent.core.action import Adopt, Hold, Keep, Put, Release, Remove
from agent.core.desired import Desired
from agent.core.model import (
    Blind,
    Emptied,
    Id,
    Missing,
    Profile,
    Read,
    Rejection,
    Seen,
    Unreadable,
    Unsupported,
    Version,
)
from agent.core.ports import Sandbox
from agent.core.problems import Problem
from agent.core.reconcile import Outcome
from agent.core.report import Report, Row, SetStatus, Support, exit_status

ID = Id(kind="seccomp", origin="dir /p", key="audit.json")
WARNED = Problem(code="not_enforcing", where="audit.json", what="It only logs.")
UNLABELLED = Problem(code="node_unreachable", where="n1", what="The API server is away.")
FAILED = Problem(code="write_failed", where="audit.json", what="The disk is full.")
VERSION = Version(provides=("audit.json",), source="s", body="b")
PROFILE = Profile(id=ID, version=VERSION, source=b"", body=b"", remarks=(WARNED,))
PUT = Put(id=ID, why="new", names=("audit.json",), profile=PROFILE, ours=frozenset())
RESTORE = Put(id=ID, why="missing", names=("audit.json",), profile=None, ours=frozenset())
ADOPT = Adopt(id=ID, why="same content", names=("audit.json",), profile=PROFILE, evidence={})
KEEP = Keep(id=ID, why="unchanged", names=("audit.json",), profile=PROFILE, evidence={}, how="put")
HOLD = Hold(id=ID, why="rejected", names=(), state="rejected", problems=(FAILED,))
REMOVE = Remove(id=ID, why="not desired", names=("audit.json",), evidence={}, prove=True)
RELEASE = Release(id=ID, why="absent", names=("audit.json",))


def told(action, result, desired=None, problems=()):
    outcome = Outcome(action=action, result=result, version=VERSION, problems=problems)
    report = account.account(
        desired=desired or Desired(), observed={}, sandboxes={}, outcomes=[outcome]
    )
    return [(row.state, row.action) for row in report.rows]


@pytest.mark.parametrize(
    ("action", "result", "expected"),
    [
        (PUT, "done", ("installed", "put")),
        (PUT, "failed", ("failed", "put")),
        (RESTORE, "pending", ("pending", "hold")),
        (PUT, "planned", ("planned", "put")),
        (RESTORE, "done", ("held", "put")),
        (ADOPT, "done", ("installed", "adopt")),
        (ADOPT, "failed", ("failed", "adopt")),
        (ADOPT, "planned", ("planned", "adopt")),
        (KEEP, "done", ("installed", "keep")),
        (KEEP, "failed", ("failed", "keep")),
        (HOLD, "held", ("rejected", "reject")),
        (
            Hold(id=ID, why="x", names=(), state="foreign"),
            "held",
            ("foreign", "hold"),
        ),
        (REMOVE, "done", ("removed", "remove")),
        (REMOVE, "held", ("held", "hold")),
        (REMOVE, "failed", ("failed", "remove")),
        (REMOVE, "planned", ("planned", "remove")),
        (RELEASE, "done", ("released", "release")),
        (RELEASE, "failed", ("failed", "release")),
        (RELEASE, "planned", ("planned", "release")),
    ],
)
def test_each_outcome_has_a_state_and_an_action(action, result, expected):
    """A row says installed only when the node was seen to hold the desired version."""
    assert told(action, result) == [expected]


def test_a_moved_name_is_not_told_twice():
    """The key that has the name now tells of it."""
    assert told(Release(id=ID, why="moved", names=("audit.json",)), "done") == []


def test_a_restored_version_of_a_refused_key_is_outdated():
    """The last good version is in place, the desired one is not."""
    refused = Desired(rejections={ID: Rejection(id=ID, problems=(FAILED,))})
    assert told(RESTORE, "done", refused) == [("outdated", "put")]


def test_a_row_tells_what_pods_need_and_what_was_verified():
    """Kind, key, localhostProfile, digests, mode and problems stand in one row."""
    version = Version(provides=("web", "web//hat"), source="s", body="p", modes={"web": "enforce"})
    id_ = Id(kind="apparmor", origin="dir /p", key="web.profile")
    profile = Profile(id=id_, version=version, source=b"", body=b"", remarks=(WARNED,))
    action = Put(id=id_, why="new", names=version.provides, profile=profile, ours=frozenset())
    outcome = Outcome(action=action, result="done", version=version)
    report = account.account(
        desired=Desired(profiles={id_: profile}), observed={}, sandboxes={}, outcomes=[outcome]
    )
    common = {
        "kind": "apparmor",
        "origin": "dir /p",
        "key": "web.profile",
        "state": "installed",
        "action": "put",
        "why": "new",
        "source": "s",
        "policy": "p",
    }
    assert report.rows == (
        Row(name="web", localhost_profile="web", mode="enforce", problems=(WARNED,), **common),
        Row(name="web//hat", localhost_profile="web//hat", **common),
    )


def test_a_duplicate_key_has_rows_of_its_own():
    """Two keys with the same content are both told, one as the other's copy."""
    twin = Id(kind="seccomp", origin="dir /p", key="zwin.json")
    wanted = Desired(profiles={ID: PROFILE}, same={twin: ID})
    outcome = Outcome(action=PUT, result="done", version=VERSION)
    report = account.account(desired=wanted, observed={}, sandboxes={}, outcomes=[outcome])
    assert [(row.key, row.why, row.installed) for row in report.rows] == [
        ("audit.json", "new", "b"),
        ("zwin.json", 'same content as "audit.json"', "b"),
    ]


def test_a_removal_does_not_repeat_the_remarks_of_the_profile():
    """Remarks are about what is put, not about what goes."""
    outcome = Outcome(action=REMOVE, result="done", version=VERSION)
    report = account.account(
        desired=Desired(profiles={ID: PROFILE}), observed={}, sandboxes={}, outcomes=[outcome]
    )
    assert report.rows[0].problems == ()


def test_sets_and_support_are_told_as_four_and_three_answers():
    """Read, emptied, missing and unreadable differ, as do enabled, disabled and unknown."""
    sets = [
        Read(origin="a", revision="", blobs=(), refused=(("k", FAILED),)),
        Emptied(origin="b", revision=""),
        Missing(origin="c", why="no such file"),
        Unreadable(origin="d", why="EIO"),
    ]
    report = account.account(
        desired=Desired(sets={one.origin: one for one in sets}),
        sandboxes={},
        observed={
            "seccomp": Seen(facts={}),
            "apparmor": Unsupported(problem=FAILED),
        },
        outcomes=[],
        problems=[WARNED],
        dry_run=True,
        seconds={"read": 1.0},
    )
    expected = Report(
        rows=(),
        sets=(
            SetStatus(origin="a", state="read", keys=1),
            SetStatus(origin="b", state="emptied", why="it holds no profile"),
            SetStatus(origin="c", state="missing", why="no such file"),
            SetStatus(origin="d", state="unreadable", why="EIO", cause="unanswered"),
        ),
        supports={
            "seccomp": Support(state="enabled"),
            "apparmor": Support(state="disabled", problem=FAILED),
        },
        problems=report.problems,
        dry_run=True,
        seconds={"read": 1.0},
    )
    assert expected == report
    assert [(one.code, one.where) for one in report.problems] == [
        ("not_enforcing", "audit.json"),
        ("source_emptied", "b"),
        ("source_missing", "c"),
        ("source_unreadable", "d"),
    ]
    blind = account.account(
        desired=Desired(), observed={"apparmor": Blind(problem=FAILED)}, sandboxes={}, outcomes=[]
    )
    assert blind.supports == {"apparmor": Support(state="unknown", problem=FAILED)}


def test_the_state_of_a_sandbox_is_in_the_support_and_a_missing_one_is_a_problem():
    """A sandbox is active, missing with a problem, or not needed by the kind."""
    seen = {"apparmor": Seen(facts={}), "seccomp": Seen(facts={})}
    for sandbox, sandboxed, problems in (
        (Sandbox(), True, ()),
        (Sandbox(problem=WARNED), False, (WARNED,)),
        (None, None, ()),
    ):
        found = account.account(
            desired=Desired(),
            observed=seen,
            sandboxes={"apparmor": sandbox, "seccomp": None},
            outcomes=[],
        )
        assert found.supports == {
            "apparmor": Support(state="enabled", sandboxed=sandboxed),
            "seccomp": Support(state="enabled"),
        }
        assert found.problems == problems


def report(*states, sets=("read",), problems=()):
    rows = tuple(
        Row(
            kind="seccomp",
            origin="",
            key="",
            name="",
            localhost_profile="",
            state=state,
            action="hold",
            why="",
        )
        for state in states
    )
    status = tuple(SetStatus(origin=str(i), state=state) for i, state in enumerate(sets))
    return Report(rows=rows, sets=status, supports={}, problems=tuple(problems))


@pytest.mark.parametrize(
    ("given", "flags", "status"),
    [
        (report("installed", "held", "removed", "released", "planned"), {}, 0),
        (report("rejected"), {}, 1),
        (report("outdated"), {}, 1),
        (report("foreign"), {}, 1),
        (report("failed"), {}, 1),
        (report("unobservable"), {"allow_unsupported": True}, 1),
        (report("unsupported"), {}, 1),
        (report("unsupported"), {"allow_unsupported": True}, 0),
        (report(sets=("emptied",)), {}, 1),
        (report(sets=("missing",)), {}, 3),
        (report("rejected", sets=("read", "unreadable")), {}, 3),
        (report(problems=[FAILED]), {}, 1),
        (report(problems=[WARNED]), {}, 0),
        (report("installed", problems=[UNLABELLED]), {}, 3),
    ],
)
def test_the_exit_status_follows_from_the_report(given, flags, status):
    """0 all in place, 1 something is not, 3 a source or the API server could not be had."""
    assert exit_status(given, **({"allow_unsupported": False} | flags)) == status


def test_a_pass_has_converged_when_everything_desired_is_in_place():
    """An empty pass has; a Node that could not be labelled changes nothing of what is in place."""
    unlabelled = report("installed", problems=[UNLABELLED])
    reports = [report(), report("installed"), unlabelled, report("failed")]
    assert [one.converged for one in reports] == [True, True, True, False]


def test_a_code_outside_the_table_is_no_problem():
    """Every problem has a code that logs, metrics and the runbook know."""
    with pytest.raises(ValueError, match="no such problem code: nonsense"):
        Problem(code="nonsense", where="", what="")


def test_a_report_has_the_names_of_accepted_and_rejected_keys():
    """A label that stands for a rejected name must not say that its profile is on the node."""
    other = Id(kind="seccomp", origin=ID.origin, key="other.json")
    report = account.account(
        desired=Desired(
            profiles={ID: PROFILE},
            rejections={other: Rejection(id=other, problems=(FAILED,), provides=("other.json",))},
        ),
        observed={"seccomp": Seen(facts={}), "apparmor": Seen(facts={})},
        sandboxes={},
        outcomes=[],
    )
    assert report.names == {"seccomp": frozenset(["audit.json", "other.json"])}


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        ("unanswered", "source_unreadable"),
        ("invalid", "source_unreadable"),
        ("over_limit", "source_over_limit"),
    ],
)
def test_a_set_beyond_a_limit_has_a_code_of_its_own(cause, code):
    """A limit that is exceeded has a code of its own, since another action is needed."""
    found = account.unread(Unreadable(origin="d", why="it is so", cause=cause))
    assert (found.code, found.where, "it is so" in found.what) == (code, "d", True)
