"""The desired state: the keys of all profile sets, inspected and compared with each other.

If two keys provide the same name with different content, both are rejected, so that neither
replaces the other by chance. If their content is equal, one of them is a duplicate. This module
does no input or output.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from agent.core import classify
from agent.core.admission import AdmissionBudget, in_admission_order
from agent.core.findings import Finding, limit_findings
from agent.core.model import (
    KINDS,
    Inspected,
    KeyId,
    Pending,
    Profile,
    ProfileKind,
    Read,
    Rejection,
    Snapshot,
    SourceKey,
    Unchecked,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Every current key, in exactly one of the first five mappings."""

    profiles: Mapping[KeyId, Profile] = field(default_factory=dict)
    rejections: Mapping[KeyId, Rejection] = field(default_factory=dict)
    unchecked: Mapping[KeyId, Unchecked] = field(default_factory=dict)
    pending: Mapping[KeyId, Pending] = field(default_factory=dict)
    duplicates: Mapping[KeyId, KeyId] = field(default_factory=dict)
    """Keys with the same content as another key, which is the value."""

    keys: frozenset[tuple[str, str]] = frozenset()
    """Profile set and name of every key, also of kinds that are not handled."""

    profile_sets: Mapping[str, Snapshot] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    """For each profile set, the number of keys of kinds that are not handled."""

    unlisted: Mapping[str, int] = field(default_factory=dict)
    """For each profile set, the number of keys over a limit that are in none of the mappings."""

    def contains(self, id_: KeyId) -> bool:
        """Return whether a key exists, accepted or not."""
        keys = (self.profiles, self.rejections, self.unchecked, self.pending, self.duplicates)
        return any(id_ in mapping for mapping in keys)

    def is_present_unaccepted(self, id_: KeyId) -> bool:
        """Return whether a key may still exist although no kind accepts its content.

        Its last good version stays then. The content may look like another kind, or a directory
        above the key was rejected, so that the key was not read.
        """
        accepted = any(
            KeyId(kind=kind, profile_set=id_.profile_set, key=id_.key) in one
            for kind in KINDS
            for one in (self.profiles, self.duplicates)
        )
        if (id_.profile_set, id_.key) in self.keys and not accepted:
            return True
        above = id_.key.split("/")[:-1]
        return any(
            KeyId(kind=kind, profile_set=id_.profile_set, key="/".join(above[:depth]))
            in self.rejections
            for depth in range(1, len(above) + 1)
            for kind in KINDS
        )


def join(
    snapshots: Iterable[Snapshot],
    inspect: Callable[[ProfileKind, SourceKey], Inspected],
    kinds: frozenset[ProfileKind],
    budget: AdmissionBudget | None = None,
) -> Desired:
    """Inspect every key of every profile set that was read, and compare the keys.

    A key that the source itself rejected is rejected for each kind that it can belong to, so that
    its last good version is held.

    Args:
        snapshots: the results of reading the profile sets.
        inspect: checks one key.
        kinds: the kinds to handle; keys of other kinds are left out.
        budget: the limits on all keys together. A key over a limit is not inspected.
    """
    budget = budget if budget is not None else AdmissionBudget()
    sets = {snapshot.profile_set: snapshot for snapshot in snapshots}
    found = _Found()
    unlisted: Counter[str] = Counter()
    listed = 0
    for candidate in in_admission_order(sets.values(), kinds, budget.entries):
        rejection = budget.rejection(candidate.id)
        if rejection is None:
            found.add(inspect(candidate.kind, candidate.source_key))
        elif candidate.id in budget.entries or listed < budget.limits.listed:
            listed += 1
            found.add(rejection)
        else:
            unlisted[candidate.source_key.profile_set] += 1
    for snapshot in sets.values():
        for rejection in _refused_by_source(snapshot, kinds):
            found.add(rejection)
    same = _settle(found.profiles, found.rejections)
    return Desired(
        profiles=found.profiles,
        rejections=found.rejections,
        unchecked=found.unchecked,
        pending=found.pending,
        duplicates=same,
        keys=frozenset((one.profile_set, one.key) for one in _blobs(sets.values())),
        profile_sets=sets,
        left_out=dict(_left_out(sets.values(), kinds)),
        unlisted=dict(unlisted),
    )


