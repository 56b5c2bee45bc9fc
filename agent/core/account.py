"""Tell what a pass found and did: outcomes become the rows of a report.

Rule 1: this module decides what to say; it reads nothing and writes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from agent.core import admission
from agent.core.action import MOVED, Adopt, Hold, Keep, Put, Release, Remove
from agent.core.desired import Desired
from agent.core.model import (
    Blind,
    Emptied,
    Id,
    KindName,
    Missing,
    Observed,
    Read,
    Seen,
    Snapshot,
    Unreadable,
    Unsupported,
    Version,
)
from agent.core.ports import Sandbox
from agent.core.problems import Problem
from agent.core.reconcile import Outcome
from agent.core.report import ActionName, Report, Row, SetStatus, State, Support


def account(  # noqa: PLR0913 - what a pass consists of
    *,
    desired: Desired,
    observed: Mapping[KindName, Observed],
    sandboxes: Mapping[KindName, Sandbox | None],
    outcomes: Sequence[Outcome],
    problems: Iterable[Problem] = (),
    dry_run: bool = False,
    seconds: Mapping[str, float] | None = None,
) -> Report:
    """Return the report of one pass, its rows in the order of kind, name and key."""
    rows = [row for outcome in outcomes for row in _rows(outcome, desired)]
    for other, first in desired.same.items():
        rows += [
            replace(row, origin=other.origin, key=other.key, why=f'same content as "{first.key}"')
            for row in rows
            if (row.kind, row.origin, row.key) == (first.kind, first.origin, first.key)
            and row.action != "remove"
        ]
    return Report(
        rows=tuple(sorted(rows, key=lambda row: (row.kind, row.name or row.key, row.key))),
        sets=tuple(
            replace(
                status(one),
                left_out=desired.left_out.get(origin, 0),
                unlisted=desired.unlisted.get(origin, 0),
            )
            for origin, one in desired.sets.items()
        ),
        supports={kind: support(one, sandboxes.get(kind)) for kind, one in observed.items()},
        problems=(
            *problems,
            *(one for one in map(unread, desired.sets.values()) if one),
            *(admission.unlisted(origin, count) for origin, count in desired.unlisted.items()),
            *unsandboxed(sandboxes.values()),
            *(one for seen in observed.values() if isinstance(seen, Seen) for one in seen.remarks),
        ),
        pending=len(desired.pending) + sum(one.result == "pending" for one in outcomes),
        dry_run=dry_run,
        names={kind: names for kind in observed if (names := _desired_names(kind, desired))},
        seconds=seconds or {},
    )


def _desired_names(kind: KindName, desired: Desired) -> frozenset[str]:
    """Return every name of a kind that an accepted or a rejected key provides."""
    accepted = [one.version.provides for id_, one in desired.profiles.items() if id_.kind == kind]
    rejected = [one.provides for id_, one in desired.rejections.items() if id_.kind == kind]
    return frozenset(name for names in (*accepted, *rejected) for name in names)


def _rows(outcome: Outcome, desired: Desired) -> Iterable[Row]:
    action = outcome.action
    state, name = _state(outcome, desired)
    if outcome.result == "pending":
        state, name = "pending", "hold"
    if state is None:
        return
    problems = _problems(outcome, desired)
    desires = not isinstance(action, Remove | Release) and (
        not isinstance(action, Hold) or action.desired
    )
    held = frozenset(outcome.version.provides) if outcome.version is not None else frozenset()
    for index, provided in enumerate(action.names or ("",)):
        row = _row(action.id, provided, outcome.version if provided in held else None)
        yield replace(
            row,
            state=state,
            action=name,
            why=action.why,
            desired=desires,
            problems=problems * (index == 0),
        )


def _problems(outcome: Outcome, desired: Desired) -> tuple[Problem, ...]:
    """Return an outcome's problems, the profile's own remarks after them."""
    action = outcome.action
    said = action.problems if isinstance(action, Put | Hold) else ()
    profile = desired.profiles.get(action.id)
    remarks = profile.remarks if profile is not None else ()
    if isinstance(action, Remove | Release):
        remarks = ()
    return tuple(dict.fromkeys(outcome.problems + said + remarks))


def _row(id_: Id, name: str, held: Version | None) -> Row:
    """Return what is known of a name, before what was done about it is filled in."""
    return Row(
        kind=id_.kind,
        origin=id_.origin,
        key=id_.key,
        name=name,
        localhost_profile=name,
        state="held",
        action="hold",
        why="",
        source=held.source if held is not None else "",
        installed=held.body if held is not None and id_.kind == "seccomp" else "",
        policy=held.body if held is not None and id_.kind == "apparmor" else "",
        mode=held.modes.get(name, "") if held is not None else "",
    )


def _state(outcome: Outcome, desired: Desired) -> tuple[State | None, ActionName]:  # noqa: PLR0911 - one return a case
    """Return a row's state (None: nothing to tell) and its action."""
    action = outcome.action
    failed = outcome.result == "failed"
    planned = outcome.result == "planned"
    match action:
        case Put(profile=profile):
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
        case Release(why=why):
            if failed:
                return "failed", "release"
            quiet = why in (MOVED, "never installed") or outcome.result == "held"
            return (None if quiet else "planned" if planned else "released"), "release"
        case unreachable:
            assert_never(unreachable)


def _stays(id_: Id, desired: Desired) -> State:
    """Return the state of a last good version that is in place."""
    return "outdated" if desired.has(id_) else "held"


_HINTS = {
    "missing": "Check --source and what is mounted there; what it provided stays.",
    "unreadable": "Make it readable; nothing is removed until then.",
    "over_limit": "Delete or shrink ConfigMaps; the oldest ones are read first.",
    "emptied": "If that is meant, --allow-empty removes what it provided.",
}


def unread(snapshot: Snapshot) -> Problem | None:
    """Return why a set gave no profiles, or None if it was read."""
    told = status(snapshot)
    if told.state == "read":
        return None
    reason = "over_limit" if told.cause == "over_limit" else told.state
    return Problem(
        code=f"source_{reason}",
        where=told.origin,
        what=f"The source is {reason.replace('_', ' the ')}: {told.why}.",
        hint=_HINTS[reason],
    )


def status(snapshot: Snapshot) -> SetStatus:
    """Return how reading a set went."""
    match snapshot:
        case Read():
            keys = len(snapshot.blobs) + len(snapshot.refused)
            return SetStatus(origin=snapshot.origin, state="read", keys=keys)
        case Emptied():
            return SetStatus(origin=snapshot.origin, state="emptied", why="it holds no profile")
        case Missing():
            return SetStatus(origin=snapshot.origin, state="missing", why=snapshot.why)
        case Unreadable(why=why, cause=cause):
            return SetStatus(origin=snapshot.origin, state="unreadable", why=why, cause=cause)
        case unreachable:
            assert_never(unreachable)


def unsandboxed(sandboxes: Iterable[Sandbox | None]) -> tuple[Problem, ...]:
    """Return why programs that read texts run without a sandbox."""
    found = (one.problem for one in sandboxes if one is not None)
    return tuple(one for one in found if one is not None)


def support(observed: Observed, sandbox: Sandbox | None) -> Support:
    """Return whether a node that shows this can have profiles of the kind."""
    sandboxed = sandbox.problem is None if sandbox is not None else None
    match observed:
        case Seen():
            return Support(state="enabled", sandboxed=sandboxed)
        case Blind():
            return Support(state="unknown", problem=observed.problem, sandboxed=sandboxed)
        case Unsupported():
            return Support(state="disabled", problem=observed.problem, sandboxed=sandboxed)
        case unreachable:
            assert_never(unreachable)
