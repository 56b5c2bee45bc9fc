"""What to do: one pure function from desired, ledger and node to actions.

Rule 1: this module decides; it reads nothing, writes nothing, and the same input gives the same
plan. Rule 2: what is not proven ours is never replaced and never removed. Rule 3: a name that
any current key provides, even by its last good version, is never removed.

| its set  | desired        | ledger          | on the node           | action                    |
| -------- | -------------- | --------------- | --------------------- | ------------------------- |
| read     | d              | -               | absent                | Put (new)                 |
| read     | d              | -               | present, same content | Adopt                     |
| read     | d              | -               | present, otherwise    | Hold (foreign)            |
| read     | d              | installed = d   | present, same         | Keep                      |
| read     | d              | installed = d   | other content or mode | Put (drifted)             |
| read     | d              | adopted         | other content or mode | Hold (foreign)            |
| read     | d              | installed = d   | same, by another      | Keep                      |
| read     | d              | installed = d   | other, by another     | Hold (foreign)            |
| read     | d              | installed = d   | absent                | Put (missing)             |
| read     | d              | installed /= d  | ours or absent        | Put (changed, recompiled) |
| read     | d              | staged only     | what was staged       | Put (unfinished)          |
| read     | d              | staged only     | staged, by another    | Adopt                     |
| read     | d              | installed /= d  | d, by another         | Adopt                     |
| read     | d, fewer names | ours            | dropped name present  | Remove that name          |
| read     | refused        | installed       | same                  | Hold (rejected)           |
| read     | refused        | installed       | absent or other       | Put the installed version |
| read     | refused        | installed       | other, by another     | Hold (foreign)            |
| read     | pending        | -               | any                   | Hold (pending)            |
| read     | pending        | installed       | same                  | Hold (pending)            |
| read     | pending        | installed       | absent or other       | Put the installed version |
| read     | d, may clash   | -               | absent                | Hold (pending)            |
| read     | -              | put by us       | present, unused       | Remove                    |
| read     | -              | put by us       | used, or cannot tell  | Hold                      |
| read     | -              | put by us       | label on, or grace    | Hold (label_pending)      |
| read     | -              | put by us       | other content         | Release (foreign)         |
| read     | -              | put by us       | same, by another      | Release (foreign)         |
| read     | -, one pending | any             | present               | Hold (pending)            |
| read     | -              | adopted         | present               | Release                   |
| read     | -              | ours            | absent                | Release (absent)          |
| read     | -              | ours, elsewhere | another key has it    | Release (moved)           |
| read     | -              | ours            | a refused key has it  | Hold (still needed)       |
| not read | ?              | installed       | same                  | Hold (source unavailable) |
| not read | ?              | installed       | absent or other       | Put the installed version |
| missing  | ?, elsewhere   | installed       | another key has it    | Release (moved)           |
| not ours | any            | any             | any                   | nothing                   |
| any      | any            | any             | cannot be seen or had | Hold                      |
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from agent.core import diagnostics
from agent.core.actions import Action, Adopt, Hold, Install, Keep, Release, Remove
from agent.core.desired import Desired
from agent.core.findings import Finding
from agent.core.model import (
    Evidence,
    InUse,
    KeyId,
    LedgerEntry,
    Observation,
    Observed,
    ObservedProfile,
    Profile,
    ProfileKind,
    Read,
    UnknownUse,
    Unobservable,
    Unreadable,
    Unsupported,
    Unused,
    Version,
)
from agent.core.ownership import (
    evidence_of,
    has_same_content,
    is_agent_owned,
    is_installed_by_agent,
    is_intact,
    is_staged,
    owned_names,
)
from agent.core.vocabulary import ProfileState, PruneMode, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What an operator may decide about removals and ownership.

    gone: seconds since a name's label was confirmed to be off the Node, for the names of which
    that is known; None: a removal waits for no label. grace: how many such seconds it waits.
    pods: which pods of this node name a profile; None: that is not known. pod_aware: it should be
    known, so that nothing is removed while it is not.
    """

    prune: PruneMode = PruneMode.UNUSED
    take_over: frozenset[str] = frozenset()
    grace_seconds: float = 0.0
    label_absent_seconds: Mapping[tuple[ProfileKind, str], float] | None = None
    pods_by_profile: Mapping[tuple[ProfileKind, str], tuple[str, ...]] | None = None
    pod_aware: bool = False


