"""Loads, replaces and removes profiles in the kernel, and verifies the result.

New profiles are written to the file `.load`. The kernel then rejects names that are already loaded,
so that a foreign profile is never replaced. Agent-owned profiles are written to the file
`.replace`. A profile is never removed and loaded again, because the removal would unconfine its
processes permanently. One write changes either all profiles of a key or none of them. The content
and the use of profiles are checked before a removal, which removes only the given names.
"""

import errno
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor import (
    compiled_policy,
    diagnostics,
    policy_references,
    policy_verification,
    policy_writer,
)
from agent.backends.apparmor.confinement_tracker import ConfinementTracker
from agent.backends.apparmor.kernel_access import KernelAccess
from agent.backends.apparmor.loaded_objects import LoadedObjects
from agent.backends.apparmor.policy_references import PolicyReferences
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.policy_writer import PolicyWriter
from agent.backends.apparmor.processes import Processes
from agent.core import common_findings
from agent.core.model import (
    Evidence,
    InUse,
    KeyId,
    ObservedProfile,
    Profile,
    UnknownUse,
    Unobservable,
    Unused,
    Use,
    Version,
    digest,
)
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host.filesystem import HostError

_NO_EVIDENCE: Evidence = frozenset()
_REPEATS: Final = 4
"""The number of attempts to make a write that no other change of policy interrupts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """A compiled policy to load."""

    id: KeyId
    body: bytes
    names: frozenset[str]
    own: Mapping[str, Evidence]
    """The names whose loaded profiles will be agent-owned, with their evidence."""


class PolicyChanges:
    """Changes the policy of one kernel."""

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        access: KernelAccess,
        view: PolicyView,
        writer: PolicyWriter,
        processes: Processes,
        objects: LoadedObjects,
        references: PolicyReferences,
        tracker: ConfinementTracker,
    ) -> None:
        self.access = access
        self.view = view
        self.writer = writer
        self.processes = processes
        self.objects = objects
        self.references = references
        self.tracker = tracker
        self._checked: dict[str, str] = {}
        """Maps a name to the digest of the policy that the agent compiled or verified for it."""

        self._revision_before = -1
        """The policy revision right before the last write."""

    def record_checked(self, version: Version) -> None:
        """Record that the agent itself compiled the policy of a version."""
        self._checked |= dict.fromkeys(version.names, version.body_digest)

    def forget_checked(self, version: Version | None = None) -> None:
        """Forget the policy of one version, or of all versions."""
        if version is None:
            self._checked.clear()
            return
        for name in version.names:
            if self._checked.get(name) == version.body_digest:
                del self._checked[name]

    # --- load and replace ------------------------------------------------------------------------

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Load or replace the profiles of a key in one write, and verify their content.

        Args:
            profile: the profile of the key.
            body: the compiled policy of the profile.
            replaceable: the names that may be replaced. No other name may be loaded on the node.
            foreign: the replaceable names whose loaded profiles come from another program. These
                profiles stay foreign after the replacement.
        """
        names = frozenset(profile.version.names)
        try:
            declared = policy_verification.declared_profiles(body, names)
        except compiled_policy.PolicyError as error:
            return Failed(finding=diagnostics.policy_unreadable(profile.id, error))
        # The access is not checked again, because each pass and the kernel check it.
        barrier = None if self.access.is_open else self.access.barrier()
        if barrier is not None:
            return Failed(finding=barrier.finding)
        own = {each.name: each.evidence for each in declared if each.name not in foreign}
        load = _Load(id=profile.id, body=body, names=names, own=own)
        loaded = self._load(load, frozenset(replaceable))
        if isinstance(loaded, Failed):
            return loaded
        self.record_checked(profile.version)
        result = policy_verification.verified(profile.id, declared, loaded)
        if isinstance(result, Installed) and not self._is_proven(loaded):
            reason = (
                "other programs change policy at the same time, and the kernel does not show the "
                "content of policies"
            )
            return policy_verification.not_verified(profile.id, reason)
        return result

    def _load(
        self, load: _Load, replaceable: frozenset[str]
    ) -> dict[str, ObservedProfile] | Failed:
        """Write a policy, repeat the write if other programs interfere, and return the loaded
        profiles.
        """
        loaded = self._load_once(load, replaceable)
        for _ in range(_REPEATS):
            if isinstance(loaded, Failed) or self._is_proven(loaded):
                break
            # The profiles that the previous write loaded belong to this agent.
            repeated = self._load_once(load, replaceable | (load.own.keys() & loaded.keys()))
            if isinstance(repeated, Failed):
                # An earlier write loaded the policy, so the staged version must stay in the ledger.
                reason = f"the write was repeated, which failed ({repeated.finding.message})"
                return policy_verification.not_verified(load.id, reason)
            loaded = repeated
        return loaded

    def _load_once(
        self, load: _Load, replaceable: frozenset[str]
    ) -> dict[str, ObservedProfile] | Failed:
        """Write a policy, record which loaded profiles the agent owns, and return the loaded
        profiles.
        """
        failure = self._write(load, replaceable)
        if failure is not None:
            return failure
        loaded = self.view.observe(load.names)
        if isinstance(loaded, Unobservable):
            return policy_verification.not_verified(load.id, loaded.finding.message)
        self.objects.record(self.view.object_ids(load.own.keys() & loaded.keys()))
        return loaded

    def _is_proven(self, loaded: Mapping[str, ObservedProfile]) -> bool:
        """Return whether the last write produced the loaded profiles.

        If the kernel does not show the content, the write is verified only if nothing else changed
        the loaded policy.
        """
        is_readable = all(profile.is_readable for profile in loaded.values())
        return is_readable or self.view.observed_revision == self._revision_before + 1

    def _write(self, load: _Load, replaceable: frozenset[str]) -> Failed | None:
        """Write a policy. If data of an earlier failed load block the write, remove the data and
        write the policy once more.
        """
        new = load.names - replaceable
        write = self.writer.replace if replaceable else self.writer.load
        for may_cure in (True, False):
            # The names are checked right before the write, because `.replace` also accepts loaded
            # names.
            failure = self._taken(load.id, new) if replaceable else None
            if failure is not None:
                return failure
            try:
                self._revision_before = self.view.revision()
                self.objects.begin(load.own, self._revision_before)
                write(load.body)
            except (HostError, ValueError) as error:
                self.objects.record({})
                if not isinstance(error, HostError):
                    return policy_verification.not_verified(load.id, str(error))
                if error.errno != errno.EEXIST:
                    return Failed(finding=diagnostics.kernel_refused(load.id, error))
                failure = self._taken(load.id, new)
                if failure is not None:
                    return failure
                if may_cure and self._cure(replaceable):
                    continue
                break
            return None
        return Failed(finding=diagnostics.kernel_jammed(load.id))

    def _taken(self, id_: KeyId, new: frozenset[str]) -> Failed | None:
        """Return a failure if the node has a name that must not be loaded."""
        if not new:
            return None
        loaded = self.view.observe(new)
        if isinstance(loaded, Unobservable):
            return Failed(finding=loaded.finding)
        if not loaded:
            return None
        return Failed(
            finding=common_findings.foreign_profile(min(loaded), observed=None, blocked_key=id_)
        )

    def _cure(self, replaceable: frozenset[str]) -> bool:
        """Remove the data of a failed load by replacing an agent-owned profile with the same bytes.

        After a failed load by any program, an entry in policy/raw_data may remain that makes every
        later load fail with EEXIST. The replacement keeps the loaded profile and increments the
        revision, which removes the entry (observed on Linux 6.1, 6.12 and 7.2). A profile is
        agent-owned here if the ledger contains it, or if the agent compiled or verified its bytes.
        """
        loaded = self.view.observe(replaceable | frozenset(self._checked))
        if isinstance(loaded, Unobservable):
            return False
        for name in sorted(loaded):
            policy = self.view.raw_data(name)
            if policy is None:
                continue
            try:
                declared = {each.name for each in compiled_policy.read(policy)}
                raw = compiled_policy.raw_evidence(policy)
                is_own = declared <= replaceable or self._checked.get(name) == digest(policy)
                if is_own and all(
                    each in loaded and raw & loaded[each].evidence for each in declared
                ):
                    self.writer.replace(policy)
                    return True
            except (compiled_policy.PolicyError, HostError):
                continue
        return False

    # --- remove ----------------------------------------------------------------------------------

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove profiles after a final check of their content and use.

        The kernel removes a profile together with its hats and children. Because of this, the agent
        removes nothing if a hat or child is not among the names.

        Args:
            names: the profiles to remove.
            evidence: the evidence of the agent's content for each name.
            require_unused: whether the removal requires a proof that no process uses a profile.
        """
        barrier = self.access.barrier()
        if barrier is not None:
            return Failed(finding=barrier.finding)
        own = self._own(names, evidence)
        if isinstance(own, Failed):
            return own
        # The tracker observes the threads before the agent checks that the profiles are unused. A
        # process that starts between this check and the removal loses its confinement.
        self.tracker.observe_before_removal(sorted(own))
        if require_unused:
            uses = self._uses(own)
            if uses:
                return StillInUse(uses=uses)
            if self._needs_reference_proof(own):
                uses = self._unproven(own, evidence)
                if uses:
                    return StillInUse(uses=uses)
                own = self._own(names, evidence)  # The check has replaced the profiles.
                if isinstance(own, Failed):
                    return own
        return self._remove(sorted(own))

    def remembered_uses(self, names: Collection[str]) -> dict[str, InUse | UnknownUse]:
        """Return the uses of profiles whose check for references failed and would fail again."""
        reason = self.references.remembered_reason(names)
        return self._unknown(names, reason) if reason else {}

    def _own(
        self, names: Collection[str], evidence: Mapping[str, Evidence]
    ) -> dict[str, ObservedProfile] | Failed:
        """Return the loaded profiles, if the agent owns all of them with their hats and
        children.
        """
        loaded = self.view.observe(names, with_children=True)
        if isinstance(loaded, Unobservable):
            return Failed(finding=loaded.finding)
        own = self.objects.own(self.view.object_ids(names), self.view.observed_revision, loaded)
        foreign = [
            name
            for name, profile in loaded.items()
            if name not in own or not evidence.get(name, _NO_EVIDENCE) & profile.evidence
        ]
        if not foreign:
            return loaded
        finding = common_findings.foreign_profile(min(foreign), observed=None, blocked_key=None)
        return Failed(finding=finding)

    def _uses(self, loaded: Collection[str]) -> dict[str, InUse | UnknownUse]:
        """Return the profiles under which a thread runs or may run according to /proc."""
        return _not_unused(self.processes.uses(sorted(loaded)))

    def _needs_reference_proof(self, loaded: Mapping[str, ObservedProfile]) -> bool:
        """Return whether a removal also requires a proof that nothing references the profiles.

        If the kernel shows pending execs, but no raw data or hashes, the agent cannot check the
        references. On such a kernel, the removal depends only on the threads in /proc. The function
        uses the observed evidence, because no program changed policy during the observation.
        """
        if not self.processes.shows_pending_exec():
            return bool(loaded)
        return any(map(policy_references.has_raw_data_and_hash, loaded.values()))

    def _unproven(
        self, loaded: Mapping[str, ObservedProfile], evidence: Mapping[str, Evidence]
    ) -> dict[str, InUse | UnknownUse]:
        """Return the profiles that are in use, or that something may still reference."""
        # To prove that a profile is unused, the agent replaces it with an equivalent policy whose
        # bytes differ. Only the hash of each single profile stays the same.
        if not policy_references.have_own_hashes(loaded, evidence):
            return self._unknown(loaded, "the expected hash of a single profile is missing")
        reason = self.references.why_unproven(loaded.keys())
        return self._unknown(loaded, reason) if reason else self._uses(loaded)

    def _unknown(self, names: Collection[str], reason: str) -> dict[str, InUse | UnknownUse]:
        is_hidden = not self.processes.shows_pending_exec()
        prefix = "this kernel hides pending execs, and " if is_hidden else ""
        return dict.fromkeys(names, UnknownUse(reason=f"{prefix}{reason}"))

    def _remove(self, names: Sequence[str]) -> Removed | Failed:
        """Remove profiles, parents first, and verify that they are no longer loaded."""
        for name in names:
            try:
                self.writer.remove(name)
            except HostError as error:
                if error.errno != errno.ENOENT:
                    reason = policy_writer.meaning(error)
                    return Failed(finding=common_findings.remove_failed(name, reason))
        loaded = self.view.observe(names)
        if isinstance(loaded, Unobservable):
            return Failed(finding=loaded.finding)
        if loaded:
            return Failed(finding=common_findings.remove_failed(min(loaded), "it is still loaded"))
        return Removed()


def _not_unused(uses: Mapping[str, Use]) -> dict[str, InUse | UnknownUse]:
    return {name: use for name, use in uses.items() if not isinstance(use, Unused)}
