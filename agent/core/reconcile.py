"""Act on a plan, and say what happened. The only module that drives kinds and ledger.

Rule 1: a Put is stage, install, verify, commit; the installed slot is replaced only after the
node was seen to hold the new version. Rule 2: one failed action never stops the next. Rule 3: at
every point of a kill the ledger says at least what is ours, and never more than was staged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from agent.core.action import MOVED, Action, Adopt, Hold, Keep, Put, Release, Remove
from agent.core.model import (
    Blob,
    Entry,
    Evidence,
    Id,
    Inspected,
    KindName,
    Pending,
    Profile,
    Rejection,
    Unchecked,
    Version,
)
from agent.core.ownership import is_put, owned
from agent.core.ports import Failed, Installed, Kind, Ledger, Removed, StillUsed
from agent.core.problems import Problem
from agent.core.reasons import held_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One action and what became of it. version: what the node holds now, where that is known."""

    action: Action
    result: Literal["done", "held", "failed", "planned", "pending"]
    problems: tuple[Problem, ...] = ()
    version: Version | None = None
    seconds: float = 0.0


class Reconciler:
    """Carries the kinds, the ledger and its entries (kept in step with every write)."""

    def __init__(
        self,
        *,
        kinds: Mapping[KindName, Kind],
        ledger: Ledger,
        entries: Mapping[Id, Entry],
        clock: Callable[[], float],
    ) -> None:
        self.kinds = kinds
        self.ledger = ledger
        self.entries = dict(entries)
        self.clock = clock
        self._owners: dict[tuple[KindName, str], set[Id]] | None = None  # once it was asked for

    def run(self, actions: Iterable[Action], *, dry_run: bool = False) -> tuple[Outcome, ...]:
        """Carry out the actions in their order, puts first; with dry_run, none of them.

        What is missing on the node waits for nothing that is only to be recorded.
        """
        outcomes: list[Outcome] = []
        failed: set[Id] = set()
        for action in sorted(actions, key=lambda one: not isinstance(one, Put)):
            begin = self.clock()
            if dry_run:
                outcome = self._preview(action)
            elif action.id in failed and self._is_needed(action):
                outcome = Outcome(action=action, result="held")
            else:
                outcome = self._act(action)
            if outcome.result in ("failed", "pending"):
                failed |= {action.id} | (action.former if isinstance(action, Put) else set())
            outcomes.append(replace(outcome, seconds=self.clock() - begin))
        return tuple(outcomes)

    def _is_needed(self, action: Action) -> bool:
        """Return whether names that a failed put leaves over are part of the last good version.

        Whether one has moved is looked at for each.
        """
        if not isinstance(action, Remove | Release) or action.why == MOVED:
            return False
        entry = self.entries.get(action.id)
        installed = entry.installed if entry is not None else None
        return installed is not None and not set(installed.provides).isdisjoint(action.names)

    def _preview(self, action: Action) -> Outcome:
        entry = self.entries.get(action.id)
        match action:
            case Keep(profile=profile):
                return Outcome(action=action, result="done", version=profile.version)
            case Hold():
                version = entry.installed if entry is not None else None
                return Outcome(action=action, result="held", version=version)
            case Put(profile=Profile() as profile) | Adopt(profile=profile):
                return Outcome(action=action, result="planned", version=profile.version)
            case _:
                version = entry.installed if entry is not None else None
                return Outcome(action=action, result="planned", version=version)

    def _act(self, action: Action) -> Outcome:
        match action:
            case Put():
                return self._put(action)
            case Adopt():
                return self._record(action, action.profile, action.evidence, "adopted")
            case Keep():
                return self._record(action, action.profile, action.evidence, action.how)
            case Hold():
                entry = self.entries.get(action.id)
                version = entry.installed if entry is not None else None
                return Outcome(action=action, result="held", version=version)
            case Remove():
                return self._remove(action)
            case Release():
                return self._release(action)
            case unreachable:
                assert_never(unreachable)

    # --- put -------------------------------------------------------------------------------------

    def _put(self, action: Put) -> Outcome:
        entry = self.entries.get(action.id)
        profile = action.profile if action.profile is not None else self._revive(action.id)
        match profile:
            case Profile():
                return self._install(action, profile, entry)
            case Pending(problems=problems):
                return Outcome(action=action, result="pending", problems=problems)
            case Problem():
                return _ended(action, profile)
            case unreachable:
                assert_never(unreachable)

    def _install(self, action: Put, profile: Profile, entry: Entry | None) -> Outcome:
        before = entry or Entry(id=action.id, how="put", prefix=profile.prefix)
        if not _is(before.installed, profile.version):
            problem = self._store(profile) or self._write(replace(before, staged=profile.version))
            if problem is not None:
                return self._put_back(action, problem)
        done = self.kinds[action.id.kind].put(profile, ours=action.ours, foreign=action.foreign)
        match done:
            case Failed(problem=problem):
                # Not verified is not absent: what was staged may be on the node, and is ours then.
                if problem.code == "verify_failed":
                    return _ended(action, problem)
                self._unstage(before)
                return self._put_back(action, problem)
            case Installed(evidence=evidence, modes=modes):
                version = replace(profile.version, evidence=evidence, modes=modes)
                committed = self._committed(before, version, profile.prefix)
                problem = (
                    self._write(committed) if committed != self.entries.get(action.id) else None
                )
                problem = problem or self._update_same_version(action.id, version)
                if problem is not None:
                    return _ended(action, problem)
                return Outcome(action=action, result="done", version=version)
            case unreachable:
                assert_never(unreachable)

    def _update_same_version(self, id_: Id, version: Version) -> Problem | None:
        """Record the new evidence in every other entry that has the same version installed.

        On a kernel that shows no content, a replacement changes the evidence of equal content.
        """
        ids = {other for name in version.provides for other in self._owners_of(id_.kind, name)}
        for other in sorted(ids - {id_}, key=str):
            entry = self.entries[other]
            installed = entry.installed
            if installed is None or installed.body != version.body:
                continue
            updated = replace(installed, evidence=version.evidence)
            if updated != installed:
                problem = self._write(replace(entry, installed=updated))
                if problem is not None:
                    return problem
        return None

    def _put_back(self, action: Put, problem: Problem) -> Outcome:
        """Tell that a put failed, after the last good version was put where the node lacks it."""
        if action.back is None:
            return _ended(action, problem)
        back = self._put(action.back)
        problems = dict.fromkeys((problem, *back.problems))
        return replace(_ended(action, problem, back.version), problems=tuple(problems))

    def _committed(self, before: Entry, version: Version, prefix: str) -> Entry:
        retired = _retired(before, version)
        return Entry(id=before.id, how="put", installed=version, retired=retired, prefix=prefix)

    def _unstage(self, before: Entry) -> None:
        if before.staged is not None or before.installed is not None or before.retired:
            self._write(before)  # what an earlier put left staged may be on the node still
        else:
            self._drop(before.id)

    def _revive(self, id_: Id) -> Profile | Pending | Problem:
        """Make the installed version of an entry ready to be put again, from the ledger alone."""
        entry = self.entries[id_]
        version = entry.installed
        if version is None:
            return _damaged(id_)
        kind = self.kinds[id_.kind]
        source, body = self.ledger.body(version.source), self.ledger.body(version.body)
        if source is not None and body is not None and kind.fits(version.context):
            return Profile(id=id_, version=version, source=source, body=body, prefix=entry.prefix)
        if source is None:
            return _damaged(id_)
        blob = Blob(origin=id_.origin, key=id_.key, content=source, prefix=entry.prefix)
        return _again(kind.inspect(blob), version)

    def _store(self, profile: Profile) -> Problem | None:
        return self.ledger.keep(profile.source) or self.ledger.keep(profile.body)

    # --- adopt and keep --------------------------------------------------------------------------

    def _record(
        self,
        action: Adopt | Keep,
        profile: Profile,
        evidence: Mapping[str, Evidence],
        how: Literal["put", "adopted"],
    ) -> Outcome:
        """Bring the ledger in step with a node that is right already; write only what differs."""
        before = self.entries.get(action.id)
        version = replace(profile.version, evidence=evidence)
        entry = Entry(id=action.id, how=how, installed=version, prefix=profile.prefix)
        if before is not None:
            entry = replace(entry, retired=_retired(before, version))
        installed = before.installed if before is not None else None
        if installed is not None and installed.body == version.body:
            entry = replace(
                entry, installed=replace(version, modes=installed.modes or version.modes)
            )
        problem = None
        if entry != before or not (
            self.ledger.has(version.source) and self.ledger.has(version.body)
        ):
            problem = self._store(profile)
        if problem is None and entry != before:
            problem = self._write(entry)
        return _ended(action, problem, version)

    # --- remove and release ----------------------------------------------------------------------

    def _remove(self, action: Remove) -> Outcome:
        kind = self.kinds[action.id.kind]
        done = kind.remove(action.names, action.evidence, prove=action.prove)
        match done:
            case Removed():
                return _ended(action, self._forget(action.id, action.names))
            case StillUsed(uses=uses):
                problems = tuple(held_by(name, use) for name, use in sorted(uses.items()))
                return Outcome(action=action, result="held", problems=problems)
            case Failed(problem=problem):
                return _ended(action, problem)
            case unreachable:
                assert_never(unreachable)

    def _release(self, action: Release) -> Outcome:
        """Forget names; those that moved only once another entry owns them."""
        names = action.names
        if action.why == MOVED:
            names = tuple(name for name in names if self._has_another(action.id, name))
            if not names:
                return Outcome(action=action, result="held")
        return _ended(action, self._forget(action.id, names))

    def _has_another(self, id_: Id, name: str) -> bool:
        """Return whether another entry owns a name."""
        return bool(self._owners_of(id_.kind, name) - {id_})

    def _owners_of(self, kind: KindName, name: str) -> set[Id]:
        """Return the entries that own a name."""
        if self._owners is None:
            self._owners = defaultdict(set)
            for entry in self.entries.values():
                self._note(None, entry)
        return self._owners[kind, name]

    def _note(self, before: Entry | None, after: Entry | None) -> None:
        """Keep the owners of each name in step, where they have been asked for."""
        if self._owners is None:
            return
        if before is not None:
            for name in owned(before):
                self._owners[before.id.kind, name].discard(before.id)
        if after is not None:
            for name in owned(after):
                self._owners[after.id.kind, name].add(after.id)

    def _forget(self, id_: Id, names: tuple[str, ...]) -> Problem | None:
        entry = self.entries.get(id_)
        if entry is None:
            return None
        left = {name: one for name, one in owned(entry).items() if name not in names}
        installed = entry.installed
        if installed is not None and set(installed.provides) & set(names):
            installed = None
        provided = installed.provides if installed is not None else ()
        retired = {
            name: one for name, one in left.items() if name not in provided and is_put(entry, name)
        }
        if installed is None and entry.staged is None and not retired:
            return self._drop(id_)
        return self._write(replace(entry, installed=installed, retired=retired))

    def _write(self, entry: Entry) -> Problem | None:
        problem = self.ledger.write(entry)
        if problem is None:
            self._note(self.entries.get(entry.id), entry)
            self.entries[entry.id] = entry
        return problem

    def _drop(self, id_: Id) -> Problem | None:
        problem = self.ledger.drop(id_)
        if problem is None:
            self._note(self.entries.pop(id_, None), None)
        return problem


