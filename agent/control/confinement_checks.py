"""Decides when the confinement trackers observe processes, and under which profiles.

If a profile is removed, its processes may lose their confinement permanently, so the agent reports
such processes. This module only reads reports; the trackers read the processes. The controller and
`--oneshot` use this module.
"""

from collections.abc import Iterable, Mapping

from agent.core.findings import Finding
from agent.core.model import LedgerEntry, ProfileKind
from agent.core.ownership import recorded_names
from agent.core.ports import ConfinementTracker
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ProfileState, Reason


class ConfinementChecks:
    """The confinement trackers of all profile kinds that have one.

    Only the main thread uses this class.
    """

    def __init__(self, trackers: Mapping[ProfileKind, ConfinementTracker]) -> None:
        self.trackers = trackers
        self._names: dict[ProfileKind, list[str]] = {}
        self._unused: frozenset[tuple[ProfileKind, str]] = frozenset()

    def observe_recorded(self, entries: Iterable[LedgerEntry]) -> None:
        """Record the processes under every profile of the ledger, before a pass."""
        self._names = {kind: [] for kind in self.trackers}
        for entry in entries:
            if entry.id.kind in self._names:
                self._names[entry.id.kind] += recorded_names(entry)
        self.observe()

    def end_pass(self, report: Report) -> None:
        """Find the processes that a removal has unconfined, and observe the processes of all other
        profiles.
        """
        for kind, tracker in self.trackers.items():
            rows = [row for row in report.profiles if row.kind == kind and row.name]
            tracker.record_removals([row.name for row in rows if _is_removed(row)])
            self._names[kind] = [
                row.name for row in rows if row.desired or row.state == ProfileState.HELD
            ]
        self.observe()

    def observe(self) -> None:
        """Record the processes that currently run under the profiles."""
        for kind, tracker in self.trackers.items():
            tracker.observe(self._names.get(kind, ()))

    def has_newly_unused(self, report: Report | None) -> bool:
        """Return whether a profile that was kept because it was in use is no longer in use.

        Each profile is returned only once, even if the next pass cannot remove the profile.
        """
        rows = report.profiles if report is not None else ()
        in_use = {
            (kind, name)
            for kind, tracker in self.trackers.items()
            for name in tracker.names_in_use()
        }
        stayed = {
            (row.kind, row.name)
            for row in rows
            if row.kind in self.trackers and row.reason == Reason.IN_USE
        }
        before, self._unused = self._unused, frozenset(stayed - in_use)
        return not self._unused <= before

    def unconfined_processes(self) -> int:
        """Return how many running processes have lost their confinement."""
        return sum(tracker.count() for tracker in self.trackers.values())

    def findings(self) -> tuple[Finding, ...]:
        """Return a finding for each profile whose processes lost their confinement."""
        return tuple(
            finding for tracker in self.trackers.values() for finding in tracker.findings()
        )


def _is_removed(row: ProfileStatus) -> bool:
    """Return whether a pass found a profile missing from the node, or removed it."""
    return row.reason in (Reason.WENT_MISSING, Reason.ABSENT) or row.state == ProfileState.REMOVED
