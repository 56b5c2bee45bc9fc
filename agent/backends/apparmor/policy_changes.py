"""Load, replace and remove profiles in the kernel, and verify the content afterwards.

Rule 1: new profiles are written to `.load`, so that a foreign profile is never replaced, and
agent-owned profiles to `.replace`. A profile is never removed and loaded again, because a removal
unconfines processes for good. Rule 2: one write changes all profiles of a key, or none. Rule 3: a
removal follows a check of content and use, and removes only the requested profiles.
"""

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor import compiled_policy, diagnostics, kernel
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.backends.apparmor.kernel_access import KernelAccess
from agent.backends.apparmor.loaded_objects import LoadedObjects
from agent.backends.apparmor.policy_references import PolicyReferences
from agent.backends.apparmor.processes import Processes
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
    digest,
)
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host.filesystem import HostError

_NONE: Evidence = frozenset()
_REPEATS: Final = 4  # of a write, until it is the only change of policy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """One compiled policy to load."""

    id: KeyId
    body: bytes
    names: frozenset[str]
    own: Mapping[str, Evidence]
    """The names, with their evidence, whose objects will be agent-owned."""


class PolicyChanges:
    """The writes of one agent.

    checked: name -> the digest of the policy that the agent compiled or verified for it.
    """

    def __init__(
        self,
        access: KernelAccess,
        kernel: kernel.Kernel,
        processes: Processes,
        objects: LoadedObjects,
        references: PolicyReferences,
    ) -> None:
        self.access = access
        self.kernel = kernel
        self.processes = processes
        self.objects = objects
        self.references = references
        self.checked: dict[str, str] = {}
        self._before = -1  # the policy revision right before the last write

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Load or replace in one write, and verify by content.

        foreign: names in ours whose objects another program loaded; they stay foreign.
        """
        names = profile.version.names
        try:
            declared = compiled_policy.read(body)
            if sorted(one.name for one in declared) != sorted(names):
                raise compiled_policy.PolicyError("it declares other names than were checked")  # noqa: TRY301
        except compiled_policy.PolicyError as error:
            return Failed(finding=diagnostics.policy_unreadable(profile.id, error))
        # Each pass begins with a look; from then on the kernel itself refuses what is not allowed.
        barrier = None if self.access.passed else self.access.barrier()
        if barrier is not None:
            return Failed(finding=barrier.finding)
        own = {one.name: one.evidence for one in declared if one.name not in foreign}
        write = _Write(id=profile.id, body=body, names=frozenset(names), own=own)
        facts = self._loaded(write, frozenset(replaceable))
        if isinstance(facts, Failed):
            return facts
        self.checked |= dict.fromkeys(names, profile.version.body_digest)
        done = _verified(profile.id, declared, facts)
        if isinstance(done, Installed) and not self._is_proven(facts):
            why = "other programs change policy at the same time, and it shows no content"
            return Failed(finding=diagnostics.verify_failed(profile.id, why))
        return done

    def _loaded(self, write: _Write, ours: frozenset[str]) -> dict[str, ObservedProfile] | Failed:
        """Write until the facts are proven, a few times at most; return them."""
        facts = self._loaded_once(write, ours)
        for _ in range(_REPEATS):
            if isinstance(facts, Failed) or self._is_proven(facts):
                break
            # What the write right before loaded may be replaced.
            facts = self._loaded_once(write, frozenset(write.own.keys() & facts.keys() | ours))
        return facts

    def _loaded_once(
        self, write: _Write, ours: frozenset[str]
    ) -> dict[str, ObservedProfile] | Failed:
        """Write, look, and record the objects of own names; return what the kernel shows."""
        failed = self._write(write, ours)
        if failed is not None:
            return failed
        facts = self.kernel.observe(write.names)
        if isinstance(facts, Unobservable):
            return Failed(finding=diagnostics.verify_failed(write.id, facts.finding.message))
        self.objects.record(self.kernel.objects(write.own.keys() & facts.keys()))
        return facts

    def _is_proven(self, facts: Mapping[str, ObservedProfile]) -> bool:
        """Return whether the facts are the result of the last write.

        Where the kernel shows no content, the write must be the only change of policy.
        """
        readable = all(fact.is_readable for fact in facts.values())
        return readable or self.kernel.looked == self._before + 1

    def _write(self, write: _Write, ours: frozenset[str]) -> Failed | None:
        """Write once, and once more after curing a jam."""
        new = write.names - ours
        load = self.kernel.replace if ours else self.kernel.load
        for cure in (True, False):
            # With .replace the kernel does not refuse a taken name: look as late as possible.
            taken = self._taken(write.id, new) if ours else None
            if taken is not None:
                return taken
            try:
                self._before = self.kernel.revision()
                self.objects.begin(write.own, self._before)
                load(write.body)
            except (HostError, ValueError) as error:
                self.objects.record({})
                if not isinstance(error, HostError):
                    return Failed(finding=diagnostics.verify_failed(write.id, str(error)))
                if error.errno != errno.EEXIST:
                    return Failed(finding=diagnostics.kernel_refused(write.id, error))
                taken = self._taken(write.id, new)
                if taken is not None:
                    return taken
                if cure and self._cure(ours):
                    continue
                break
            return None
        return Failed(finding=diagnostics.kernel_jammed(write.id))

    def _taken(self, id_: KeyId, new: frozenset[str]) -> Failed | None:
        if not new:
            return None
        facts = self.kernel.observe(new)
        if isinstance(facts, Unobservable):
            return Failed(finding=facts.finding)
        return Failed(finding=diagnostics.foreign_name(id_, sorted(facts))) if facts else None

    def _cure(self, ours: frozenset[str]) -> bool:
        """Clear a leaked raw_data directory: replace something of ours by the same bytes.

        The kernel keeps the loaded object, only its revision grows (seen on 6.1, 6.12 and 7.2).
        What is ours: names that the ledger says are, and content that this agent compiled itself.
        """
        facts = self.kernel.observe(ours | frozenset(self.checked))
        if isinstance(facts, Unobservable):
            return False
        for name in sorted(facts):
            blob = self.kernel.raw_data(name)
            if blob is None:
                continue
            try:
                declared = {one.name for one in compiled_policy.read(blob)}
                raw = compiled_policy.raw_evidence(blob)
                known = declared <= ours or self.checked.get(name) == digest(blob)
                if known and all(one in facts and raw & facts[one].evidence for one in declared):
                    self.kernel.replace(blob)
                    return True
            except (compiled_policy.PolicyError, HostError):
                continue
        return False

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove names after a last look at their content, and with prove at their use.

        A parent goes first and takes its hats and children along in one step; so none that is
        not among names may be below it.
        """
        barrier = self.access.barrier()
        if barrier is not None:
            return Failed(finding=barrier.finding)
        facts = self._own(names, evidence)
        if isinstance(facts, Failed):
            return facts
        if require_unused:
            held = self._held(facts, evidence)
            if held:
                return StillInUse(uses=held)
            if not self.processes.shows_pending_exec():
                facts = self._own(names, evidence)  # the proof took a moment
                if isinstance(facts, Failed):
                    return facts
        return self._remove(sorted(facts))

    def _own(
        self, names: Collection[str], evidence: Mapping[str, Evidence]
    ) -> dict[str, ObservedProfile] | Failed:
        """Return the loaded ones of names, if they and all profiles below them are agent-owned."""
        facts = self.kernel.observe(names, below=True)
        if isinstance(facts, Unobservable):
            return Failed(finding=facts.finding)
        own = self.objects.own(self.kernel.objects(names), self.kernel.looked, facts)
        other = sorted(
            name
            for name, fact in facts.items()
            if name not in own or not evidence.get(name, _NONE) & fact.evidence
        )
        return Failed(finding=diagnostics.foreign_content(other)) if other else facts

    def _held(
        self, facts: Mapping[str, ObservedProfile], evidence: Mapping[str, Evidence]
    ) -> dict[str, InUse | UnknownUse]:
        """Return the names that are in use, or whose disuse is not proven."""
        held = _not_unused(self.processes.uses(sorted(facts)))
        if held or not facts or self.processes.shows_pending_exec():
            return held
        why = "this kernel hides pending execs, and "
        if not all(_has_own_hash(evidence[name] & fact.evidence) for name, fact in facts.items()):
            # Other bytes would make the profile look like one that another program loaded.
            return dict.fromkeys(
                facts, UnknownUse(reason=f"{why}shows no hash of a single profile")
            )
        unproven = self.references.why_unproven(facts.keys())
        if unproven:
            return dict.fromkeys(facts, UnknownUse(reason=f"{why}{unproven}"))
        return _not_unused(self.processes.uses(sorted(facts)))

    def _remove(self, names: Sequence[str]) -> Removed | Failed:
        for name in names:
            try:
                self.kernel.remove(name)
            except HostError as error:
                if error.errno != errno.ENOENT:
                    return Failed(finding=diagnostics.remove_failed(name, kernel.meaning(error)))
        left = self.kernel.observe(names)
        if isinstance(left, Unobservable):
            return Failed(finding=left.finding)
        if left:
            return Failed(finding=diagnostics.remove_failed(min(left), "it is still loaded"))
        return Removed()


