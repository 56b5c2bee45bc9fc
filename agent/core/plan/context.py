"""Holds the input of the plan for one profile kind, with indexes for the decisions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.core.desired import Desired
from agent.core.model import KeyId, LedgerEntry, Observation, ObservedProfile, ProfileKind
from agent.core.ownership import is_intact, owned_names
from agent.core.plan.options import PlanOptions
from agent.core.ports import Capabilities


@dataclass(frozen=True, kw_only=True)
class PlanContext:
    """The complete, immutable input for the decisions about one profile kind."""

    kind: ProfileKind
    capabilities: Capabilities
    options: PlanOptions
    desired: Desired
    entries: Mapping[KeyId, LedgerEntry]
    """The ledger entries of this kind."""

    observation: Observation

    @cached_property
    def owners(self) -> Mapping[str, Sequence[LedgerEntry]]:
        """The ledger entries that own each profile name."""
        owners: dict[str, list[LedgerEntry]] = {}
        for entry in self.entries.values():
            for name in owned_names(entry):
                owners.setdefault(name, []).append(entry)
        return owners

    @cached_property
    def providers(self) -> Mapping[str, KeyId]:
        """The accepted key that provides each profile name."""
        return {
            name: id_
            for id_, profile in self.desired.profiles.items()
            if id_.kind == self.kind
            for name in profile.version.names
        }

    @cached_property
    def staging(self) -> Mapping[str, Sequence[LedgerEntry]]:
        """The ledger entries with an unfinished installation of each profile name."""
        staging: dict[str, list[LedgerEntry]] = {}
        for entry in self.entries.values():
            for name in entry.staged.names if entry.staged is not None else ():
                staging.setdefault(name, []).append(entry)
        return staging

    def owners_of(self, name: str) -> Sequence[LedgerEntry]:
        """Return the ledger entries that own a profile name."""
        return self.owners.get(name, ())

    def observed(self, name: str) -> ObservedProfile | None:
        """Return the profile that is on the node under a profile name, or None."""
        return self.observation.profiles.get(name)

    def sorted_keys(self, ids: Collection[KeyId]) -> list[KeyId]:
        """Return the keys of this kind in a stable order."""
        return sorted_keys(ids, self.kind)

    def is_undesired_or_duplicate(self, id_: KeyId) -> bool:
        """Return whether a key no longer exists, or has the same content as another key."""
        return id_ in self.desired.duplicates or not self.desired.contains(id_)

    def foreign_objects(self, names: Iterable[str]) -> frozenset[str]:
        """Return the names of the profiles on the node that other programs created."""
        return frozenset(
            name
            for name in names
            if (profile := self.observed(name)) is not None and profile.is_agent_object is False
        )

    def matching_entry(
        self, entry: LedgerEntry, name: str, profile: ObservedProfile
    ) -> LedgerEntry | None:
        """Return a ledger entry whose evidence matches the profile on the node; None if no entry
        matches.

        The result can be the ledger entry of another key that has the same version. If the node
        shows no content, only the key that was installed last has the evidence of the loaded
        profile.
        """
        body = entry.installed.body_digest if entry.installed is not None else ""
        same_version = (
            other
            for other in self.owners_of(name)
            if other.installed is not None
            and other.installed.body_digest == body
            and name in other.installed.names
        )
        candidates = (entry, *same_version)
        return next((other for other in candidates if is_intact(other, name, profile)), None)


def sorted_keys(ids: Collection[KeyId], kind: ProfileKind) -> list[KeyId]:
    """Return the keys of one kind in a stable order."""
    of_kind = (id_ for id_ in ids if id_.kind == kind)
    return sorted(of_kind, key=lambda id_: (id_.profile_set, id_.key))
