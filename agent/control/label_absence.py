"""Measures how long the labels of profiles that may be removed have been absent from the Node.

A profile is removed only some time after its label is removed, because a pod that was scheduled by
this label may not have started yet. This module records when each label became absent; the plan
decides which profiles are removed. All times are monotonic seconds.
"""

from collections.abc import Callable, Mapping

from agent.core import labels
from agent.core.model import ProfileKind
from agent.core.report import Report
from agent.core.vocabulary import ProfileState

ProfileName = tuple[ProfileKind, str]


class LabelAbsence:
    """Stores the time since which each label has been known to be absent.

    Only the main thread uses this class.
    """

    def __init__(self, *, domain: str, labels_on_node: Callable[[], frozenset[str] | None]) -> None:
        """Create an object in which no label is absent yet.

        Args:
            domain: the domain of the agent's labels.
            labels_on_node: returns the labels that are or may be on the Node, or None if they are
                unknown.
        """
        self.domain = domain
        self.labels_on_node = labels_on_node
        self.absent_since: Mapping[ProfileName, float] = {}
        """Maps a profile to the time since which its label has been known to be absent."""

    def update(self, report: Report | None, now: float) -> bool:
        """Compare the Node's labels with the profiles that no source desires any more.

        If a label was absent at the last successful read of the Node, it counts as absent while the
        Node cannot be read.

        Returns:
            Whether the set of profiles whose labels are known to be absent has changed.
        """
        before = self.absent_since.keys()
        on_node = self.labels_on_node()
        self.absent_since = {
            name: self.absent_since.get(name, now)
            for name in undesired(report)
            if (
                labels.label_key(*name, self.domain) not in on_node
                if on_node is not None
                else name in self.absent_since
            )
        }
        return self.absent_since.keys() != before

    def seconds(self, now: float) -> dict[ProfileName, float]:
        """Return how many seconds each absent label has been known to be absent."""
        # The result is rounded, because the floating-point result of (since + grace) - since may be
        # less than grace.
        return {name: round(now - since, 6) for name, since in self.absent_since.items()}

    def removal_times(self, grace_seconds: float) -> list[float]:
        """Return the end of the grace period of each absent label."""
        return [since + grace_seconds for since in self.absent_since.values()]


def undesired(report: Report | None) -> list[ProfileName]:
    """Return the profiles that are on the node although no source desires them any more."""
    rows = report.profiles if report is not None else ()
    return [
        (row.kind, row.name) for row in rows if row.state == ProfileState.HELD and not row.desired
    ]
