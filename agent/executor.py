"""Act on a plan, and say what happened. The only module that drives kinds and ledger.

Rule 1: a Put is stage, install, verify, commit; the installed slot is replaced only after the
node was seen to hold the new version. Rule 2: one failed action never stops the next. Rule 3: at
every point of a kill the ledger says at least what is ours, and never more than was staged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from agent.core.actions import Action, Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.diagnostics import still_in_use
from agent.core.findings import Finding
from agent.core.model import (
    Evidence,
    Inspected,
    KeyId,
    LedgerEntry,
    Pending,
    Profile,
    ProfileKind,
    Rejection,
    SourceKey,
    Unchecked,
    Version,
)
from agent.core.ownership import is_installed_by_agent, owned_names
from agent.core.ports import Failed, Installed, Ledger, ProfileBackend, Removed, StillInUse
from agent.core.vocabulary import OutcomeResult, Provenance, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A profile and the bytes to install."""

    profile: Profile
    body: bytes


class Executor:
    """Carries the kinds, the ledger and its entries (kept in step with every write)."""

    def __init__(
        self,
        *,
        backends: Mapping[ProfileKind, ProfileBackend],
        ledger: Ledger,
        entries: Mapping[KeyId, LedgerEntry],
        clock: Callable[[], float],
    ) -> None:
        self.backends = backends
        self.ledger = ledger
        self.entries = dict(entries)
        self.clock = clock
        self._owners: dict[tuple[ProfileKind, str], set[KeyId]] | None = (
            None  # once it was asked for
        )

    def execute(self, actions: Iterable[Action], *, dry_run: bool = False) -> tuple[Outcome, ...]:
        """Carry out the actions in their order, puts first; with dry_run, none of them.

        What is missing on the node waits for nothing that is only to be recorded.
        """
        outcomes: list[Outcome] = []
        failed: set[KeyId] = set()
        for action in sorted(actions, key=lambda one: not isinstance(one, Install)):
            begin = self.clock()
            if dry_run:
                outcome = self._preview(action)
            elif action.id in failed and self._is_needed(action):
                outcome = Outcome(action=action, result=OutcomeResult.HELD)
            else:
                outcome = self._act(action)
            if outcome.result in (OutcomeResult.FAILED, OutcomeResult.PENDING):
                failed |= {action.id} | (
                    action.previous_owners if isinstance(action, Install) else set()
                )
            outcomes.append(replace(outcome, seconds=self.clock() - begin))
        return tuple(outcomes)

    def _is_needed(self, action: Action) -> bool:
        """Return whether names that a failed put leaves over are part of the last good version.

        Whether one has moved is looked at for each.
        """
        if not isinstance(action, Remove | Release) or action.reason == Reason.MOVED:
            return False
        entry = self.entries.get(action.id)
        installed = entry.installed if entry is not None else None
        return installed is not None and not set(installed.names).isdisjoint(action.names)

    def _preview(self, action: Action) -> Outcome:
        entry = self.entries.get(action.id)
        match action:
            case Keep(profile=profile):
                return Outcome(action=action, result=OutcomeResult.DONE, version=profile.version)
            case Hold():
                version = entry.installed if entry is not None else None
                return Outcome(action=action, result=OutcomeResult.HELD, version=version)
            case Install(profile=Profile() as profile) | Adopt(profile=profile):
                return Outcome(action=action, result=OutcomeResult.PLANNED, version=profile.version)
            case _:
                version = entry.installed if entry is not None else None
                return Outcome(action=action, result=OutcomeResult.PLANNED, version=version)

    def _act(self, action: Action) -> Outcome:
        match action:
            case Install():
                return self._put(action)
            case Adopt():
                return self._record(action, action.profile, action.evidence, Provenance.ADOPTED)
            case Keep():
                return self._record(action, action.profile, action.evidence, action.provenance)
            case Hold():
                entry = self.entries.get(action.id)
                version = entry.installed if entry is not None else None
                return Outcome(action=action, result=OutcomeResult.HELD, version=version)
            case Remove():
                return self._remove(action)
            case Release():
                return self._release(action)
            case unreachable:
                assert_never(unreachable)

    # --- put -------------------------------------------------------------------------------------

    def _put(self, action: Install) -> Outcome:
        entry = self.entries.get(action.id)
        profile = action.profile if action.profile is not None else self._recorded(action.id)
        prepared = self._prepared(profile, is_recorded=action.profile is None)
        match prepared:
            case _Prepared():
                return self._install(action, prepared, entry)
            case Pending(findings=findings):
                if action.fallback is not None:
                    self._put(action.fallback)
                return Outcome(action=action, result=OutcomeResult.PENDING, findings=findings)
            case Finding():
                return self._put_back(action, prepared)
            case unreachable:
                assert_never(unreachable)

    def _install(self, action: Install, prepared: _Prepared, entry: LedgerEntry | None) -> Outcome:
        profile = prepared.profile
        before = entry or LedgerEntry(
            id=action.id, provenance=Provenance.INSTALLED, prefix=profile.prefix
        )
        if not _is(before.installed, profile.version):
            finding = self._store(prepared) or self._write(replace(before, staged=profile.version))
            if finding is not None:
                return self._put_back(action, finding)
        done = self.backends[action.id.kind].install(
            profile, prepared.body, replaceable=action.replaceable, foreign=action.foreign
        )
        match done:
            case Failed(finding=finding):
                # Not verified is not absent: what was staged may be on the node, and is ours then.
                if finding.code == "verify_failed":
                    return _ended(action, finding)
                self._unstage(before)
                return self._put_back(action, finding)
            case Installed(evidence=evidence, modes=modes):
                version = replace(profile.version, evidence=evidence, modes=modes)
                committed = self._committed(before, version, profile.prefix)
                finding = (
                    self._write(committed) if committed != self.entries.get(action.id) else None
                )
                finding = finding or self._update_same_version(action.id, version)
                if finding is not None:
                    return _ended(action, finding)
                return Outcome(action=action, result=OutcomeResult.DONE, version=version)
            case unreachable:
                assert_never(unreachable)

    def _update_same_version(self, id_: KeyId, version: Version) -> Finding | None:
        """Record the new evidence in every other entry that has the same version installed.

        On a kernel that shows no content, a replacement changes the evidence of equal content.
        """
        ids = {other for name in version.names for other in self._owners_of(id_.kind, name)}
        for other in sorted(ids - {id_}, key=str):
            entry = self.entries[other]
            installed = entry.installed
            if installed is None or installed.body_digest != version.body_digest:
                continue
            updated = replace(installed, evidence=version.evidence)
            if updated != installed:
                finding = self._write(replace(entry, installed=updated))
                if finding is not None:
                    return finding
        return None

    def _put_back(self, action: Install, finding: Finding) -> Outcome:
        """Tell that a put failed, after the last good version was put where the node lacks it."""
        if action.fallback is None:
            return _ended(action, finding)
        back = self._put(action.fallback)
        findings = dict.fromkeys((finding, *back.findings))
        return replace(_ended(action, finding, back.version), findings=tuple(findings))

    def _committed(self, before: LedgerEntry, version: Version, prefix: str) -> LedgerEntry:
        retired = _retired(before, version)
        return LedgerEntry(
            id=before.id,
            provenance=Provenance.INSTALLED,
            installed=version,
            retired=retired,
            prefix=prefix,
        )

    def _unstage(self, before: LedgerEntry) -> None:
        if before.staged is not None or before.installed is not None or before.retired:
            self._write(before)  # what an earlier put left staged may be on the node still
        else:
            self._drop(before.id)

    def _recorded(self, id_: KeyId) -> Profile | Finding:
        """Return the installed version of an entry as a profile, from the ledger alone."""
        entry = self.entries[id_]
        version = entry.installed
        source = self.ledger.content(version.source_digest) if version is not None else None
        if version is None or source is None:
            return _damaged(id_)
        return Profile(id=id_, version=version, source=source, body_size=0, prefix=entry.prefix)

    def _prepared(
        self, profile: Profile | Finding, *, is_recorded: bool
    ) -> _Prepared | Pending | Finding:
        """Return a profile with its body; without a usable body, inspect its source again.

        is_recorded: whether the profile is from the ledger, so that its body may have been made
        for another context.
        """
        if isinstance(profile, Finding):
            return profile
        backend = self.backends[profile.id.kind]
        if not is_recorded or backend.accepts_context(profile.version.context):
            body = self._body(profile)
            if body is not None:
                return _Prepared(profile=profile, body=body)
        source_key = SourceKey(
            profile_set=profile.id.profile_set,
            key=profile.id.key,
            content=profile.source,
            prefix=profile.prefix,
        )
        inspected = _again(backend.inspect(source_key), profile.version)
        if not isinstance(inspected, Profile):
            return inspected
        body = self._body(inspected)
        return _Prepared(profile=inspected, body=body) if body is not None else _damaged(profile.id)

    def _body(self, profile: Profile) -> bytes | None:
        """Return the body of a profile from the ledger, or else from its backend."""
        body = self.ledger.content(profile.version.body_digest)
        return body if body is not None else self.backends[profile.id.kind].body(profile)

    def _store(self, prepared: _Prepared) -> Finding | None:
        return self.ledger.store_content(prepared.profile.source) or self.ledger.store_content(
            prepared.body
        )

    # --- adopt and keep --------------------------------------------------------------------------

    def _record(
        self,
        action: Adopt | Keep,
        profile: Profile,
        evidence: Mapping[str, Evidence],
        provenance: Provenance,
    ) -> Outcome:
        """Bring the ledger in step with a node that is right already; write only what differs."""
        before = self.entries.get(action.id)
        version = replace(profile.version, evidence=evidence)
        entry = LedgerEntry(
            id=action.id, provenance=provenance, installed=version, prefix=profile.prefix
        )
        if before is not None:
            entry = replace(entry, retired=_retired(before, version))
        installed = before.installed if before is not None else None
        if installed is not None and installed.body_digest == version.body_digest:
            entry = replace(
                entry, installed=replace(version, modes=installed.modes or version.modes)
            )
        finding = None
        if entry != before or not (
            self.ledger.has_content(version.source_digest)
            and self.ledger.has_content(version.body_digest)
        ):
            match self._prepared(profile, is_recorded=False):
                case _Prepared() as prepared if (
                    prepared.profile.version.body_digest == version.body_digest
                ):
                    finding = self._store(prepared)
                case Finding() as failure:
                    finding = failure
                case Pending(findings=findings):
                    return Outcome(action=action, result=OutcomeResult.PENDING, findings=findings)
                case _:  # the new inspection made other bytes: the next full pass plans with them
                    return Outcome(action=action, result=OutcomeResult.PENDING)
        if finding is None and entry != before:
            finding = self._write(entry)
        return _ended(action, finding, version)

    # --- remove and release ----------------------------------------------------------------------

    def _remove(self, action: Remove) -> Outcome:
        backend = self.backends[action.id.kind]
        done = backend.remove(action.names, action.evidence, require_unused=action.require_unused)
        match done:
            case Removed():
                return _ended(action, self._forget(action.id, action.names))
            case StillInUse(uses=uses):
                findings = tuple(
                    still_in_use(name, use, backend.capabilities)
                    for name, use in sorted(uses.items())
                )
                return Outcome(action=action, result=OutcomeResult.HELD, findings=findings)
            case Failed(finding=finding):
                return _ended(action, finding)
            case unreachable:
                assert_never(unreachable)

    def _release(self, action: Release) -> Outcome:
        """Forget names; those that moved only once another entry owns them."""
        names = action.names
        if action.reason == Reason.MOVED:
            names = tuple(name for name in names if self._has_another(action.id, name))
            if not names:
                return Outcome(action=action, result=OutcomeResult.HELD)
        return _ended(action, self._forget(action.id, names))

    def _has_another(self, id_: KeyId, name: str) -> bool:
        """Return whether another entry owns a name."""
        return bool(self._owners_of(id_.kind, name) - {id_})

    def _owners_of(self, kind: ProfileKind, name: str) -> set[KeyId]:
        """Return the entries that own a name."""
        if self._owners is None:
            self._owners = defaultdict(set)
            for entry in self.entries.values():
                self._note(None, entry)
        return self._owners[kind, name]

    def _note(self, before: LedgerEntry | None, after: LedgerEntry | None) -> None:
        """Keep the owners of each name in step, where they have been asked for."""
        if self._owners is None:
            return
        if before is not None:
            for name in owned_names(before):
                self._owners[before.id.kind, name].discard(before.id)
        if after is not None:
            for name in owned_names(after):
                self._owners[after.id.kind, name].add(after.id)

    def _forget(self, id_: KeyId, names: tuple[str, ...]) -> Finding | None:
        entry = self.entries.get(id_)
        if entry is None:
            return None
        left = {name: one for name, one in owned_names(entry).items() if name not in names}
        installed = entry.installed
        if installed is not None and set(installed.names) & set(names):
            installed = None
        provided = installed.names if installed is not None else ()
        retired = {
            name: one
            for name, one in left.items()
            if name not in provided and is_installed_by_agent(entry, name)
        }
        if installed is None and entry.staged is None and not retired:
            return self._drop(id_)
        return self._write(replace(entry, installed=installed, retired=retired))

    def _write(self, entry: LedgerEntry) -> Finding | None:
        finding = self.ledger.write(entry)
        if finding is None:
            self._note(self.entries.get(entry.id), entry)
            self.entries[entry.id] = entry
        return finding

    def _drop(self, id_: KeyId) -> Finding | None:
        finding = self.ledger.delete(id_)
        if finding is None:
            self._note(self.entries.pop(id_, None), None)
        return finding