def removal_candidates(
    desired: Desired, entries: Mapping[KeyId, LedgerEntry], options: PlanOptions
) -> frozenset[str]:
    """Return the names whose use must be looked at, because they may have to go."""
    claimed = _claimed(desired, entries)
    return frozenset(
        name
        for entry in entries.values()
        if options.prune != PruneMode.NEVER and entry.id.profile_set in desired.profile_sets
        for name in owned_names(entry)
        if (entry.id.kind, name) not in claimed and is_installed_by_agent(entry, name)
    )


def plan(
    desired: Desired,
    entries: Mapping[KeyId, LedgerEntry],
    observed: Mapping[ProfileKind, Observed],
    options: PlanOptions,
) -> tuple[Action, ...]:
    """Decide. Every Put, Adopt and Keep stands before any Release, and those before any Remove."""
    return tuple(
        action
        for kind, seen in observed.items()
        for action in _Planner(kind, desired, entries, seen, options).actions()
    )


def _standing(entry: LedgerEntry, desired: Desired) -> bool:
    """Return whether an entry's last good version stands for its key."""
    if entry.installed is None or entry.id in desired.profiles:
        return False
    if entry.id in desired.rejections or entry.id in desired.unchecked:
        return True
    if entry.id in desired.pending or desired.is_present_unaccepted(entry.id):
        return True
    return _gone(entry, desired)


def _gone(entry: LedgerEntry, desired: Desired) -> bool:
    """Return whether an entry's set was looked at, and not read: away, emptied or unreadable."""
    snapshot = desired.profile_sets.get(entry.id.profile_set)
    return snapshot is not None and not isinstance(snapshot, Read)


def _claimed(
    desired: Desired, entries: Mapping[KeyId, LedgerEntry]
) -> frozenset[tuple[ProfileKind, str]]:
    """Return every name that a current key provides, by its last good version too."""
    claims = {
        (id_.kind, name)
        for id_, profile in desired.profiles.items()
        for name in profile.version.names
    }
    claims |= {(id_.kind, name) for id_, one in desired.rejections.items() for name in one.names}
    for entry in entries.values():
        if _standing(entry, desired) and entry.installed is not None:
            claims |= {(entry.id.kind, name) for name in entry.installed.names}
    return frozenset(claims)


@dataclass(slots=True)
class _Judged:
    """What is known about each name of one profile, sorted by what it means."""

    same: dict[str, Evidence] = field(default_factory=dict)  # ours, as recorded
    drifted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # ours, absent
    new: list[str] = field(default_factory=list)  # nobody's, absent
    equal: dict[str, Evidence] = field(default_factory=dict)  # not ours, desired content
    unfinished: list[str] = field(default_factory=list)  # staged, and the node shows it
    taken: list[str] = field(default_factory=list)  # somebody else's, named by --take-over
    foreign: list[str] = field(default_factory=list)

    @property
    def ours(self) -> frozenset[str]:
        return frozenset([*self.same, *self.drifted, *self.unfinished, *self.taken])


