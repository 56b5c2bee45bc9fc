"""Decides which changes between two reports become Events on the Node, and creates them.

Only changes of a state cause Events. A token bucket limits the number of Events, and the caller
counts the dropped Events. event_outbox.py stores Events until they are sent.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from agent.core.finding_codes import FindingCode
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import INSTALLS, ON_NODE, ActionName, ProfileState, Reason

# The limit NoteLengthLimit in kubernetes, pkg/apis/core/validation/events.go.
NOTE_BYTES: Final = 1024
# client-go has the same limits (tools/record/events_cache.go: defaultSpamBurst, defaultSpamQPS).
BURST: Final = 25
REFILL_SECONDS: Final = 300.0
PATH: Final = "/apis/events.k8s.io/v1/namespaces/default/events"
CONTROLLER: Final = "profile-loader.io/agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvent:
    """The content of one Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    """A word in CamelCase."""
    action: str
    """The action of the agent, as a word in CamelCase."""
    note: str
    """The human-readable text."""


def transitions(before: Report | None, after: Report) -> tuple[NodeEvent, ...]:
    """Return the Events for the changes between two reports.

    The first report of a process has no previous report.
    """
    previous = {_id(row): row for row in before.profiles} if before is not None else {}
    node_events: dict[NodeEvent, None] = {}
    for row in after.profiles:
        event = _profile_event(previous.get(_id(row)), row)
        if event is not None:
            node_events[event] = None
    reported = {
        (finding.code, finding.location)
        for finding in (before.findings if before is not None else ())
    }
    for finding in after.findings:
        if finding.code in _NODE_REASONS and (finding.code, finding.location) not in reported:
            event = NodeEvent(
                type="Warning",
                reason=_NODE_REASONS[finding.code],
                action="Repair",
                note=f"{finding.message} {finding.hint}",
            )
            node_events[event] = None
    return tuple(node_events)


_NODE_REASONS: Final[Mapping[FindingCode, str]] = {
    FindingCode.DRIFT_FOUGHT: "ProfileFoughtOver",
    FindingCode.CONFINEMENT_LOST: "ConfinementLost",
}


def _id(row: ProfileStatus) -> tuple[str, str, str, str]:
    return (row.kind, row.profile_set, row.key, row.name)


def _profile_event(before: ProfileStatus | None, row: ProfileStatus) -> NodeEvent | None:
    profile = f'{row.kind} profile "{row.name or row.key}" of {row.profile_set}'
    if row.action in INSTALLS and row.state in ON_NODE:
        if row.is_repair:
            note = f"{profile} {_DRIFT[row.reason]}, and was restored"
            return NodeEvent(type="Warning", reason="ProfileRestored", action="Restore", note=note)
        if row.state == ProfileState.INSTALLED:
            is_new = row.reason in (Reason.NEW, Reason.UNFINISHED, Reason.TAKEN_OVER)
            return NodeEvent(
                type="Normal",
                reason="ProfileLoaded" if is_new else "ProfileUpdated",
                action="Load" if is_new else "Update",
                note=f"{profile} was {'loaded' if is_new else 'updated'} ({row.reason})",
            )
    if row.action == ActionName.REMOVE and row.state == ProfileState.REMOVED:
        note = f"{profile} is no longer desired, and was removed"
        return NodeEvent(type="Normal", reason="ProfileRemoved", action="Remove", note=note)
    is_normal = row.state in (ProfileState.INSTALLED, ProfileState.HELD, ProfileState.RELEASED)
    state = (row.state, _codes(row))
    if (before is None and is_normal) or (
        before is not None and state == (before.state, _codes(before))
    ):
        return None
    if row.state == ProfileState.HELD and (
        row.desired or row.reason == _PENDING or _was_held(before)
    ):
        # No Event is needed for the profiles of an unreadable source, because they do not change on
        # the node.
        return None
    return _problem_event(row, profile)