def _retired(before: LedgerEntry, version: Version) -> dict[str, Evidence]:
    """Return what this agent put for an entry, and its next version does not provide."""
    return {
        name: evidence
        for name, evidence in owned_names(before).items()
        if is_installed_by_agent(before, name) and name not in version.names
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


def _again(found: Inspected, version: Version) -> Profile | Pending | Finding:
    """Return what a new check of the installed version's source allows to install."""
    match found:
        case Profile():
            # A source may have named it otherwise than its key.
            return found if found.version.names == version.names else _damaged(found.id)
        case Rejection(findings=findings):
            return findings[0]
        case Unchecked(finding=finding):
            return finding
        case Pending():
            return found
        case unreachable:
            assert_never(unreachable)


def _ended(action: Action, finding: Finding | None, version: Version | None = None) -> Outcome:
    if finding is None:
        return Outcome(action=action, result=OutcomeResult.DONE, version=version)
    return Outcome(action=action, result=OutcomeResult.FAILED, findings=(finding,), version=version)


def _damaged(id_: KeyId) -> Finding:
    return Finding(
        code="ledger_damaged",
        location=str(id_),
        message="The last good version is not whole in the state directory, so it cannot be put "
        "back.",
        hint="Make its source readable again; the next pass puts it from there.",
    )