class _Planner:
    """One kind's share of the plan."""

    def __init__(
        self,
        kind: ProfileKind,
        desired: Desired,
        entries: Mapping[KeyId, LedgerEntry],
        observed: Observed,
        options: PlanOptions,
    ) -> None:
        self.kind = kind
        self.desired = desired
        self.entries = {id_: entry for id_, entry in entries.items() if id_.kind == kind}
        self.observed = observed
        self.options = options
        self.claimed = _claimed(desired, entries)
        self.unreadable = any(isinstance(one, Unreadable) for one in desired.profile_sets.values())
        self.pending = [one for id_, one in desired.pending.items() if id_.kind == kind]
        self.barred: set[KeyId] = set()  # desired, but its last good version stays for now
        self.providers = {
            name: id_
            for id_, profile in desired.profiles.items()
            if id_.kind == kind
            for name in profile.version.names
        }
        self.taken = set(self.providers)  # names that this pass puts or keeps for desired keys
        self.wanted: frozenset[str] = frozenset()  # of desired keys that cannot be put now
        self.owners: dict[str, list[LedgerEntry]] = {}
        for entry in self.entries.values():
            for name in owned_names(entry):
                self.owners.setdefault(name, []).append(entry)

    def actions(self) -> Iterable[Action]:
        if not isinstance(self.observed, Observation):
            yield from self._blindly(self.observed)
            return
        seen = self.observed
        yield from self._profiles(seen)
        for id_ in self._sorted(self.desired.rejections):
            yield self._refused(
                id_,
                Reason.REJECTED,
                ProfileState.REJECTED,
                self.desired.rejections[id_].findings,
                seen,
            )
        for id_ in self._sorted(self.desired.unchecked):
            findings = (self.desired.unchecked[id_].finding,)
            yield self._refused(id_, Reason.UNCHECKED, ProfileState.UNSUPPORTED, findings, seen)
        for id_ in self._sorted(self.desired.pending):
            pending = self.desired.pending[id_]
            yield self._refused(id_, Reason.PENDING, ProfileState.PENDING, pending.findings, seen)
        leftovers = [
            action
            for id_ in self._sorted(self.entries)
            if id_.profile_set in self.desired.profile_sets or id_ in self.desired.duplicates
            for action in self._leftover(self.entries[id_], seen)
        ]
        # Moved names may also come from sets that this pass does not read.
        leftovers += [
            action
            for id_ in self._sorted(self.entries)
            if id_.profile_set not in self.desired.profile_sets
            for action in self._moved(self.entries[id_])
        ]
        # Of several entries that own a name, the one that the node proves is released last.
        released = [one for one in leftovers if not isinstance(one, Remove)]
        yield from sorted(released, key=lambda one: self._is_proven_move(one, seen))
        yield from (one for one in leftovers if isinstance(one, Remove))

    # --- a key that is desired -------------------------------------------------------------------

    def _profiles(self, seen: Observation) -> Iterable[Action]:
        """Decide on every desired profile; one that is barred may bar others, until none does."""
        profiles = self.desired.profiles
        ids = self._sorted(profiles)
        actions = {id_: self._profile(profiles[id_], seen) for id_ in ids}
        barred = [id_ for id_ in ids if _is_barred(actions[id_])]
        while barred:
            self.barred.update(barred)
            for id_ in barred:
                self.taken.difference_update(profiles[id_].version.names)
            again = self._concerned(barred) - self.barred
            actions |= {id_: self._profile(profiles[id_], seen) for id_ in again}
            barred = [id_ for id_ in again if _is_barred(actions[id_])]
        self.claimed |= {
            (self.kind, name)
            for id_ in self.barred & self.entries.keys()
            for name in self._provided_by(id_)
        }
        refused = [
            one.names for id_, one in self.desired.rejections.items() if id_.kind == self.kind
        ]
        refused += [self.desired.profiles[id_].version.names for id_ in self.barred]
        self.wanted = frozenset(name for one in refused for name in one) - self.taken
        return actions.values()

    def _concerned(self, barred: Iterable[KeyId]) -> set[KeyId]:
        """Return the desired keys that may be barred since these are.

        They want a name that these keep, or one of a set that is gone and that these do not replace
        after all.
        """
        names: set[str] = set()
        for id_ in barred:
            mine = [self.entries[id_]] if id_ in self.entries else []
            for name in self.desired.profiles[id_].version.names:
                mine += self.owners.get(name, ())
            names.update(name for entry in mine for name in owned_names(entry))
        return {self.providers[name] for name in names if name in self.providers}

    def _profile(self, profile: Profile, seen: Observation) -> Action:
        version, id_ = profile.version, profile.id
        if self._waits_for_pending(profile):
            return self._refused(id_, Reason.PENDING, ProfileState.PENDING, (), seen)
        blocker = self._blocker(profile)
        if blocker is not None:
            return self._refused(id_, Reason.CONFLICT, ProfileState.REJECTED, (blocker,), seen)
        judged = self._judge(profile, seen)
        names = version.names
        if judged.equal and len(judged.equal) < len(names):
            judged.foreign += judged.equal
        if judged.foreign:
            findings = tuple(
                diagnostics.foreign_profile(name, id_, seen.profiles[name])
                for name in sorted(judged.foreign)
            )
            return self._refused(id_, Reason.FOREIGN, ProfileState.FOREIGN, findings, seen)
        if judged.equal:
            return Adopt(
                id=id_,
                reason=Reason.SAME_CONTENT,
                names=names,
                profile=profile,
                evidence=judged.equal,
            )
        holders = self._holders(profile)
        untouched = all(
            one.installed is not None
            and one.installed.body_digest == version.body_digest
            and set(names) <= set(one.installed.names)
            for one in holders
        )
        if holders and untouched and len(judged.same) == len(names):
            mine = self.entries.get(id_)
            is_known = mine is not None and mine.installed is not None
            how = holders[0].provenance
            return Keep(
                id=id_,
                reason=Reason.UNCHANGED if is_known else Reason.RENAMED,
                names=names,
                profile=profile,
                evidence=judged.same,
                provenance=how,
            )
        return Install(
            id=id_,
            reason=self._why(judged, holders, version, untouched=untouched),
            names=names,
            profile=profile,
            replaceable=judged.ours,
            foreign=_foreign(judged.same, seen) if untouched else frozenset(),
            previous_owners=frozenset(one.id for one in holders),
            fallback=self._back(profile, holders, seen),
        )

    def _back(
        self, profile: Profile, holders: list[LedgerEntry], seen: Observation
    ) -> Install | None:
        """Return what to put if a profile cannot be put, and the node lacks its last good version.

        None where names of that are another key's by now, or somebody else's.
        """
        mine = [one for one in holders if one.id == profile.id or self._is_left(one.id)]
        entry = mine[0] if mine and (len(mine) == 1 or mine[0].id == profile.id) else None
        if entry is None or entry.installed is None:
            return None
        if _same_version(entry.installed, profile.version):
            return None
        provides = frozenset(profile.version.names)
        for name in entry.installed.names:
            fact = seen.profiles.get(name)
            if self.providers.get(name, profile.id) != profile.id:
                return None
            if any(one is not entry for one in self.owners.get(name, ())):
                return None
            if name not in provides and fact is not None and not is_intact(entry, name, fact):
                return None
        action = self._last_good(entry, Reason.REJECTED, ProfileState.OUTDATED, (), seen)
        return action if isinstance(action, Install) else None

    def _why(
        self, judged: _Judged, holders: list[LedgerEntry], version: Version, *, untouched: bool
    ) -> Reason:
        if judged.unfinished and not holders:
            return Reason.UNFINISHED
        if not holders:
            return Reason.TAKEN_OVER if judged.taken else Reason.NEW
        if not untouched:
            sources = {one.installed.source_digest for one in holders if one.installed is not None}
            same_source = sources == {version.source_digest}
            return Reason.RECOMPILED if same_source else Reason.CHANGED
        if judged.missing:
            return Reason.WENT_MISSING
        return Reason.DRIFTED if judged.drifted else Reason.TAKEN_OVER

    def _holders(self, profile: Profile) -> list[LedgerEntry]:
        """Return the entries that own any of the profile's names, its own entry first."""
        found: dict[KeyId, LedgerEntry] = {}
        mine = self.entries.get(profile.id)
        if mine is not None and owned_names(mine):
            found[mine.id] = mine
        for name in profile.version.names:
            for entry in self.owners.get(name, ()):
                found[entry.id] = entry
        return list(found.values())

    def _waits_for_pending(self, profile: Profile) -> bool:
        """Return whether a pending key owns, or may declare, a name that the profile adds."""
        for name in profile.version.names:
            owners = {entry.id for entry in self.owners.get(name, ())}
            if profile.id in owners:
                continue
            if owners & self.desired.pending.keys():
                return True
            if not owners and any(pending.may_provide(name) for pending in self.pending):
                return True
        return False

    def _blocker(self, profile: Profile) -> Finding | None:
        """Return why another key's last good version bars this profile, or None."""
        for name in profile.version.names:
            for entry in self.owners.get(name, ()):
                if entry.id == profile.id or entry.installed is None:
                    continue
                if name not in entry.installed.names:
                    continue  # only left over from an older version
                refused = (
                    entry.id in self.desired.rejections
                    or entry.id in self.desired.unchecked
                    or entry.id in self.barred
                )
                gone = _gone(entry, self.desired) and not self._replaced(entry)
                if (refused or gone) and entry.installed.body_digest != profile.version.body_digest:
                    why = "is refused" if refused else "is missing or cannot be read"
                    return Finding(
                        code="name_conflict",
                        location=name,
                        message=f'The name "{name}" belongs to the last good version of {entry.id},'
                        f" which {why} now. That version stays.",
                        hint="Remove the other key, or mend it; then the name is free.",
                    )
        return None

    def _judge(self, profile: Profile, seen: Observation) -> _Judged:
        judged = _Judged()
        mine = self.entries.get(profile.id)
        staged = mine.staged if mine is not None else None
        for name in profile.version.names:
            fact = seen.profiles.get(name)
            owner = self._owner(profile.id, name)
            handed_over = name in self.options.take_over
            if fact is None:
                (judged.new if owner is None else judged.missing).append(name)
                continue
            witness = self._witness(owner, name, fact) if owner is not None else None
            if witness is not None and not (handed_over and fact.is_agent_object is False):
                judged.same[name] = evidence_of(witness, name)
            elif is_staged(staged, name, fact):
                (judged.unfinished if owner is None else judged.drifted).append(name)
            elif owner is not None and is_agent_owned(owner, name, fact):
                judged.drifted.append(name)
            elif handed_over:
                judged.taken.append(name)
            elif has_same_content(
                profile.version.evidence.get(name, frozenset()),
                fact,
                profile.version.modes.get(name, ""),
            ):
                judged.equal[name] = fact.evidence
            else:
                judged.foreign.append(name)
        return judged

    def _witness(self, entry: LedgerEntry, name: str, fact: ObservedProfile) -> LedgerEntry | None:
        """Return the entry that proves that the node has what an entry installed under a name.

        That may be another key's entry of the same version: where the node shows no content, only
        the key that was installed last knows the object.
        """
        body = entry.installed.body_digest if entry.installed is not None else ""
        others = (
            one
            for one in self.owners.get(name, ())
            if one.installed is not None
            and (one.installed.body_digest, name in one.installed.names) == (body, True)
        )
        return next((one for one in (entry, *others) if is_intact(one, name, fact)), None)

    def _owner(self, id_: KeyId, name: str) -> LedgerEntry | None:
        """Return the entry that owns a name, a key's own entry first."""
        owners = self.owners.get(name, ())
        return min(owners, key=lambda one: (one.id != id_, one.provenance), default=None)

    # --- a key whose last good version must stay --------------------------------------------------

    def _refused(
        self,
        id_: KeyId,
        why: Reason,
        state: ProfileState,
        findings: tuple[Finding, ...],
        seen: Observation,
    ) -> Action:
        entry = self.entries.get(id_)
        if entry is None or entry.installed is None:
            profile = self.desired.profiles.get(id_)
            names = profile.version.names if profile is not None else ()
            return Hold(id=id_, reason=why, names=names, state=state, findings=findings)
        return self._last_good(entry, why, ProfileState.OUTDATED, findings, seen)

    def _last_good(
        self,
        entry: LedgerEntry,
        why: Reason,
        state: ProfileState,
        findings: tuple[Finding, ...],
        seen: Observation,
    ) -> Action:
        """Hold the installed version if the node has it, put it back if not."""
        names = entry.installed.names if entry.installed is not None else ()
        facts = {name: seen.profiles.get(name) for name in names}
        broken = {
            name: fact
            for name, fact in facts.items()
            if fact is not None and self._witness(entry, name, fact) is None
        }
        foreign = tuple(
            diagnostics.foreign_profile(name, entry.id, fact)
            for name, fact in broken.items()
            if not is_agent_owned(entry, name, fact)
        )
        if foreign:
            return Hold(
                id=entry.id,
                reason=Reason.FOREIGN,
                names=names,
                state=ProfileState.FOREIGN,
                findings=findings + foreign,
            )
        missing = [name for name, fact in facts.items() if fact is None]
        if not broken and not missing:
            return Hold(id=entry.id, reason=why, names=names, state=state, findings=findings)
        return Install(
            id=entry.id,
            reason=Reason.WENT_MISSING if missing else Reason.DRIFTED,
            names=names,
            profile=None,
            replaceable=frozenset(name for name, fact in facts.items() if fact is not None),
            foreign=_foreign(facts.keys() - broken.keys(), seen),
            findings=findings,
        )

    # --- names that nobody desires ----------------------------------------------------------------

    def _leftover(self, entry: LedgerEntry, seen: Observation) -> Iterable[Action]:
        profile = self.desired.profiles.get(entry.id)
        if profile is not None and owned_names(entry).keys() <= frozenset(profile.version.names):
            return  # as nearly always: nothing of it is left over
        whole = self._whole(entry)
        if whole:
            yield self._last_good(entry, whole, ProfileState.HELD, (), seen)
        names = entry.retired if whole else owned_names(entry)
        evidence = owned_names(entry)
        going: dict[Reason | None, list[str]] = {}  # by reason; None is removal
        stay: dict[str, Hold] = {}
        for name in sorted(set(names) - self._provided_by(entry.id)):
            why = self._release(entry, name, evidence[name], seen)
            held = None if why else self._stays(entry, name, stay, seen)
            if self.pending and why in (None, Reason.ADOPTED):
                # A pending key may be this profile under a new key.
                held = Hold(
                    id=entry.id, reason=Reason.PENDING, names=(name,), state=ProfileState.HELD
                )
            if held is not None:
                stay[name] = held
                yield held
            else:
                going.setdefault(why, []).append(name)
        remove = going.pop(None, [])
        for reason, some in going.items():
            if reason is not None:
                yield Release(id=entry.id, reason=reason, names=tuple(some))
        known = isinstance(self.desired.profile_sets[entry.id.profile_set], Read)
        if known and not owned_names(entry) and not self.desired.contains(entry.id):
            yield Release(id=entry.id, reason=Reason.NEVER_INSTALLED, names=())
        if remove:
            yield Remove(
                id=entry.id,
                reason=Reason.NOT_DESIRED,
                names=tuple(remove),
                evidence={name: evidence[name] for name in remove},
                require_unused=self.kind != "seccomp"
                or not (self.options.prune == PruneMode.ALWAYS or self._proven_by_pods()),
            )

    def _pods(self, name: str) -> tuple[str, ...]:
        """Return the pods of this node that are known to name a profile."""
        return (self.options.pods_by_profile or {}).get((self.kind, name), ())

    def _proven_by_pods(self) -> bool:
        """Return whether "no pod names it" proves "not in use": for files, which leave no trace."""
        return self.kind == "seccomp" and self.options.pods_by_profile is not None

    def _release(
        self, entry: LedgerEntry, name: str, evidence: Evidence, seen: Observation
    ) -> Reason | None:
        """Return why a name of ours is only to be forgotten; None: it is to be removed."""
        fact = seen.profiles.get(name)
        if (self.kind, name) in self.claimed and not self._waits(entry, name):
            return Reason.MOVED
        if fact is None:
            return Reason.ABSENT
        if not is_installed_by_agent(entry, name):
            return Reason.ADOPTED
        is_proven = has_same_content(evidence, fact) and fact.is_agent_object is not False
        return None if is_proven else Reason.FOREIGN

    def _is_left(self, id_: KeyId) -> bool:
        """Return whether a key is not desired for itself: gone, or the same as another one."""
        return id_ in self.desired.duplicates or not self.desired.contains(id_)

    def _waits(self, entry: LedgerEntry, name: str) -> bool:
        """Return whether a name is wanted by keys that cannot have it now, and nobody else has it.

        A key that was renamed and refused in one change takes nothing away from the node.
        """
        return name in self.wanted and all(one is entry for one in self.owners.get(name, ()))

    def _whole(self, entry: LedgerEntry) -> Reason | None:
        """Return why the installed version of a key that is not desired stays whole, or nothing."""
        if entry.installed is None or not self._is_left(entry.id):
            return None
        if self._standing(entry):
            return Reason.SOURCE_UNAVAILABLE
        names = entry.installed.names
        waits = any(self._waits(entry, name) for name in names)
        is_needed = waits and self.taken.isdisjoint(names)
        return Reason.STILL_NEEDED if is_needed else None

    def _stays(
        self, entry: LedgerEntry, name: str, stay: Mapping[str, Hold], seen: Observation
    ) -> Hold | None:
        """Return why a name of ours that is on the node must stay there, or None if it may go."""
        if self._waits(entry, name):
            return Hold(
                id=entry.id,
                reason=Reason.STILL_NEEDED,
                names=(name,),
                state=ProfileState.HELD,
                desired=False,
            )
        above = stay.get(name.rpartition("//")[0])
        if above is not None:  # who runs below it may enter its hats and children any time
            return replace(above, names=(name,), findings=())
        return self._held(entry.id, name, seen)

    def _is_proven_move(self, action: Action, seen: Observation) -> bool:
        """Return whether an entry gives up a name whose content on the node it has on record."""
        if not isinstance(action, Release) or action.reason != Reason.MOVED:
            return False
        evidence = owned_names(self.entries[action.id])
        return any(
            len(self.owners.get(name, ())) > 1
            and name in seen.profiles
            and has_same_content(evidence[name], seen.profiles[name])
            for name in action.names
        )

    def _moved(self, entry: LedgerEntry) -> Iterable[Action]:
        taken = sorted(owned_names(entry).keys() & self.taken)
        if taken:
            yield Release(id=entry.id, reason=Reason.MOVED, names=tuple(taken))

    def _standing(self, entry: LedgerEntry) -> bool:
        return _standing(entry, self.desired) and not self._replaced(entry)

    def _replaced(self, entry: LedgerEntry) -> bool:
        """Return whether accepted keys of other sets provide every name of a set that is gone.

        A set that cannot be read is not gone: what it says now is not known.
        """
        if entry.installed is None or not _gone(entry, self.desired):
            return False
        if isinstance(self.desired.profile_sets[entry.id.profile_set], Unreadable):
            return False
        return self.taken.issuperset(entry.installed.names)

    def _provided_by(self, id_: KeyId) -> frozenset[str]:
        """Return the names that this very key provides now, by its last good version too."""
        entry = self.entries[id_]
        names: set[str] = set()
        if id_ in self.desired.profiles:
            names |= set(self.desired.profiles[id_].version.names)
        if entry.installed is not None and (id_ in self.barred or self._standing(entry)):
            names |= set(entry.installed.names)
        return frozenset(names)

    def _held(self, id_: KeyId, name: str, seen: Observation) -> Hold | None:  # noqa: PLR0911 - one a reason
        """Return why a name of ours that nobody desires must stay, or None if it may go."""
        if self.unreadable:
            # It may be desired there: its label stays too.
            return Hold(
                id=id_, reason=Reason.SOURCE_UNREADABLE, names=(name,), state=ProfileState.HELD
            )
        if self.options.prune == PruneMode.NEVER:
            return _left(id_, name, Reason.PRUNE_NEVER)
        if self.options.label_absent_seconds is not None and (
            self.options.label_absent_seconds.get((self.kind, name), -1.0)
            < self.options.grace_seconds
        ):
            return _left(id_, name, Reason.LABEL_PENDING, diagnostics.label_pending(name))
        if self.options.pod_aware and self.options.pods_by_profile is None:
            return _left(id_, name, Reason.USE_UNKNOWN, diagnostics.pods_unknown(name))
        if self._pods(name):
            return _left(
                id_, name, Reason.IN_USE, diagnostics.referenced_by_pods(name, self._pods(name))
            )
        match seen.uses.get(name, UnknownUse(reason="its use was not looked at")):
            case Unused():
                return None
            case UnknownUse() if self._proven_by_pods():
                return None
            case UnknownUse() if self.options.prune == PruneMode.ALWAYS and self.kind == "seccomp":
                return None
            case InUse() | UnknownUse() as use:
                is_used = isinstance(use, InUse)
                reason = Reason.IN_USE if is_used else Reason.USE_UNKNOWN
                return _left(id_, name, reason, diagnostics.still_in_use(name, use))
            case unreachable:
                assert_never(unreachable)

    # --- a kind that cannot be seen ---------------------------------------------------------------

    def _blindly(self, observed: Unobservable | Unsupported) -> Iterable[Action]:
        if isinstance(observed, Unobservable):
            reason, state = Reason.UNOBSERVABLE, ProfileState.UNOBSERVABLE
        else:
            reason, state = Reason.UNSUPPORTED, ProfileState.UNSUPPORTED
        for id_ in self._sorted(self.desired.rejections):
            findings = self.desired.rejections[id_].findings
            last = self.entries[id_].installed if id_ in self.entries else None
            if last is None:
                yield Hold(
                    id=id_,
                    reason=Reason.REJECTED,
                    names=(),
                    state=ProfileState.REJECTED,
                    findings=findings,
                )
            else:
                yield Hold(
                    id=id_,
                    reason=Reason.REJECTED,
                    names=last.names,
                    state=state,
                    findings=(*findings, observed.finding),
                )
        undecided = [*self.desired.profiles, *self.desired.unchecked, *self.desired.pending]
        for id_ in self._sorted(undecided):
            profile = self.desired.profiles.get(id_)
            names = profile.version.names if profile is not None else ()
            yield Hold(
                id=id_, reason=reason, names=names, state=state, findings=(observed.finding,)
            )
        for id_ in self._sorted(self.entries):
            entry = self.entries[id_]
            if id_.profile_set in self.desired.profile_sets and not self.desired.contains(id_):
                yield Hold(
                    id=id_,
                    reason=reason,
                    names=tuple(sorted(owned_names(entry))),
                    state=state,
                    findings=(observed.finding,),
                    desired=_standing(entry, self.desired),
                )

    def _sorted(self, ids: Collection[KeyId]) -> list[KeyId]:
        return sorted(
            (id_ for id_ in ids if id_.kind == self.kind),
            key=lambda id_: (id_.profile_set, id_.key),
        )


def _foreign(names: Iterable[str], seen: Observation) -> frozenset[str]:
    """Return the names whose objects other programs created."""
    return frozenset(
        name
        for name in names
        if name in seen.profiles and seen.profiles[name].is_agent_object is False
    )


def _same_version(installed: Version, version: Version) -> bool:
    return (installed.body_digest, installed.names) == (version.body_digest, version.names)


def _is_barred(action: Action) -> bool:
    """Return whether a desired profile is not to be put now."""
    return isinstance(action, Hold) or (isinstance(action, Install) and action.profile is None)


def _left(id_: KeyId, name: str, why: Reason, *findings: Finding) -> Hold:
    """Hold a name that nobody desires any more."""
    return Hold(
        id=id_, reason=why, names=(name,), state=ProfileState.HELD, findings=findings, desired=False
    )
