"""Turns the snapshots of the sources into the desired state of one pass.

The inspection results are kept between passes, so that unchanged keys are not inspected again. This
module also applies the total limits of agent.core.admission. This module neither reads nor changes
the node; agent.core.desired combines the results.
"""

import itertools
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.core import desired, diagnostics, model, ports
from agent.core.acknowledgements import SHIPPED, Acknowledgements, acknowledge
from agent.core.admission import LIMITS, AdmissionBudget, Size
from agent.core.model import Inspected, KeyId, LedgerEntry, Profile, ProfileKind, Rejection
from agent.heartbeat import Heartbeat

_Key = tuple[ProfileKind, model.SourceKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Previous:
    """The last desired state and its inputs."""

    snapshots: Sequence[model.Snapshot]
    entries: Mapping[KeyId, LedgerEntry] | None
    """The entries of the ledger; None if they had no influence."""

    desired: desired.Desired


class Inspector:
    """Inspects keys and stores the results. Only the main thread uses this class."""

    def __init__(
        self,
        backends: Mapping[ProfileKind, ports.ProfileBackend],
        heartbeat: Heartbeat,
        acknowledged: Acknowledgements = SHIPPED,
    ) -> None:
        self.backends = backends
        self.heartbeat = heartbeat
        self.acknowledged = acknowledged
        self.revision = 0
        """The number of the last desired state: equal numbers mean equal desired states."""

        self._budget = AdmissionBudget(limits=LIMITS)
        self._results: dict[_Key, Inspected] = {}
        # Only the size of a profile that exceeded a total limit stays in memory.
        self._rejected: dict[_Key, tuple[Size, Rejection]] = {}
        self._previous: _Previous | None = None

    def invalidate(self) -> None:
        """Discard all results, so that the next pass inspects every key."""
        self._results.clear()
        self._rejected.clear()
        self._previous = None

    def desired(
        self, snapshots: Sequence[model.Snapshot], entries: Mapping[KeyId, LedgerEntry]
    ) -> desired.Desired:
        """Return the desired state. If the snapshots are unchanged, the result is the same object
        as in the previous pass.

        If a key exceeded a limit, the ledger entries must be unchanged too, because a removal of
        profiles may have made room for the key.
        """
        previous = self._previous
        if (
            previous is not None
            and previous.snapshots == snapshots
            and previous.entries in (None, entries)
        ):
            return previous.desired
        self.revision += 1
        self._budget = AdmissionBudget(limits=LIMITS, entries=entries)
        reads = [snapshot for snapshot in snapshots if isinstance(snapshot, model.Read)]
        total = sum(len(snapshot.source_keys) for snapshot in reads)
        numbers = itertools.count()

        def inspect(kind: ProfileKind, source_key: model.SourceKey) -> Inspected:
            self.heartbeat.progress("keys checked", next(numbers), total)
            return self._inspect(kind, source_key)

        joined = desired.join(snapshots, inspect, frozenset(self.backends), self._budget)
        self._forget_absent(snapshots)
        # The result for a key is not final if the result may change although the source of the key
        # is unchanged.
        is_final = not joined.unchecked and not joined.pending
        limited = entries if self._budget.has_rejected else None
        previous = _Previous(snapshots=snapshots, entries=limited, desired=joined)
        self._previous = previous if is_final else None
        return joined

    def _forget_absent(self, snapshots: Sequence[model.Snapshot]) -> None:
        """Discard results that are not final, and results of keys that no source provides."""
        current = {
            source_key
            for snapshot in snapshots
            if isinstance(snapshot, model.Read)
            for source_key in snapshot.source_keys
        }
        self._results = {
            key: result
            for key, result in self._results.items()
            if key[1] in current and not isinstance(result, model.Unchecked | model.Pending)
        }
        self._rejected = {
            key: rejected for key, rejected in self._rejected.items() if key[1] in current
        }

    def _inspect(self, kind: ProfileKind, source_key: model.SourceKey) -> Inspected:
        """Return the result for one key, or a rejection if the key exceeds a total limit."""
        self.heartbeat.beat()
        key = (kind, source_key)
        rejected = self._rejected.get(key)
        if rejected is not None and not self._budget.fits(rejected[1].id, rejected[0]):
            return rejected[1]
        inspected = self._results.get(key) or acknowledge(
            self._checked(kind, source_key), self.acknowledged
        )
        admitted = self._budget.admitted(inspected)
        if isinstance(inspected, Profile) and isinstance(admitted, Rejection):
            self._rejected[key] = (self._budget.size(inspected), admitted)
            self._results.pop(key, None)
            self.backends[kind].discard(inspected)
        else:
            self._rejected.pop(key, None)
            self._results[key] = admitted
        return admitted

    def _checked(self, kind: ProfileKind, source_key: model.SourceKey) -> Inspected:
        """Return the result of the backend, or a rejection if the check raises an exception.

        A defect in a check must not affect other keys. If an exception ended the agent, anyone who
        can write a ConfigMap could end the agents on all nodes.
        """
        try:
            return self.backends[kind].inspect(source_key)
        except Exception as error:  # noqa: BLE001 - one key must not affect other keys
            id_ = KeyId(kind=kind, profile_set=source_key.profile_set, key=source_key.key)
            finding = diagnostics.check_failed(id_, type(error).__name__, _lines(error))
            return Rejection(id=id_, findings=(finding,))


def _lines(error: Exception) -> str:
    """Return the last lines of code in the traceback of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:])
