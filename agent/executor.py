"""Carries out a plan, and returns the outcome of each action.

Only this module and the backends change profiles on the node. An installation has four steps: stage
the version in the ledger, install it, verify it, and commit it. Because of this order, the ledger
contains every profile that the agent may have installed, even after the agent was killed. If an
action fails, the later actions are still carried out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, assert_never

from agent.core.actions import Action, Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.diagnostics import still_in_use
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    KeyId,
    LedgerEntry,
    Pending,
    Profile,
    ProfileKind,
    UnknownUse,
    Version,
)
from agent.core.ports import (
    Failed,
    Installed,
    Ledger,
    ProfileBackend,
    Progress,
    Removed,
    StillInUse,
    no_progress,
)
from agent.core.vocabulary import OutcomeResult, Provenance, Reason
from agent.ledger_entries import LedgerEntries, retired_names, without_names
from agent.profile_preparer import PreparedProfile, ProfilePreparer

UNPROVEN_REMOVAL_SECONDS: Final = 10.0
"""The longest time, in seconds, that one pass spends on attempts to remove profiles that do not
succeed."""


class Executor:
    """Carries out the actions of one pass."""

    def __init__(
        self,
        *,
        backends: Mapping[ProfileKind, ProfileBackend],
        ledger: Ledger,
        entries: Mapping[KeyId, LedgerEntry],
        clock: Callable[[], float],
        progress: Progress = no_progress,
    ) -> None:
        self.backends = backends
        self.ledger = ledger
        self.clock = clock
        self.progress = progress
        self._entries = LedgerEntries(ledger, entries)
        self._preparer = ProfilePreparer(backends, ledger)
        self._unproven_seconds = 0.0
        """The seconds that this pass has spent on unsuccessful attempts to remove profiles."""

    @property
    def entries(self) -> Mapping[KeyId, LedgerEntry]:
        """The ledger entries after the actions that have been carried out so far."""
        return self._entries.by_key

    def execute(self, actions: Iterable[Action], *, dry_run: bool = False) -> tuple[Outcome, ...]:
        """Carry out all installations first, and then all other actions in the order of the plan.

        With `dry_run`, the node is not changed, and the outcomes are predictions.
        """
        outcomes: list[Outcome] = []
        failed_keys: set[KeyId] = set()
        ordered = sorted(actions, key=lambda action: not isinstance(action, Install))
        for number, action in enumerate(ordered):
            self.progress("actions", number, len(ordered))
            begin = self.clock()
            if dry_run:
                outcome = self._preview(action)
            elif action.id in failed_keys and self._affects_last_good_version(action):
                outcome = Outcome(action=action, result=OutcomeResult.HELD)
            else:
                outcome = self._act(action)
            if outcome.result in (OutcomeResult.FAILED, OutcomeResult.PENDING):
                failed_keys.add(action.id)
                failed_keys |= action.previous_owners if isinstance(action, Install) else set()
            seconds = self.clock() - begin
            if isinstance(action, Remove) and outcome.result == OutcomeResult.HELD:
                self._unproven_seconds += seconds
            outcomes.append(replace(outcome, seconds=seconds))
        return tuple(outcomes)

    def _affects_last_good_version(self, action: Action) -> bool:
        """Return whether an action removes or releases names of the last good version of a key.

        `_release` makes the same check for each profile name that moved to another key.
        """
        if not isinstance(action, Remove | Release) or action.reason == Reason.MOVED:
            return False
        installed = self._entries.installed_version(action.id)
        return installed is not None and not set(installed.names).isdisjoint(action.names)

    def _preview(self, action: Action) -> Outcome:
        """Return the expected outcome of an action that is not carried out."""
        installed = self._entries.installed_version(action.id)
        match action:
            case Keep(profile=profile):
                return Outcome(action=action, result=OutcomeResult.DONE, version=profile.version)
            case Hold():
                return Outcome(action=action, result=OutcomeResult.HELD, version=installed)
            case Install(profile=Profile() as profile) | Adopt(profile=profile):
                return Outcome(action=action, result=OutcomeResult.PLANNED, version=profile.version)
            case _:
                return Outcome(action=action, result=OutcomeResult.PLANNED, version=installed)

    def _act(self, action: Action) -> Outcome:
        match action:
            case Install():
                return self._install(action)
            case Adopt():
                return self._record(action, Provenance.ADOPTED)
            case Keep():
                return self._record(action, action.provenance)
            case Hold():
                installed = self._entries.installed_version(action.id)
                return Outcome(action=action, result=OutcomeResult.HELD, version=installed)
            case Remove():
                return self._remove(action)
            case Release():
                return self._release(action)
            case unreachable:
                assert_never(unreachable)

    # --- install ---------------------------------------------------------------------------------

    def _install(self, action: Install) -> Outcome:
        """Prepare and install the desired version.

        If no version is desired, install the last good version.
        """
        if action.profile is not None:
            prepared = self._preparer.prepare(action.profile)
        else:
            prepared = self._preparer.prepare_installed(action.id, self._entries.get(action.id))
        match prepared:
            case PreparedProfile():
                return self._install_prepared(action, prepared)
            case Pending(findings=findings):
                if action.fallback is not None:
                    self._install(action.fallback)
                return Outcome(action=action, result=OutcomeResult.PENDING, findings=findings)
            case Finding():
                return self._fall_back(action, prepared)
            case unreachable:
                assert_never(unreachable)

    def _install_prepared(self, action: Install, prepared: PreparedProfile) -> Outcome:
        """Stage, install, verify and commit one version."""
        profile = prepared.profile
        before = self._entries.get(action.id) or LedgerEntry(
            id=action.id, provenance=Provenance.INSTALLED, prefix=profile.prefix
        )
        if not _is_recorded(before.installed, profile.version):
            finding = self._stage(before, prepared)
            if finding is not None:
                return self._fall_back(action, finding)
        result = self.backends[action.id.kind].install(
            profile, prepared.body, replaceable=action.replaceable, foreign=action.foreign
        )
        match result:
            case Failed(finding=finding) if finding.code == FindingCode.VERIFY_FAILED:
                # The record of the staged version stays in the ledger, because this version may
                # already be on the node.
                return _outcome(action, finding)
            case Failed(finding=finding):
                self._entries.unstage(before)
                return self._fall_back(action, finding)
            case Installed(evidence=evidence, modes=modes):
                version = replace(profile.version, evidence=evidence, modes=modes)
                finding = self._entries.commit(before, version, profile.prefix)
                return _outcome(action, finding, version if finding is None else None)
            case unreachable:
                assert_never(unreachable)

    def _stage(self, before: LedgerEntry, prepared: PreparedProfile) -> Finding | None:
        """Record in the ledger that a version will now be installed."""
        version = prepared.profile.version
        return self._store(prepared) or self._entries.stage(before, version)

    def _store(self, prepared: PreparedProfile) -> Finding | None:
        """Store the source and the body in the ledger, so that the version can be restored."""
        source, body = prepared.profile.source, prepared.body
        return self.ledger.store_content(source) or self.ledger.store_content(body)

    def _fall_back(self, action: Install, finding: Finding) -> Outcome:
        """Report a failed installation, and restore the last good version if it is no longer on the
        node.
        """
        if action.fallback is None:
            return _outcome(action, finding)
        restored = self._install(action.fallback)
        findings = dict.fromkeys((finding, *restored.findings))
        return replace(_outcome(action, finding, restored.version), findings=tuple(findings))

    # --- adopt and keep --------------------------------------------------------------------------

    def _record(self, action: Adopt | Keep, provenance: Provenance) -> Outcome:
        """Record a profile that the node already has. If the ledger entry is unchanged, it is not
        written again.
        """
        before = self._entries.get(action.id)
        entry, version = _entry_for(action, provenance, before)
        if entry == before and self._has_content(version):
            return _outcome(action, None, version)
        prepared = self._preparer.prepare(action.profile)
        match prepared:
            case PreparedProfile(profile=profile) if (
                profile.version.body_digest == version.body_digest
            ):
                finding = self._store(prepared)
            case PreparedProfile():
                # The inspection produced other bytes than the plan expected. The next full pass
                # uses the new bytes for its plan.
                return Outcome(action=action, result=OutcomeResult.PENDING)
            case Pending(findings=findings):
                return Outcome(action=action, result=OutcomeResult.PENDING, findings=findings)
            case Finding():
                finding = prepared
            case unreachable:
                assert_never(unreachable)
        if finding is None and entry != before:
            finding = self._entries.write(entry)
        return _outcome(action, finding, version)

    def _has_content(self, version: Version) -> bool:
        """Return whether the ledger contains the source and the body of a version."""
        digests = (version.source_digest, version.body_digest)
        return all(self.ledger.has_content(digest) for digest in digests)

    # --- remove and release ----------------------------------------------------------------------

    def _remove(self, action: Remove) -> Outcome:
        """Remove profile names, unless earlier attempts in this pass took too much time without
        success.

        The remaining removals are left to a later pass, because repairs wait until this pass ends.
        """
        backend = self.backends[action.id.kind]
        result: Removed | StillInUse | Failed
        if action.require_unused and self._unproven_seconds >= UNPROVEN_REMOVAL_SECONDS:
            later = UnknownUse(reason="the agent checks its use in a later pass")
            result = StillInUse(uses=dict.fromkeys(action.names, later))
        else:
            result = backend.remove(
                action.names, action.evidence, require_unused=action.require_unused
            )
        match result:
            case Removed():
                return _outcome(action, self._entries.forget(action.id, action.names))
            case StillInUse(uses=uses):
                findings = tuple(
                    still_in_use(name, use, backend.capabilities)
                    for name, use in sorted(uses.items())
                )
                return Outcome(action=action, result=OutcomeResult.HELD, findings=findings)
            case Failed(finding=finding):
                return _outcome(action, finding)
            case unreachable:
                assert_never(unreachable)

    def _release(self, action: Release) -> Outcome:
        """Stop tracking names. If a profile name moved to another key, release it only if another
        ledger entry owns it.
        """
        names = action.names
        if action.reason == Reason.MOVED:
            kind = action.id.kind
            names = tuple(
                name for name in names if self._entries.owners_of(kind, name) - {action.id}
            )
            if not names:
                return Outcome(action=action, result=OutcomeResult.HELD)
        return _outcome(action, self._entries.forget(action.id, names))


def _entry_for(
    action: Adopt | Keep, provenance: Provenance, before: LedgerEntry | None
) -> tuple[LedgerEntry, Version]:
    """Return the ledger entry for a kept or adopted profile, and the version to record in this
    entry.
    """
    version = replace(action.profile.version, evidence=action.evidence)
    installed = before.installed if before is not None else None
    recorded = version
    if installed is not None and installed.body_digest == version.body_digest:
        recorded = replace(version, modes=installed.modes or version.modes)
    entry = LedgerEntry(
        id=action.id,
        provenance=provenance,
        installed=recorded,
        staged=without_names(before.staged, version.names) if before is not None else None,
        retired=retired_names(before, version) if before is not None else {},
        prefix=action.profile.prefix,
    )
    return entry, version


def _is_recorded(installed: Version | None, version: Version) -> bool:
    """Return whether the ledger records a version as installed, with all expected evidence.

    The version also contains the evidence and the modes that were observed on the node.
    """
    if installed is None:
        return False
    has_evidence = all(
        evidence <= installed.evidence.get(name, frozenset())
        for name, evidence in version.evidence.items()
    )
    observed = replace(version, evidence=installed.evidence, modes=installed.modes)
    return has_evidence and observed == installed


def _outcome(action: Action, finding: Finding | None, version: Version | None = None) -> Outcome:
    """Return a failed outcome if there is a finding, and otherwise a successful outcome."""
    if finding is None:
        return Outcome(action=action, result=OutcomeResult.DONE, version=version)
    return Outcome(action=action, result=OutcomeResult.FAILED, findings=(finding,), version=version)
