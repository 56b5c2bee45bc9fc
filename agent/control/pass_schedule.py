"""Decides when the next pass is due, and whether the pass reads everything again.

A pass is due at the end of the resync interval, at the time to retry a failure, or at a deadline
that the controller passes. This module only computes times; the loop that runs the passes is in
agent.controller. All times are monotonic seconds.
"""

import random
from collections.abc import Iterable
from typing import Final

from agent.backoff import Backoff
from agent.core.finding_codes import FindingCode
from agent.core.report import Report
from agent.core.vocabulary import ProfileState
from agent.wake_queue import BURST_SECONDS

FIRST_RETRY_SECONDS: Final = 2.0
LONGEST_RETRY_SECONDS: Final = 3600.0
"""A failure is retried after at most this time, even if the resync interval is longer."""

NODE_CHECK_SECONDS: Final = 10.0
"""The interval at which the node is compared with the result of the last pass, in case a
notification was lost."""

_RETRIED_CODES: Final = frozenset(
    {FindingCode.LEDGER_DAMAGED, FindingCode.KIND_UNOBSERVABLE, FindingCode.SOURCE_UNREADABLE}
)

_Failure = tuple[str, ...]


class PassSchedule:
    """Computes the deadline of the next pass. Any thread may call `request_full_pass`; only the
    main thread may call the other methods.
    """

    def __init__(self, *, resync_seconds: float) -> None:
        self.resync_seconds = resync_seconds
        self.next_pass = 0.0
        """The time at which the next pass is due, unless a wake reason triggers an earlier pass."""

        self.next_full_resync = 0.0
        """The time at which the next pass reads everything again."""

        self._next_node_check = 0.0
        """The time of the next comparison of the node with the result of the last pass."""

        self._burst_until = 0.0
        """A change of the kernel's policy before this time may belong to a burst of changes."""

        self._failures: frozenset[_Failure] = frozenset()
        self._backoff = Backoff(
            first_seconds=FIRST_RETRY_SECONDS,
            longest_seconds=max(FIRST_RETRY_SECONDS, min(LONGEST_RETRY_SECONDS, resync_seconds)),
        )
        self._full_passes_requested = 0
        self._full_passes_begun = 0

    def request_full_pass(self) -> None:
        """Make the next pass read everything again."""
        self._full_passes_requested += 1

    def begin_pass(self, now: float) -> bool:
        """Return whether the pass that starts now reads everything again."""
        requested = self._full_passes_requested
        is_full = now >= self.next_full_resync or requested != self._full_passes_begun
        self._full_passes_begun = requested
        if is_full:
            # The interval has a random factor, so that not all nodes run their resyncs at the same
            # time.
            spread = random.SystemRandom().uniform(0.9, 1.0)
            self.next_full_resync = now + self.resync_seconds * spread
        return is_full

    def end_pass(self, report: Report, now: float, deadlines: Iterable[float]) -> None:
        """Compute when the next pass is due.

        Args:
            report: the result of the pass that has ended.
            now: when the pass ended.
            deadlines: other times at which a pass is needed.
        """
        failures = _failures(report)
        if failures != self._failures:
            self._backoff.reset()
        self._failures = failures
        retries = [now + self._backoff.next_delay()] if failures else []
        repeats = [now] if _makes_room(report) else []
        self.next_pass = min([self.next_full_resync, *repeats, *retries, *deadlines])

    def is_node_check_due(self, now: float) -> bool:
        """Return whether the node must be compared with the last pass."""
        return now >= self._next_node_check

    def record_node_check(self, now: float) -> None:
        """Record that the node was just compared or observed."""
        self._next_node_check = now + NODE_CHECK_SECONDS

    def begin_burst(self, now: float) -> None:
        """Treat policy changes that follow immediately after a pass as a burst."""
        self._burst_until = now + BURST_SECONDS

    def is_in_burst(self, now: float) -> bool:
        """Return whether a policy change may belong to a burst of changes."""
        return now < self._burst_until


def _makes_room(report: Report) -> bool:
    """Return whether a key that exceeds a limit may fit after the removals of this pass."""
    is_limited = any(status.unlisted for status in report.profile_sets) or any(
        finding.code == FindingCode.LIMIT_EXCEEDED
        for row in report.profiles
        for finding in row.findings
    )
    return is_limited and any(
        row.state in (ProfileState.REMOVED, ProfileState.RELEASED) for row in report.profiles
    )


def _failures(report: Report) -> frozenset[_Failure]:
    """Return the failures that only a retry can clear, because no notification reports the end of
    such a failure.
    """
    rows = [
        row
        for row in report.profiles
        if row.state in (ProfileState.FAILED, ProfileState.UNOBSERVABLE)
    ]
    findings = [finding for finding in report.findings if finding.code in _RETRIED_CODES]
    return frozenset(
        [
            *((row.kind, row.name, row.key) for row in rows),
            *((finding.code, finding.location) for finding in findings),
        ]
    )
