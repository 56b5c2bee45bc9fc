"""Stores the ledger entries of one pass in memory and on disk.

The object writes every change to the ledger first. If the write fails, the ledger entries in memory
stay unchanged, and the caller receives a finding. Only the main thread uses this module.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from agent.core.findings import Finding
from agent.core.model import Evidence, KeyId, LedgerEntry, ProfileKind, Version
from agent.core.ownership import is_installed_by_agent, owned_names
from agent.core.ports import Ledger
from agent.core.vocabulary import Provenance


class LedgerEntries:
    """Holds the entries of the ledger. Every change is made in the ledger and in memory."""

    def __init__(self, ledger: Ledger, entries: Mapping[KeyId, LedgerEntry]) -> None:
        self.ledger = ledger
        self.by_key = dict(entries)
        self._owners: dict[tuple[ProfileKind, str], set[KeyId]] | None = None
        """Maps each profile name to the keys whose ledger entries own it. This index is built when
        it is first used."""

    def get(self, id_: KeyId) -> LedgerEntry | None:
        """Return the ledger entry of a key, or None if the key has no entry."""
        return self.by_key.get(id_)

    def installed_version(self, id_: KeyId) -> Version | None:
        """Return the installed version of a key, or None if the key has no installed version."""
        entry = self.by_key.get(id_)
        return entry.installed if entry is not None else None

    def owners_of(self, kind: ProfileKind, name: str) -> set[KeyId]:
        """Return the keys whose entries own a profile name."""
        if self._owners is None:
            self._owners = defaultdict(set)
            for entry in self.by_key.values():
                self._update_owners(None, entry)
        return self._owners[kind, name]

    def write(self, entry: LedgerEntry) -> Finding | None:
        """Write a ledger entry, and return a finding if the write failed."""
        finding = self.ledger.write(entry)
        if finding is None:
            self._update_owners(self.by_key.get(entry.id), entry)
            self.by_key[entry.id] = entry
        return finding

    def delete(self, id_: KeyId) -> Finding | None:
        """Delete a ledger entry, and return a finding if the deletion failed."""
        finding = self.ledger.delete(id_)
        if finding is None:
            self._update_owners(self.by_key.pop(id_, None), None)
        return finding

    def commit(self, before: LedgerEntry, version: Version, prefix: str) -> Finding | None:
        """Record a version as installed and verified, in all ledger entries that have this version.

        Profile names that only an earlier, unfinished installation contains stay staged.
        """
        committed = LedgerEntry(
            id=before.id,
            provenance=Provenance.INSTALLED,
            installed=version,
            staged=without_names(before.staged, version.names),
            retired=retired_names(before, version),
            prefix=prefix,
        )
        if committed != self.by_key.get(before.id):
            finding = self.write(committed)
            if finding is not None:
                return finding
        return self._update_evidence(before.id, version)

    def stage(self, before: LedgerEntry, version: Version) -> Finding | None:
        """Record that the installation of a version begins.

        The names and the evidence of an earlier, unfinished installation stay recorded, because its
        version may be on the node.
        """
        earlier = before.staged
        if earlier is not None:
            evidence = {
                name: version.evidence.get(name, frozenset())
                | earlier.evidence.get(name, frozenset())
                for name in (*version.evidence, *earlier.evidence)
            }
            names = tuple(dict.fromkeys((*version.names, *earlier.names)))
            version = replace(version, names=names, evidence=evidence)
        return self.write(replace(before, staged=version))

    def unstage(self, before: LedgerEntry) -> None:
        """Restore the ledger entry as it was before a failed installation."""
        if before.staged is not None or before.installed is not None or before.retired:
            # The staged version of an earlier installation may be on the node.
            self.write(before)
        else:
            self.delete(before.id)

    def forget(self, id_: KeyId, names: Collection[str]) -> Finding | None:
        """Remove profile names from a ledger entry and from its staged version, and delete the
        entry if no name is left.
        """
        entry = self.by_key.get(id_)
        if entry is None:
            return None
        installed = entry.installed
        if installed is not None and not set(installed.names).isdisjoint(names):
            installed = None
        provided = installed.names if installed is not None else ()
        retired = {
            name: evidence
            for name, evidence in owned_names(entry).items()
            if name not in names and name not in provided and is_installed_by_agent(entry, name)
        }
        staged = without_names(entry.staged, names)
        if installed is None and staged is None and not retired:
            return self.delete(id_)
        return self.write(replace(entry, installed=installed, staged=staged, retired=retired))

    def _update_evidence(self, id_: KeyId, version: Version) -> Finding | None:
        """Record the new evidence in all other entries that have the same version installed.

        On a kernel that shows no content, a replacement changes the evidence although the content
        is unchanged.
        """
        ids = {other for name in version.names for other in self.owners_of(id_.kind, name)}
        for other in sorted(ids - {id_}, key=str):
            entry = self.by_key[other]
            installed = entry.installed
            if installed is None or installed.body_digest != version.body_digest:
                continue
            updated = replace(installed, evidence=version.evidence)
            if updated != installed:
                finding = self.write(replace(entry, installed=updated))
                if finding is not None:
                    return finding
        return None

    def _update_owners(self, before: LedgerEntry | None, after: LedgerEntry | None) -> None:
        """If the index of owners exists, update it after a change of one entry."""
        if self._owners is None:
            return
        if before is not None:
            for name in owned_names(before):
                self._owners[before.id.kind, name].discard(before.id)
        if after is not None:
            for name in owned_names(after):
                self._owners[after.id.kind, name].add(after.id)


def retired_names(before: LedgerEntry, version: Version) -> dict[str, Evidence]:
    """Return the agent-owned names of a ledger entry that a new version does not contain."""
    return {
        name: evidence
        for name, evidence in owned_names(before).items()
        if is_installed_by_agent(before, name) and name not in version.names
    }


def without_names(version: Version | None, names: Collection[str]) -> Version | None:
    """Return a version without the given profile names; None if no name is left."""
    if version is None or set(version.names).isdisjoint(names):
        return version
    left = tuple(name for name in version.names if name not in names)
    return replace(version, names=left) if left else None
