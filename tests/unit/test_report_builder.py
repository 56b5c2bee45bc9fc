"""Tests of the report builder: the row of each outcome, and the exit status."""

import pytest

from agent.core import report_builder
from agent.core.actions import Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.desired import Desired
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    KeyId,
    Missing,
    Observation,
    Profile,
    Read,
    Rejection,
    Unobservable,
    Unreadable,
    Unsupported,
    Version,
)
from agent.core.ports import Sandbox
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report, exit_status
from agent.core.vocabulary import (
    ActionName,
    OutcomeResult,
    ProfileSetState,
    ProfileState,
    Provenance,
    Reason,
    SupportState,
)
from tests.narrowing import not_none
from tests.world import CAPABILITIES

ID = KeyId(kind="seccomp", profile_set="dir /p", key="audit.json")
WARNED = Finding(code=FindingCode.NOT_ENFORCING, location="audit.json", message="It only logs.")
UNPUBLISHED = Finding(
    code=FindingCode.NODE_UNREACHABLE, location="n1", message="The API server does not respond."
)
FAILED = Finding(code=FindingCode.WRITE_FAILED, location="audit.json", message="The disk is full.")
VERSION = Version(names=("audit.json",), source_digest="s", body_digest="b")
PROFILE = Profile(id=ID, version=VERSION, source=b"", body_size=0, findings=(WARNED,))
INSTALL = Install(
    id=ID, reason=Reason.NEW, names=("audit.json",), profile=PROFILE, replaceable=frozenset()
)
RESTORE = Install(
    id=ID, reason=Reason.WENT_MISSING, names=("audit.json",), profile=None, replaceable=frozenset()
)
ADOPT = Adopt(
    id=ID, reason=Reason.SAME_CONTENT, names=("audit.json",), profile=PROFILE, evidence={}
)
KEEP = Keep(
    id=ID,
    reason=Reason.UNCHANGED,
    names=("audit.json",),
    profile=PROFILE,
    evidence={},
    provenance=Provenance.INSTALLED,
)
HOLD = Hold(
    id=ID, reason=Reason.REJECTED, names=(), state=ProfileState.REJECTED, findings=(FAILED,)
)
REMOVE = Remove(
    id=ID, reason=Reason.NOT_DESIRED, names=("audit.json",), evidence={}, require_unused=True
)
RELEASE = Release(id=ID, reason=Reason.ABSENT, names=("audit.json",))


def states_and_actions(
    action: object, result: str, desired: Desired | None = None, findings: tuple[object, ...] = ()
) -> list[tuple[ProfileState | str, ActionName]]:
    outcome = Outcome(action=action, result=result, version=VERSION, findings=findings)
    report = report_builder.build_report(
        report_builder.PassResult(
            desired=desired or Desired(),
            observed={},
            capabilities=CAPABILITIES,
            sandboxes={},
            outcomes=[outcome],
        )
    )
    return [(row.state, row.action) for row in report.profiles]


