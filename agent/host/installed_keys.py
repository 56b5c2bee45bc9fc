"""Records the size of the keys that have an installed version, for threads that must not read the
ledger.

`agent.host.ledger` updates the sizes with each read and write of an entry. Sources use these sizes
to decide which ConfigMaps are within their limits.
"""

from collections.abc import Iterable

from agent.core.model import InstalledSize, KeyId, LedgerEntry, Version
from agent.host.filesystem import Host


class InstalledKeys:
    """The keys with an installed version in the ledger, by profile set.

    Only the main thread may call the other methods. Any thread may call `size`.
    """

    def __init__(self, host: Host, sources: str) -> None:
        """Create an empty record.

        Args:
            host: the file system of the host.
            sources: the directory of the stored sources, whose names are their digests.
        """
        self._host = host
        self._sources = sources
        self._bytes_by_key: dict[KeyId, int] = {}
        self._by_profile_set: dict[str, InstalledSize] = {}

    def size(self, profile_set: str) -> InstalledSize:
        """Return the size of the keys of a profile set that have an installed version."""
        return self._by_profile_set.get(profile_set, InstalledSize())

    def replace(self, entries: Iterable[LedgerEntry]) -> None:
        """Replace all recorded keys with the keys of the given ledger entries."""
        by_key = {entry.id: entry for entry in entries}
        for id_ in self._bytes_by_key.keys() - by_key.keys():
            self.remove(id_)
        for entry in by_key.values():
            self.record(entry)

    def record(self, entry: LedgerEntry) -> None:
        """Record a ledger entry that is new or has changed."""
        size = None if entry.installed is None else self._size(entry.id, entry.installed)
        self._update(entry.id, size)

    def remove(self, id_: KeyId) -> None:
        """Record that a ledger entry was deleted."""
        self._update(id_, None)

    def _size(self, id_: KeyId, version: Version) -> int:
        """Return the size of a key's name and content; an unknown content counts as empty."""
        signature = self._host.signature(f"{self._sources}/{version.source_digest}")
        return len(id_.key) + (signature[2] if signature is not None else 0)

    def _update(self, id_: KeyId, size: int | None) -> None:
        """Change the size of one key; None means that the key has no installed version."""
        before = self._bytes_by_key.pop(id_, None)
        total = self.size(id_.profile_set)
        count = total.key_count + (size is not None) - (before is not None)
        content_bytes = total.content_bytes + (size or 0) - (before or 0)
        if size is not None:
            self._bytes_by_key[id_] = size
        if count:
            updated = InstalledSize(key_count=count, content_bytes=content_bytes)
            self._by_profile_set[id_.profile_set] = updated
        else:
            self._by_profile_set.pop(id_.profile_set, None)
