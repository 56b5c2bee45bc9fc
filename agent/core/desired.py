"""What should be on the node: snapshots and inspections, joined and checked against each other.

Rule 1: this module decides; it reads nothing and writes nothing.
Rule 2: the same name with different content in two keys rejects both; identical content counts
once. Neither silently wins.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, assert_never

from agent.core import recognise
from agent.core.admission import Room, in_order_of_room
from agent.core.model import (
    Blob,
    Id,
    Inspected,
    KindName,
    Pending,
    Profile,
    Read,
    Rejection,
    Snapshot,
    Unchecked,
)
from agent.core.problems import Problem, bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Every current key, by its Id, in exactly one of the mappings.

    same: keys whose content another key (the value) already provides. sets: every snapshot by
    its origin. keys: (origin, key) of everything that a set holds, also of kinds left out.
    left_out: how many keys of a set, by its origin, are of kinds left out. unlisted: how many of
    its keys have no room and are in none of the mappings; no ledger entry belongs to them.
    """

    profiles: Mapping[Id, Profile] = field(default_factory=dict)
    rejections: Mapping[Id, Rejection] = field(default_factory=dict)
    unchecked: Mapping[Id, Unchecked] = field(default_factory=dict)
    pending: Mapping[Id, Pending] = field(default_factory=dict)
    same: Mapping[Id, Id] = field(default_factory=dict)
    keys: frozenset[tuple[str, str]] = frozenset()
    sets: Mapping[str, Snapshot] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    unlisted: Mapping[str, int] = field(default_factory=dict)

    def has(self, id_: Id) -> bool:
        """Return whether the key is there, accepted or not."""
        keys = (self.profiles, self.rejections, self.unchecked, self.pending, self.same)
        return any(id_ in mapping for mapping in keys)

    def stands(self, id_: Id) -> bool:
        """Return whether a key's last good version stands, by what is in its place now.

        It is there and not accepted, as whatever kind its content looks now; or a directory
        above it was refused, so that it cannot be seen.
        """
        accepted = any(
            Id(kind=kind, origin=id_.origin, key=id_.key) in one
            for kind in _KINDS
            for one in (self.profiles, self.same)
        )
        if (id_.origin, id_.key) in self.keys and not accepted:
            return True
        above = id_.key.split("/")[:-1]
        return any(
            Id(kind=kind, origin=id_.origin, key="/".join(above[:depth])) in self.rejections
            for depth in range(1, len(above) + 1)
            for kind in _KINDS
        )


_KINDS: Final[tuple[KindName, ...]] = ("apparmor", "seccomp")


def join(
    snapshots: Iterable[Snapshot],
    inspect: Callable[[KindName, Blob], Inspected],
    kinds: frozenset[KindName],
    room: Room | None = None,
) -> Desired:
    """Inspect every key of every set that was read, then compare them with each other.

    kinds: keys of other kinds are left out altogether. A key that the source itself refused is
    a rejection of each kind it could be, so that its last good version is held. Keys are inspected
    in the order in which they get room; a key without room is not inspected.
    """
    room = room if room is not None else Room()
    sets = {snapshot.origin: snapshot for snapshot in snapshots}
    found = _Found()
    unlisted: Counter[str] = Counter()
    listed = 0
    for candidate in in_order_of_room(sets.values(), kinds, room.entries):
        rejection = room.refusal(candidate.id)
        if rejection is None:
            found.add(inspect(candidate.kind, candidate.blob))
        elif candidate.id in room.entries or listed < room.limits.listed:
            listed += 1
            found.add(rejection)
        else:
            unlisted[candidate.blob.origin] += 1
    for snapshot in sets.values():
        for rejection in _refused_by_source(snapshot, kinds):
            found.add(rejection)
    same = _settle(found.profiles, found.rejections)
    return Desired(
        profiles=found.profiles,
        rejections=found.rejections,
        unchecked=found.unchecked,
        pending=found.pending,
        same=same,
        keys=frozenset((one.origin, one.key) for one in _blobs(sets.values())),
        sets=sets,
        left_out=dict(_left_out(sets.values(), kinds)),
        unlisted=dict(unlisted),
    )


def _blobs(snapshots: Iterable[Snapshot]) -> Iterable[Blob]:
    return (blob for one in snapshots if isinstance(one, Read) for blob in one.blobs)


def _left_out(snapshots: Iterable[Snapshot], kinds: frozenset[KindName]) -> Counter[str]:
    """Return how many keys of each set are of kinds that are left out."""
    left_out: Counter[str] = Counter()
    for blob in _blobs(snapshots):
        kind = recognise.kind_of(blob.key, blob.content)
        left_out[blob.origin] += kind is not None and kind not in kinds
    return left_out


def _refused_by_source(snapshot: Snapshot, kinds: frozenset[KindName]) -> Iterable[Rejection]:
    """Return the rejections of keys that their source did not read, of each possible kind."""
    for key, problem in snapshot.refused if isinstance(snapshot, Read) else ():
        could_be = {recognise.kind_of(key, b""), recognise.kind_of(key, b"{")}
        for kind in sorted(kind for kind in could_be if kind is not None and kind in kinds):
            yield Rejection(id=Id(kind=kind, origin=snapshot.origin, key=key), problems=(problem,))


@dataclass(slots=True)
class _Found:
    """The results of all inspections, by their type."""

    profiles: dict[Id, Profile] = field(default_factory=dict)
    rejections: dict[Id, Rejection] = field(default_factory=dict)
    unchecked: dict[Id, Unchecked] = field(default_factory=dict)
    pending: dict[Id, Pending] = field(default_factory=dict)

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


def _settle(profiles: dict[Id, Profile], rejections: dict[Id, Rejection]) -> dict[Id, Id]:
    """Move conflicting profiles to the rejections; return the duplicates of the others."""
    claims: dict[tuple[KindName, str], list[Id]] = defaultdict(list)
    for id_, profile in sorted(profiles.items(), key=lambda item: _order(item[0])):
        for name in profile.version.provides:
            claims[id_.kind, name].append(id_)
    same: dict[Id, Id] = {}
    conflicts: dict[Id, dict[Problem, None]] = defaultdict(dict)
    for (_, name), ids in claims.items():
        if len(ids) == 1:
            continue
        contents = {(profiles[id_].version.body, profiles[id_].version.provides) for id_ in ids}
        for id_ in ids[1:] if len(contents) == 1 else ():
            same[id_] = ids[0]
        for id_ in ids if len(contents) > 1 else ():
            other = next(one for one in ids if one != id_)
            conflicts[id_][_conflict(name, other)] = None
    for id_, problems in conflicts.items():
        provides = profiles[id_].version.provides
        rejections[id_] = Rejection(id=id_, problems=bounded(problems), provides=provides)
    for id_ in conflicts.keys() | same.keys():
        del profiles[id_]
    return {one: first for one, first in same.items() if one not in conflicts}


def _conflict(name: str, other: Id) -> Problem:
    return Problem(
        code="name_conflict",
        where=name,
        what=f'The name "{name}" is also provided, with different content, by {other}. '
        "Neither is put.",
        hint="Give one of them another name, or make their content the same.",
    )


def _order(id_: Id) -> tuple[str, str, str]:
    return (id_.kind, id_.origin, id_.key)
