"""Computes the desired state, by inspecting the keys of all profile sets and comparing them with
each other.

If two keys provide the same name with different content, both keys are rejected, so that the result
does not depend on their order. If two keys provide the same name with equal content, one key is a
duplicate of the other. This module performs no I/O.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, assert_never

from agent.core import classify, left_out
from agent.core.admission import LIMITS, AdmissionBudget, in_admission_order
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding, limit_findings
from agent.core.left_out import LeftOut
from agent.core.model import (
    KINDS,
    Emptied,
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
from agent.core.vocabulary import LeftOutReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The current keys, grouped by the result of their inspection.

    A key of a handled kind is in exactly one of the mappings profiles, rejections, unchecked,
    pending and duplicates. Keys of other kinds, and keys that are not listed one by one, are in
    none of these mappings.
    """

    profiles: Mapping[KeyId, Profile] = field(default_factory=dict)
    rejections: Mapping[KeyId, Rejection] = field(default_factory=dict)
    unchecked: Mapping[KeyId, Unchecked] = field(default_factory=dict)
    pending: Mapping[KeyId, Pending] = field(default_factory=dict)
    duplicates: Mapping[KeyId, KeyId] = field(default_factory=dict)
    """Maps each duplicate key to the installed key with the same content."""

    keys: frozenset[tuple[str, str]] = frozenset()
    """The profile set and the name of every key, including kinds that are not handled."""

    profile_sets: Mapping[str, Snapshot] = field(default_factory=dict)
    left_out: Mapping[str, tuple[LeftOut, ...]] = field(default_factory=dict)
    """For each profile set, the inputs that are not handled as profiles."""

    unlisted: Mapping[str, int] = field(default_factory=dict)
    """For each profile set, the number of keys that exceed a limit and are in none of the
    mappings."""

    def contains(self, id_: KeyId) -> bool:
        """Return whether a key exists in its source, even if the key is not accepted."""
        keys = (self.profiles, self.rejections, self.unchecked, self.pending, self.duplicates)
        return any(id_ in mapping for mapping in keys)

    def is_present_unaccepted(self, id_: KeyId) -> bool:
        """Return whether a key that was not accepted may still exist in its source.

        The result is also true if the content now looks like another kind, or if the directory of
        the key was rejected before the key was read. The last good version of such a key stays on
        the node.
        """
        accepted = any(
            KeyId(kind=kind, profile_set=id_.profile_set, key=id_.key) in mapping
            for kind in KINDS
            for mapping in (self.profiles, self.duplicates)
        )
        if (id_.profile_set, id_.key) in self.keys and not accepted:
            return True
        directories = id_.key.split("/")[:-1]
        return any(
            KeyId(kind=kind, profile_set=id_.profile_set, key="/".join(directories[:depth]))
            in self.rejections
            for depth in range(1, len(directories) + 1)
            for kind in KINDS
        )


def join(
    snapshots: Iterable[Snapshot],
    inspect: Callable[[ProfileKind, SourceKey], Inspected],
    kinds: frozenset[ProfileKind],
    budget: AdmissionBudget | None = None,
) -> Desired:
    """Inspect every key of every profile set that was read, and compare the keys.

    If the source itself rejected a key, the result contains a rejection for each kind that the key
    can have. The last good version of a rejected key stays on the node.

    Args:
        snapshots: the results of reading the profile sets.
        inspect: checks one key.
        kinds: the kinds to handle; keys of other kinds are ignored.
        budget: the limits on all keys together; a key over a limit is not inspected.
    """
    budget = budget if budget is not None else AdmissionBudget(limits=LIMITS)
    sets = {snapshot.profile_set: snapshot for snapshot in snapshots}
    results = _Inspections()
    unlisted: Counter[str] = Counter()
    listed = 0
    for candidate in in_admission_order(sets.values(), kinds, budget.entries):
        rejection = budget.rejection(candidate.id)
        if rejection is None:
            results.add(inspect(candidate.kind, candidate.source_key))
        elif candidate.id in budget.entries or listed < budget.limits.listed:
            listed += 1
            results.add(rejection)
        else:
            unlisted[candidate.source_key.profile_set] += 1
    for snapshot in sets.values():
        for rejection in _rejected_by_source(snapshot, kinds):
            results.add(rejection)
    duplicates = _resolve_shared_names(results.profiles, results.rejections)
    return Desired(
        profiles=results.profiles,
        rejections=results.rejections,
        unchecked=results.unchecked,
        pending=results.pending,
        duplicates=duplicates,
        keys=frozenset((key.profile_set, key.key) for key in _source_keys(sets.values())),
        profile_sets=sets,
        left_out={
            origin: items
            for origin, snapshot in sets.items()
            if (items := _left_out(snapshot, kinds))
        },
        unlisted=dict(unlisted),
    )


