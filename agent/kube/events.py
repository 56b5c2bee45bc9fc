"""Events on the Node: what changed from one report to the next.

Rule 1: on transitions only; a state that stays says nothing. Rule 2: never more than the bucket
holds, never waiting; what is left out is counted.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import INSTALLS, ON_NODE, ActionName, ProfileState, Reason

NOTE_BYTES: Final = 1024  # kubernetes, pkg/apis/core/validation/events.go: NoteLengthLimit
# client-go, tools/record/events_cache.go: defaultSpamBurst, defaultSpamQPS.
BURST: Final = 25
REFILL_SECONDS: Final = 300.0
PATH: Final = "/apis/events.k8s.io/v1/namespaces/default/events"
CONTROLLER: Final = "profile-loader.io/agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One thing to tell: a reason in CamelCase, what was done, and a note for people."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


def transitions(before: Report | None, after: Report) -> tuple[Happened, ...]:
    """Return what happened between two reports; before is None for the first of a process."""
    known = {_id(row): row for row in before.profiles} if before is not None else {}
    found: dict[Happened, None] = {}
    for row in after.profiles:
        told = _told(known.get(_id(row)), row)
        if told is not None:
            found[told] = None
    old = {(one.code, one.location) for one in (before.findings if before is not None else ())}
    for finding in after.findings:
        if finding.code in _NODE_REASONS and (finding.code, finding.location) not in old:
            reason = _NODE_REASONS[finding.code]
            note = f"{finding.message} {finding.hint}"
            found[Happened(type="Warning", reason=reason, action="Repair", note=note)] = None
    return tuple(found)


_NODE_REASONS: Final[Mapping[str, str]] = {
    "drift_fought": "ProfileFoughtOver",
    "confinement_lost": "ConfinementLost",
}


def _id(row: ProfileStatus) -> tuple[str, str, str, str]:
    return (row.kind, row.profile_set, row.key, row.name)


def _told(before: ProfileStatus | None, row: ProfileStatus) -> Happened | None:
    was = (before.state, _codes(before)) if before is not None else None
    now = (row.state, _codes(row))
    what = f'{row.kind} profile "{row.name or row.key}" of {row.profile_set}'
    if row.action in INSTALLS and row.state in ON_NODE:
        if row.action == ActionName.RESTORE:
            note = f"{what} was {_DRIFT[row.reason]} and is restored"
            return Happened(type="Warning", reason="ProfileRestored", action="Restore", note=note)
        if row.state == ProfileState.INSTALLED:
            new = row.reason in (Reason.NEW, Reason.UNFINISHED, Reason.TAKEN_OVER)
            return Happened(
                type="Normal",
                reason="ProfileLoaded" if new else "ProfileUpdated",
                action="Load" if new else "Update",
                note=f"{what} is {'loaded' if new else 'updated'} ({row.reason})",
            )
    if row.action == ActionName.REMOVE and row.state == ProfileState.REMOVED:
        note = f"{what} is no longer desired and is removed"
        return Happened(type="Normal", reason="ProfileRemoved", action="Remove", note=note)
    quiet = row.state in (ProfileState.INSTALLED, ProfileState.HELD, ProfileState.RELEASED)
    if was == now or (before is None and quiet):
        return None
    if row.state == ProfileState.HELD and (
        row.desired or row.reason == _PENDING or _was_held(before)
    ):
        return None  # a source that is away changes nothing on the node, on any of its profiles
    return _worse(row, what)


def _was_held(before: ProfileStatus | None) -> bool:
    """Return whether it was told already that the profile stays, and why."""
    return before is not None and before.state == ProfileState.HELD and before.reason != _PENDING


_PENDING: Final = Reason.LABEL_PENDING  # it goes soon, or another reason will be told then
_DRIFT: Final = {
    Reason.WENT_MISSING: "gone from the node",
    Reason.DRIFTED: "changed on the node",
}
_REASONS: Final[Mapping[ProfileState, tuple[str, str]]] = {
    ProfileState.REJECTED: ("ProfileRejected", "Reject"),
    ProfileState.OUTDATED: ("ProfileRejected", "Reject"),
    ProfileState.FOREIGN: ("ProfileForeign", "Hold"),
    ProfileState.FAILED: ("ProfileFailed", "Load"),
    ProfileState.UNOBSERVABLE: ("ProfileUnobservable", "Hold"),
    ProfileState.UNSUPPORTED: ("ProfileUnsupported", "Hold"),
}


def _worse(row: ProfileStatus, what: str) -> Happened | None:
    said = "; ".join(f"{one.message} ({one.location})" for one in row.findings)
    if row.state == ProfileState.HELD:
        note = f"{what} stays on the node: {said or row.why}"
        return Happened(type="Normal", reason="ProfileHeld", action="Hold", note=note)
    if row.state not in _REASONS or not row.findings:
        return None
    reason, action = _REASONS[row.state]
    stays = "; the last good version stays" if row.state == ProfileState.OUTDATED else ""
    return Happened(
        type="Warning", reason=reason, action=action, note=f"{what}: {row.state}{stays}: {said}"
    )


def _codes(row: ProfileStatus) -> tuple[str, ...]:
    return tuple(sorted(f"{one.code} {one.message}" for one in row.findings))


class Bucket:
    """A token bucket: at most BURST at once, one more every REFILL_SECONDS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.tokens = float(BURST)
        self.at = clock()

    def take(self) -> bool:
        """Return whether one more may be sent now."""
        now = self.clock()
        self.tokens = min(float(BURST), self.tokens + (now - self.at) / REFILL_SECONDS)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def body(happened: Happened, *, node: str, uid: str, at: float, serial: int) -> dict[str, object]:
    """Return the events.k8s.io/v1 Event; at is in Unix seconds.

    It lies in the namespace default, where the API server wants Events of objects without one.
    """
    seconds, micro = divmod(round(at * 1_000_000), 1_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digest = hashlib.sha256(f"{uid} {at!r} {serial} {happened}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{node[:200]}.{digest}", "namespace": "default"},
        "eventTime": f"{stamp}.{micro:06d}Z",
        "reportingController": CONTROLLER,
        "reportingInstance": f"profile-loader-{node}"[:128],
        "type": happened.type,
        "reason": happened.reason,
        "action": happened.action,
        "note": _bounded(happened.note),
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
    }


def _bounded(note: str) -> str:
    clean = "".join(one if one.isprintable() else " " for one in note)
    content = clean.encode("utf-8", "replace")
    if len(content) <= NOTE_BYTES:
        return content.decode()
    return content[: NOTE_BYTES - 3].decode("utf-8", "ignore") + "..."


def chosen(happened: Sequence[Happened], bucket: Bucket) -> tuple[list[Happened], int]:
    """Return what may be sent now, warnings first, and how many must be dropped."""
    order = sorted(happened, key=lambda one: one.type != "Warning")
    sent = [one for one in order if bucket.take()]
    return sent, len(order) - len(sent)
