"""Counts the keys that have an installed version, for threads that must not read the ledger.

`agent.host.ledger` updates the counts with each read and write of an entry. Sources use the counts
to decide which ConfigMaps have room.
"""

from collections.abc import Iterable

from agent.core.model import KeyId, LedgerEntry


class InstalledKeys:
    """The keys with an installed version in the ledger, by profile set.

    Only the main thread changes the keys. Any thread may call `count`.
    """

    def __init__(self) -> None:
        self._by_profile_set: dict[str, set[KeyId]] = {}

    def count(self, profile_set: str) -> int:
        """Return how many keys of a profile set have an installed version."""
        return len(self._by_profile_set.get(profile_set, ()))

    def replace(self, entries: Iterable[LedgerEntry]) -> None:
        """Replace all keys with the keys of the ledger entries."""
        by_profile_set: dict[str, set[KeyId]] = {}
        for entry in entries:
            if entry.installed is not None:
                by_profile_set.setdefault(entry.id.profile_set, set()).add(entry.id)
        self._by_profile_set = by_profile_set

    def record(self, entry: LedgerEntry) -> None:
        """Record a new or a changed entry."""
        if entry.installed is None:
            self.remove(entry.id)
        else:
            self._by_profile_set.setdefault(entry.id.profile_set, set()).add(entry.id)

    def remove(self, id_: KeyId) -> None:
        """Record that an entry was deleted."""
        keys = self._by_profile_set.get(id_.profile_set, set())
        keys.discard(id_)
        if not keys:
            self._by_profile_set.pop(id_.profile_set, None)
