"""Tell what a pass found and did: outcomes become the rows of a report.

Rule 1: this module decides what to say; it reads nothing and writes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from agent.core import admission
from agent.core.actions import MOVED, Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.desired import Desired
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    KeyId,
    Missing,
    Observation,
    Observed,
    ProfileKind,
    Read,
    Snapshot,
    Unobservable,
    Unreadable,
    Unsupported,
    Version,
)
from agent.core.ports import Sandbox
from agent.core.report import (
    ActionName,
    KindSupport,
    ProfileSetStatus,
    ProfileStatus,
    Report,
    State,
)


def build_report(  # noqa: PLR0913 - what a pass consists of
    *,
    desired: Desired,
    observed: Mapping[ProfileKind, Observed],
    sandboxes: Mapping[ProfileKind, Sandbox | None],
    outcomes: Sequence[Outcome],
    findings: Iterable[Finding] = (),
    dry_run: bool = False,
    seconds: Mapping[str, float] | None = None,
) -> Report:
    """Return the report of one pass, its rows in the order of kind, name and key."""
    rows = [row for outcome in outcomes for row in _rows(outcome, desired)]
    for other, first in desired.duplicates.items():
        rows += [
            replace(
                row,
                profile_set=other.profile_set,
                key=other.key,
                reason=f'same content as "{first.key}"',
            )
            for row in rows
            if (row.kind, row.profile_set, row.key) == (first.kind, first.profile_set, first.key)
            and row.action != "remove"
        ]
    return Report(
        profiles=tuple(sorted(rows, key=lambda row: (row.kind, row.name or row.key, row.key))),
        profile_sets=tuple(
            replace(
                profile_set_status(one),
                left_out=desired.left_out.get(origin, 0),
                unlisted=desired.unlisted.get(origin, 0),
            )
            for origin, one in desired.profile_sets.items()
        ),
        kind_support={kind: support_of(one, sandboxes.get(kind)) for kind, one in observed.items()},
        findings=(
            *findings,
            *(one for one in map(unread_source, desired.profile_sets.values()) if one),
            *(admission.unlisted(origin, count) for origin, count in desired.unlisted.items()),
            *unsandboxed(sandboxes.values()),
            *(
                one
                for seen in observed.values()
                if isinstance(seen, Observation)
                for one in seen.findings
            ),
        ),
        pending=len(desired.pending) + sum(one.result == "pending" for one in outcomes),
        dry_run=dry_run,
        desired_names={
            kind: names for kind in observed if (names := _desired_names(kind, desired))
        },
        seconds=seconds or {},
    )


def _desired_names(kind: ProfileKind, desired: Desired) -> frozenset[str]:
    """Return every name of a kind that an accepted or a rejected key provides."""
    accepted = [one.version.names for id_, one in desired.profiles.items() if id_.kind == kind]
    rejected = [one.names for id_, one in desired.rejections.items() if id_.kind == kind]
    return frozenset(name for names in (*accepted, *rejected) for name in names)


def _rows(outcome: Outcome, desired: Desired) -> Iterable[ProfileStatus]:
    action = outcome.action
    state, name = _state(outcome, desired)
    if outcome.result == "pending":
        state, name = "pending", "hold"
    if state is None:
        return
    findings = _findings(outcome, desired)
    desires = not isinstance(action, Remove | Release) and (
        not isinstance(action, Hold) or action.desired
    )
    held = frozenset(outcome.version.names) if outcome.version is not None else frozenset()
    for index, provided in enumerate(action.names or ("",)):
        row = _row(action.id, provided, outcome.version if provided in held else None)
        yield replace(
            row,
            state=state,
            action=name,
            reason=action.reason,
            desired=desires,
            findings=findings * (index == 0),
        )


def _findings(outcome: Outcome, desired: Desired) -> tuple[Finding, ...]:
    """Return an outcome's problems, the profile's own remarks after them."""
    action = outcome.action
    said = action.findings if isinstance(action, Install | Hold) else ()
    profile = desired.profiles.get(action.id)
    remarks = profile.findings if profile is not None else ()
    if isinstance(action, Remove | Release):
        remarks = ()
    return tuple(dict.fromkeys(outcome.findings + said + remarks))


def _row(id_: KeyId, name: str, held: Version | None) -> ProfileStatus:
    """Return what is known of a name, before what was done about it is filled in."""
    return ProfileStatus(
        kind=id_.kind,
        profile_set=id_.profile_set,
        key=id_.key,
        name=name,
        localhost_profile=name,
        state="held",
        action="hold",
        reason="",
        source_digest=held.source_digest if held is not None else "",
        installed=held.body_digest if held is not None and id_.kind == "seccomp" else "",
        policy=held.body_digest if held is not None and id_.kind == "apparmor" else "",
        mode=held.modes.get(name, "") if held is not None else "",
    )


def _state(outcome: Outcome, desired: Desired) -> tuple[State | None, ActionName]:  # noqa: PLR0911 - one return a case
    """Return a row's state (None: nothing to tell) and its action."""
    action = outcome.action
    failed = outcome.result == "failed"
    planned = outcome.result == "planned"
    match action:
        case Install(profile=profile):
            if failed or planned:
                return ("failed" if failed else "planned"), "put"
            return ("installed" if profile is not None else _stays(action.id, desired)), "put"
        case Adopt():
            return ("failed" if failed else "planned" if planned else "installed"), "adopt"
        case Keep():
            return ("failed" if failed else "installed"), "keep"
        case Hold(state=state):
            return state, "reject" if state == "rejected" else "hold"
        case Remove():
            if outcome.result == "held":
                return "held", "hold"
            return ("failed" if failed else "planned" if planned else "removed"), "remove"
        case Release(reason=why):
            if failed:
                return "failed", "release"
            quiet = why in (MOVED, "never installed") or outcome.result == "held"
            return (None if quiet else "planned" if planned else "released"), "release"
        case unreachable:
            assert_never(unreachable)