def _not_unused(uses: Mapping[str, Use]) -> dict[str, InUse | UnknownUse]:
    return {name: use for name, use in uses.items() if not isinstance(use, Unused)}


def _has_own_hash(evidence: Evidence) -> bool:
    return any(token.startswith("own:") for token in evidence)


def _verified(
    id_: KeyId, declared: Iterable[DeclaredProfile], facts: Mapping[str, ObservedProfile]
) -> Installed | Failed:
    """Return what the node shows, if it is what was written."""
    expected = {one.name: one.evidence for one in declared}
    modes = {one.name: one.mode for one in declared}
    for name, want in expected.items():
        fact = facts.get(name)
        if fact is None:
            return Failed(finding=diagnostics.verify_failed(id_, f'"{name}" is not loaded'))
        if fact.is_readable and not want & fact.evidence:
            return Failed(finding=diagnostics.verify_failed(id_, f'"{name}" holds other content'))
        if fact.mode != modes[name]:
            return Failed(
                finding=diagnostics.verify_failed(
                    id_, f'"{name}" is in {fact.mode} mode, not {modes[name]}'
                )
            )
    return Installed(
        evidence={
            name: want | facts[name].evidence if facts[name].is_readable else facts[name].evidence
            for name, want in expected.items()
        },
        modes=modes,
    )