def _blobs(snapshots: Iterable[Snapshot]) -> Iterable[SourceKey]:
    return (blob for one in snapshots if isinstance(one, Read) for blob in one.source_keys)


def _left_out(snapshots: Iterable[Snapshot], kinds: frozenset[ProfileKind]) -> Counter[str]:
    """Return for each profile set the number of keys of kinds that are not handled."""
    left_out: Counter[str] = Counter()
    for blob in _blobs(snapshots):
        kind = classify.classify(blob.key, blob.content)
        left_out[blob.profile_set] += kind is not None and kind not in kinds
    return left_out


def _refused_by_source(snapshot: Snapshot, kinds: frozenset[ProfileKind]) -> Iterable[Rejection]:
    """Return a rejection per possible kind for each key that its source did not read."""
    for key, finding in snapshot.rejected_keys if isinstance(snapshot, Read) else ():
        could_be = {classify.classify(key, b""), classify.classify(key, b"{")}
        for kind in sorted(kind for kind in could_be if kind is not None and kind in kinds):
            yield Rejection(
                id=KeyId(kind=kind, profile_set=snapshot.profile_set, key=key), findings=(finding,)
            )


@dataclass(slots=True)
class _Found:
    """The results of all inspections, by their type."""

    profiles: dict[KeyId, Profile] = field(default_factory=dict)
    rejections: dict[KeyId, Rejection] = field(default_factory=dict)
    unchecked: dict[KeyId, Unchecked] = field(default_factory=dict)
    pending: dict[KeyId, Pending] = field(default_factory=dict)

    def add(self, inspected: Inspected) -> None:
        match inspected:
            case Profile():
                self.profiles[inspected.id] = inspected
            case Rejection():
                self.rejections[inspected.id] = inspected
            case Unchecked():
                self.unchecked[inspected.id] = inspected
            case Pending():
                self.pending[inspected.id] = inspected
            case unreachable:
                assert_never(unreachable)


def _settle(
    profiles: dict[KeyId, Profile], rejections: dict[KeyId, Rejection]
) -> dict[KeyId, KeyId]:
    """Move conflicting profiles to the rejections; return the duplicates of all others."""
    claims: dict[tuple[ProfileKind, str], list[KeyId]] = defaultdict(list)
    for id_, profile in sorted(profiles.items(), key=lambda item: _order(item[0])):
        for name in profile.version.names:
            claims[id_.kind, name].append(id_)
    same: dict[KeyId, KeyId] = {}
    conflicts: dict[KeyId, dict[Finding, None]] = defaultdict(dict)
    for (_, name), ids in claims.items():
        if len(ids) == 1:
            continue
        contents = {(profiles[id_].version.body_digest, profiles[id_].version.names) for id_ in ids}
        for id_ in ids[1:] if len(contents) == 1 else ():
            same[id_] = ids[0]
        for id_ in ids if len(contents) > 1 else ():
            other = next(one for one in ids if one != id_)
            conflicts[id_][_conflict(name, other)] = None
    for id_, findings in conflicts.items():
        provides = profiles[id_].version.names
        rejections[id_] = Rejection(id=id_, findings=limit_findings(findings), names=provides)
    for id_ in conflicts.keys() | same.keys():
        del profiles[id_]
    return {one: first for one, first in same.items() if one not in conflicts}


def _conflict(name: str, other: KeyId) -> Finding:
    return Finding(
        code="name_conflict",
        location=name,
        message=f'The name "{name}" is also provided, with different content, by {other}. '
        "Neither version is installed.",
        hint="Rename one of the profiles, or make their content equal.",
    )


def _order(id_: KeyId) -> tuple[str, str, str]:
    return (id_.kind, id_.profile_set, id_.key)