def _stays(id_: KeyId, desired: Desired) -> State:
    """Return the state of a last good version that is in place."""
    return "outdated" if desired.has(id_) else "held"


_HINTS = {
    "missing": "Check --source and what is mounted there; what it provided stays.",
    "unreadable": "Make it readable; nothing is removed until then.",
    "over_limit": "Delete or shrink ConfigMaps; the oldest ones are read first.",
    "emptied": "If that is meant, --allow-empty removes what it provided.",
}


def unread_source(snapshot: Snapshot) -> Finding | None:
    """Return why a set gave no profiles, or None if it was read."""
    told = profile_set_status(snapshot)
    if told.state == "read":
        return None
    reason = "over_limit" if told.cause == "over_limit" else told.state
    return Finding(
        code=f"source_{reason}",
        location=told.profile_set,
        message=f"The source is {reason.replace('_', ' the ')}: {told.reason}.",
        hint=_HINTS[reason],
    )


def profile_set_status(snapshot: Snapshot) -> ProfileSetStatus:
    """Return how reading a set went."""
    match snapshot:
        case Read():
            keys = len(snapshot.source_keys) + len(snapshot.refused)
            return ProfileSetStatus(profile_set=snapshot.profile_set, state="read", keys=keys)
        case Emptied():
            return ProfileSetStatus(
                profile_set=snapshot.profile_set, state="emptied", reason="it holds no profile"
            )
        case Missing():
            return ProfileSetStatus(
                profile_set=snapshot.profile_set, state="missing", reason=snapshot.reason
            )
        case Unreadable(reason=why, cause=cause):
            return ProfileSetStatus(
                profile_set=snapshot.profile_set, state="unreadable", reason=why, cause=cause
            )
        case unreachable:
            assert_never(unreachable)


def unsandboxed(sandboxes: Iterable[Sandbox | None]) -> tuple[Finding, ...]:
    """Return why programs that read texts run without a sandbox."""
    found = (one.finding for one in sandboxes if one is not None)
    return tuple(one for one in found if one is not None)


def support_of(observed: Observed, sandbox: Sandbox | None) -> KindSupport:
    """Return whether a node that shows this can have profiles of the kind."""
    sandboxed = sandbox.finding is None if sandbox is not None else None
    match observed:
        case Observation():
            return KindSupport(state="enabled", sandboxed=sandboxed)
        case Unobservable():
            return KindSupport(state="unknown", finding=observed.finding, sandboxed=sandboxed)
        case Unsupported():
            return KindSupport(state="disabled", finding=observed.finding, sandboxed=sandboxed)
        case unreachable:
            assert_never(unreachable)
