"""Determines which profile names the current keys provide in accepted or last good versions.

The plan never removes a profile name that a current key provides. The decision table is in
`agent.core.plan`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.core.desired import Desired
from agent.core.model import KeyId, LedgerEntry, ProfileKind, Read, Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The profile names of one kind that the current keys provide or need in this pass."""

    claimed_names: frozenset[str]
    """Profile names that a current key provides, including names of its last good version."""

    accepted_names: frozenset[str]
    """Profile names that this pass installs or keeps for accepted keys."""

    needed_names: frozenset[str]
    """Profile names that no accepted key provides, and that are needed by keys that this pass does
    not install."""

    blocked_keys: frozenset[KeyId]
    """Accepted keys that are not installed in this pass.

    The last good versions of these keys stay.
    """


def has_unavailable_source(entry: LedgerEntry, desired: Desired) -> bool:
    """Return whether the profile set of a ledger entry is missing, empty or unreadable."""
    snapshot = desired.profile_sets.get(entry.id.profile_set)
    return snapshot is not None and not isinstance(snapshot, Read)


def is_replaced(entry: LedgerEntry, desired: Desired, accepted_names: Collection[str]) -> bool:
    """Return whether the profile set of a ledger entry is missing or empty, and accepted keys
    provide all names of the entry.

    The ledger entries of an unreadable set are not replaced, because the agent does not know the
    content of the set.
    """
    if entry.installed is None or not has_unavailable_source(entry, desired):
        return False
    if isinstance(desired.profile_sets[entry.id.profile_set], Unreadable):
        return False
    return frozenset(entry.installed.names) <= frozenset(accepted_names)


def has_last_good_version(entry: LedgerEntry, desired: Desired) -> bool:
    """Return whether the installed version of a ledger entry is the last good version of the key.

    A key that has an accepted version, or that no longer exists, has no last good version.
    """
    if entry.installed is None or entry.id in desired.profiles:
        return False
    if entry.id in desired.rejections or entry.id in desired.unchecked:
        return True
    if entry.id in desired.pending or desired.is_present_unaccepted(entry.id):
        return True
    return has_unavailable_source(entry, desired)


def claimed_names(
    desired: Desired, entries: Mapping[KeyId, LedgerEntry]
) -> frozenset[tuple[ProfileKind, str]]:
    """Return every profile name that a current key provides, including names of last good
    versions.
    """
    names = {
        (id_.kind, name)
        for id_, profile in desired.profiles.items()
        for name in profile.version.names
    }
    names |= {
        (id_.kind, name)
        for id_, rejection in desired.rejections.items()
        for name in rejection.names
    }
    for entry in entries.values():
        if entry.installed is not None and has_last_good_version(entry, desired):
            names |= {(entry.id.kind, name) for name in entry.installed.names}
    return frozenset(names)