def _retired(before: Entry, version: Version) -> dict[str, Evidence]:
    """Return what this agent put for an entry, and its next version does not provide."""
    return {
        name: evidence
        for name, evidence in owned(before).items()
        if is_put(before, name) and name not in version.provides
    }


def _is(installed: Version | None, version: Version) -> bool:
    """Return whether a version is the installed one, which the node would show by what is known.

    What was seen on the node is known of an installed version beside what is expected of it.
    """
    if installed is None:
        return False
    known = all(
        one <= installed.evidence.get(name, frozenset()) for name, one in version.evidence.items()
    )
    seen = replace(version, evidence=installed.evidence, modes=installed.modes)
    return known and seen == installed


def _again(found: Inspected, version: Version) -> Profile | Pending | Problem:
    """Return what a new check of the installed version's source allows to install."""
    match found:
        case Profile():
            # A source may have named it otherwise than its key.
            return found if found.version.provides == version.provides else _damaged(found.id)
        case Rejection(problems=problems):
            return problems[0]
        case Unchecked(problem=problem):
            return problem
        case Pending():
            return found
        case unreachable:
            assert_never(unreachable)


def _ended(action: Action, problem: Problem | None, version: Version | None = None) -> Outcome:
    if problem is None:
        return Outcome(action=action, result="done", version=version)
    return Outcome(action=action, result="failed", problems=(problem,), version=version)


def _damaged(id_: Id) -> Problem:
    return Problem(
        code="ledger_damaged",
        where=str(id_),
        what="The last good version is not whole in the state directory, so it cannot be put back.",
        hint="Make its source readable again; the next pass puts it from there.",
    )