@pytest.mark.parametrize(
    ("action", "result", "expected"),
    [
        (INSTALL, "done", ("installed", "install")),
        (INSTALL, "failed", ("failed", "install")),
        (RESTORE, "pending", ("pending", "hold")),
        (INSTALL, "planned", ("planned", "install")),
        (RESTORE, "done", ("held", "restore")),
        (ADOPT, "done", ("installed", "adopt")),
        (ADOPT, "failed", ("failed", "adopt")),
        (ADOPT, "planned", ("planned", "adopt")),
        (KEEP, "done", ("installed", "keep")),
        (KEEP, "failed", ("failed", "keep")),
        (HOLD, "held", ("rejected", "reject")),
        (
            Hold(id=ID, reason="x", names=(), state=ProfileState.FOREIGN),
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
def test_each_outcome_has_a_state_and_an_action(
    action: object, result: str, expected: tuple[str, str]
) -> None:
    """A row is "installed" only if the desired version was observed on the node."""
    assert states_and_actions(action, result) == [expected]


def test_a_moved_name_has_only_one_row() -> None:
    """If a name moved to another key, only this key has a row for the name."""
    assert (
        states_and_actions(Release(id=ID, reason=Reason.MOVED, names=("audit.json",)), "done") == []
    )


def test_a_restored_version_of_a_rejected_key_is_outdated() -> None:
    """The row of a rejected key with a restored last good version has the state "outdated"."""
    rejected = Desired(rejections={ID: Rejection(id=ID, findings=(FAILED,))})
    assert states_and_actions(RESTORE, "done", rejected) == [("outdated", "restore")]


def test_a_row_has_the_localhost_profile_and_the_verified_version() -> None:
    """A row contains kind, key, localhostProfile, digests, mode and findings."""
    version = Version(
        names=("web", "web//hat"), source_digest="s", body_digest="p", modes={"web": "enforce"}
    )
    id_ = KeyId(kind="apparmor", profile_set="dir /p", key="web.profile")
    profile = Profile(id=id_, version=version, source=b"", body_size=0, findings=(WARNED,))
    action = Install(
        id=id_, reason=Reason.NEW, names=version.names, profile=profile, replaceable=frozenset()
    )
    outcome = Outcome(action=action, result=OutcomeResult.DONE, version=version)
    report = report_builder.build_report(
        report_builder.PassResult(
            desired=Desired(profiles={id_: profile}),
            observed={},
            capabilities=CAPABILITIES,
            sandboxes={},
            outcomes=[outcome],
        )
    )
    common = {
        "kind": "apparmor",
        "profile_set": "dir /p",
        "key": "web.profile",
        "state": "installed",
        "action": "install",
        "reason": "new",
        "source_digest": "s",
        "policy": "p",
    }
    assert report.profiles == (
        ProfileStatus(
            name="web", localhost_profile="web", mode="enforce", findings=(WARNED,), **common
        ),
        ProfileStatus(name="web//hat", localhost_profile="web//hat", **common),
    )


def test_a_duplicate_key_has_its_own_row() -> None:
    """A duplicate key has a separate row, which contains the key with the same content."""
    duplicate = KeyId(kind="seccomp", profile_set="dir /p", key="duplicate.json")
    desired = Desired(profiles={ID: PROFILE}, duplicates={duplicate: ID})
    outcome = Outcome(action=INSTALL, result=OutcomeResult.DONE, version=VERSION)
    report = report_builder.build_report(
        report_builder.PassResult(
            desired=desired,
            observed={},
            capabilities=CAPABILITIES,
            sandboxes={},
            outcomes=[outcome],
        )
    )
    assert [(row.key, row.why, row.installed) for row in report.profiles] == [
        ("audit.json", "new", "b"),
        ("duplicate.json", 'same content as "audit.json"', "b"),
    ]


def test_a_removal_does_not_repeat_the_findings_of_the_profile() -> None:
    """Warnings and notices are reported for installed profiles, but not for removed profiles."""
    outcome = Outcome(action=REMOVE, result=OutcomeResult.DONE, version=VERSION)
    report = report_builder.build_report(
        report_builder.PassResult(
            desired=Desired(profiles={ID: PROFILE}),
            observed={},
            capabilities=CAPABILITIES,
            sandboxes={},
            outcomes=[outcome],
        )
    )
    assert report.profiles[0].findings == ()


def test_profile_sets_have_four_states_and_kinds_have_three_states() -> None:
    """A profile set is read, emptied, missing or unreadable. A kind is enabled, disabled or
    unknown.
    """
    sets = [
        Read(
            profile_set="a",
            revision="",
            source_keys=(),
            rejected_keys=(("k", FAILED),),
            created="2026-01-01T00:00:00Z",
        ),
        Emptied(profile_set="b", revision=""),
        Missing(profile_set="c", reason="no such file"),
        Unreadable(profile_set="d", reason="EIO"),
    ]
    report = report_builder.build_report(
        report_builder.PassResult(
            desired=Desired(profile_sets={snapshot.profile_set: snapshot for snapshot in sets}),
            capabilities=CAPABILITIES,
            sandboxes={},
            observed={
                "seccomp": Observation(profiles={}),
                "apparmor": Unsupported(finding=FAILED),
            },
            outcomes=[],
            findings=[WARNED],
            dry_run=True,
            seconds={"read": 1.0},
        )
    )
    expected = Report(
        profiles=(),
        profile_sets=(
            ProfileSetStatus(
                profile_set="a", state=ProfileSetState.READ, keys=1, created="2026-01-01T00:00:00Z"
            ),
            ProfileSetStatus(
                profile_set="b", state=ProfileSetState.EMPTIED, reason="it contains no profile"
            ),
            ProfileSetStatus(profile_set="c", state=ProfileSetState.MISSING, reason="no such file"),
            ProfileSetStatus(
                profile_set="d", state=ProfileSetState.UNREADABLE, reason="EIO", cause="unanswered"
            ),
        ),
        kind_support={
            "seccomp": KindSupport(state=SupportState.ENABLED),
            "apparmor": KindSupport(state=SupportState.DISABLED, finding=FAILED),
        },
        findings=report.findings,
        dry_run=True,
        seconds={"read": 1.0},
    )
    assert expected == report
    assert [(finding.code, finding.location) for finding in report.findings] == [
        ("not_enforcing", "audit.json"),
        ("source_emptied", "b"),
        ("source_missing", "c"),
        ("source_unreadable", "d"),
    ]
    unobservable = report_builder.build_report(
        report_builder.PassResult(
            desired=Desired(),
            observed={"apparmor": Unobservable(finding=FAILED)},
            capabilities=CAPABILITIES,
            sandboxes={},
            outcomes=[],
        )
    )
    assert unobservable.kind_support == {
        "apparmor": KindSupport(state=SupportState.UNKNOWN, finding=FAILED)
    }


def test_a_report_has_the_state_of_the_sandbox_and_a_finding_if_it_is_missing() -> None:
    """The report shows whether the sandbox is active, missing or not needed. A missing sandbox
    causes a finding.
    """
    observed = {"apparmor": Observation(profiles={}), "seccomp": Observation(profiles={})}
    for sandbox, sandboxed, findings in (
        (Sandbox(), True, ()),
        (Sandbox(finding=WARNED), False, (WARNED,)),
        (None, None, ()),
    ):
        built = report_builder.build_report(
            report_builder.PassResult(
                desired=Desired(),
                observed=observed,
                capabilities=CAPABILITIES,
                sandboxes={"apparmor": sandbox, "seccomp": None},
                outcomes=[],
            )
        )
        assert built.kind_support == {
            "apparmor": KindSupport(state=SupportState.ENABLED, sandboxed=sandboxed),
            "seccomp": KindSupport(state=SupportState.ENABLED),
        }
        assert built.findings == findings


def report(
    *states: str,
    sets: tuple[str, ...] = ("read",),
    findings: tuple[object, ...] | list[Finding] = (),
) -> Report:
    rows = tuple(
        ProfileStatus(
            kind="seccomp",
            profile_set="",
            key="",
            name="",
            localhost_profile="",
            state=state,
            action=ActionName.HOLD,
            reason=Reason.NONE,
        )
        for state in states
    )
    status = tuple(
        ProfileSetStatus(profile_set=str(i), state=state) for i, state in enumerate(sets)
    )
    return Report(profiles=rows, profile_sets=status, kind_support={}, findings=tuple(findings))


@pytest.mark.parametrize(
    ("built", "flags", "status"),
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
        (report(findings=[FAILED]), {}, 1),
        (report(findings=[WARNED]), {}, 0),
        (report("installed", findings=[UNPUBLISHED]), {}, 3),
    ],
)
def test_the_exit_status_follows_from_the_report(
    built: Report, flags: dict[str, bool], status: int
) -> None:
    """The exit status follows from the report: 0 for success, 1 for a failure, and 3 for an
    unavailable source or API server.
    """
    assert exit_status(built, **({"allow_unsupported": False} | flags)) == status


def test_a_pass_has_converged_if_every_desired_profile_is_installed() -> None:
    """The node has converged if every desired profile is installed, even if its labels are not
    published.
    """
    unpublished = report("installed", findings=[UNPUBLISHED])
    reports = [report(), report("installed"), unpublished, report("failed")]
    assert [each.converged for each in reports] == [True, True, True, False]


def test_a_report_has_the_names_of_accepted_and_rejected_keys() -> None:
    """A report contains the names of accepted and rejected keys, so that collisions of their label
    keys are found.
    """
    other = KeyId(kind="seccomp", profile_set=ID.profile_set, key="other.json")
    report = report_builder.build_report(
        report_builder.PassResult(
            desired=Desired(
                profiles={ID: PROFILE},
                rejections={other: Rejection(id=other, findings=(FAILED,), names=("other.json",))},
            ),
            observed={"seccomp": Observation(profiles={}), "apparmor": Observation(profiles={})},
            capabilities=CAPABILITIES,
            sandboxes={},
            outcomes=[],
        )
    )
    assert report.desired_names == {"seccomp": frozenset(["audit.json", "other.json"])}


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        ("unanswered", "source_unreadable"),
        ("invalid", "source_unreadable"),
        ("over_limit", "source_over_limit"),
    ],
)
def test_a_source_over_a_limit_has_its_own_code(cause: str, code: str) -> None:
    """The finding about a source above a limit has another code than the finding about an
    unreadable source.
    """
    finding = not_none(
        report_builder.source_finding(
            Unreadable(profile_set="d", reason="2 MiB are too much", cause=cause)
        )
    )
    assert (finding.code, finding.location, "2 MiB are too much" in finding.message) == (
        code,
        "d",
        True,
    )