def _source_keys(snapshots: Iterable[Snapshot]) -> Iterable[SourceKey]:
    return (
        key for snapshot in snapshots if isinstance(snapshot, Read) for key in snapshot.source_keys
    )


def _left_out(snapshot: Snapshot, kinds: frozenset[ProfileKind]) -> tuple[LeftOut, ...]:
    """Return the inputs of a profile set that are not handled as profiles."""
    if isinstance(snapshot, Emptied):
        return snapshot.left_out
    if not isinstance(snapshot, Read):
        return ()
    excluded = [
        key.key
        for key in snapshot.source_keys
        if (kind := classify.classify(key.key, key.content)) is not None and kind not in kinds
    ]
    return (*snapshot.left_out, *left_out.of(LeftOutReason.KIND, excluded, _ADD_KIND))


_ADD_KIND: Final = "Add the kind of these keys to --kinds to install them."


def _rejected_by_source(snapshot: Snapshot, kinds: frozenset[ProfileKind]) -> Iterable[Rejection]:
    """Return the rejections for the keys that the source rejected, one for each kind that a key may
    have.
    """
    for key, finding in snapshot.rejected_keys if isinstance(snapshot, Read) else ():
        possible_kinds = {classify.classify(key, b""), classify.classify(key, b"{")}
        for kind in sorted(kind for kind in possible_kinds if kind is not None and kind in kinds):
            yield Rejection(
                id=KeyId(kind=kind, profile_set=snapshot.profile_set, key=key), findings=(finding,)
            )


@dataclass(slots=True)
class _Inspections:
    """The results of all inspections, grouped by type."""

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


def _resolve_shared_names(
    profiles: dict[KeyId, Profile], rejections: dict[KeyId, Rejection]
) -> dict[KeyId, KeyId]:
    """Move conflicting profiles to the rejections, and return the duplicate keys.

    The result maps each duplicate to the key whose profile is installed.
    """
    claims: dict[tuple[ProfileKind, str], list[KeyId]] = defaultdict(list)
    for id_, profile in sorted(profiles.items(), key=lambda item: _order(item[0])):
        for name in profile.version.names:
            claims[id_.kind, name].append(id_)
    duplicates: dict[KeyId, KeyId] = {}
    conflicts: dict[KeyId, dict[Finding, None]] = defaultdict(dict)
    for (_, name), ids in claims.items():
        if len(ids) == 1:
            continue
        contents = {(profiles[id_].version.body_digest, profiles[id_].version.names) for id_ in ids}
        for id_ in ids[1:] if len(contents) == 1 else ():
            duplicates[id_] = ids[0]
        for id_ in ids if len(contents) > 1 else ():
            other = next(candidate for candidate in ids if candidate != id_)
            conflicts[id_][_conflict(name, id_, other)] = None
    for id_, findings in conflicts.items():
        names = profiles[id_].version.names
        rejections[id_] = Rejection(id=id_, findings=limit_findings(findings), names=names)
    for id_ in conflicts.keys() | duplicates.keys():
        del profiles[id_]
    return {id_: first for id_, first in duplicates.items() if id_ not in conflicts}


# kustomize appends a hash in this alphabet to the names of generated ConfigMaps
# (api/hasher/hasher.go). After a change, the ConfigMap has a new name, and the ConfigMap with the
# previous name still exists.
_KUSTOMIZE_HASH: Final = re.compile(r"-[2456789bcdfghkmt]{10}(?=/|\Z)")


def _conflict(name: str, id_: KeyId, other: KeyId) -> Finding:
    hint = "Rename one of the profiles, or make their content equal."
    sources = [f"{key.profile_set}/{key.key}" for key in (id_, other)]
    plain = {_KUSTOMIZE_HASH.sub("", source) for source in sources}
    if len(plain) == 1 and sources[0] != sources[1]:
        hint = (
            "The ConfigMaps are two versions with a kustomize hash: delete the older ConfigMap, "
            "for example with kubectl apply --prune, or set disableNameSuffixHash: true."
        )
    return Finding(
        code=FindingCode.NAME_CONFLICT,
        location=name,
        message=f'The name "{name}" is also provided, with different content, by {other}. '
        "Neither version is installed.",
        hint=hint,
    )


def _order(id_: KeyId) -> tuple[str, str, str]:
    return (id_.kind, id_.profile_set, id_.key)