def _was_held(before: ProfileStatus | None) -> bool:
    """Return whether an earlier Event already reported the reason why the profile stays on the
    node.
    """
    return before is not None and before.state == ProfileState.HELD and before.reason != _PENDING


# This state does not last: the profile is removed soon, or stays for another reason.
_PENDING: Final = Reason.LABEL_PENDING
_DRIFT: Final = {
    Reason.WENT_MISSING: "was missing on the node",
    Reason.DRIFTED: "was changed on the node",
}
_REASONS: Final[Mapping[ProfileState, tuple[str, str]]] = {
    ProfileState.REJECTED: ("ProfileRejected", "Reject"),
    ProfileState.OUTDATED: ("ProfileRejected", "Reject"),
    ProfileState.FOREIGN: ("ProfileForeign", "Hold"),
    ProfileState.FAILED: ("ProfileFailed", "Load"),
    ProfileState.UNOBSERVABLE: ("ProfileUnobservable", "Hold"),
    ProfileState.UNSUPPORTED: ("ProfileUnsupported", "Hold"),
}


def _problem_event(row: ProfileStatus, profile: str) -> NodeEvent | None:
    messages = "; ".join(f"{finding.message} ({finding.location})" for finding in row.findings)
    if row.state == ProfileState.HELD:
        note = f"{profile} stays on the node: {messages or row.why}"
        return NodeEvent(type="Normal", reason="ProfileHeld", action="Hold", note=note)
    if row.state not in _REASONS or not row.findings:
        return None
    reason, action = _REASONS[row.state]
    consequence = "; the last good version stays" if row.state == ProfileState.OUTDATED else ""
    note = f"{profile}: {row.state}{consequence}: {messages}"
    return NodeEvent(type="Warning", reason=reason, action=action, note=note)


def _codes(row: ProfileStatus) -> tuple[str, ...]:
    return tuple(sorted(f"{finding.code} {finding.message}" for finding in row.findings))


class TokenBucket:
    """A rate limit that allows BURST Events at once, and after that one Event every
    REFILL_SECONDS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.tokens = float(BURST)
        self.refilled_at = clock()

    def take(self) -> bool:
        """Take a token, or return False if the bucket is empty."""
        now = self.clock()
        self.tokens = min(float(BURST), self.tokens + (now - self.refilled_at) / REFILL_SECONDS)
        self.refilled_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def body(event: NodeEvent, *, node: str, uid: str, at: float, number: int) -> dict[str, object]:
    """Return an Event of events.k8s.io/v1.

    The namespace of the Event is `default`, as the API server requires for Events about
    cluster-scoped objects.

    Args:
        event: the content of the Event.
        node: the name of the Node.
        uid: the uid of the Node.
        at: the Unix time in seconds.
        number: a number that makes the name unique among Events with the same time.
    """
    seconds, micro = divmod(round(at * 1_000_000), 1_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digest = hashlib.sha256(f"{uid} {at!r} {number} {event}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{node[:200]}.{digest}", "namespace": "default"},
        "eventTime": f"{stamp}.{micro:06d}Z",
        "reportingController": CONTROLLER,
        "reportingInstance": f"profile-loader-{node}"[:128],
        "type": event.type,
        "reason": event.reason,
        "action": event.action,
        "note": _bounded(event.note),
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
    }


def _bounded(note: str) -> str:
    """Return a note without control characters, cut to the length that the API server allows."""
    printable = "".join(character if character.isprintable() else " " for character in note)
    content = printable.encode("utf-8", "replace")
    if len(content) <= NOTE_BYTES:
        return content.decode()
    return content[: NOTE_BYTES - 3].decode("utf-8", "ignore") + "..."


def take_allowed(
    node_events: Sequence[NodeEvent], bucket: TokenBucket
) -> tuple[list[NodeEvent], int]:
    """Return the Events that the rate limit allows, warnings first, and the number of Events that
    it does not allow.
    """
    ordered = sorted(node_events, key=lambda event: event.type != "Warning")
    allowed = [event for event in ordered if bucket.take()]
    return allowed, len(ordered) - len(allowed)
