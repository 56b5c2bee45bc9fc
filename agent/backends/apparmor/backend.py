"""The AppArmor backend: checks profile texts, observes the kernel, installs and removes profiles.

The backend only delegates to its parts, which `factory` builds: `inspector` checks profile texts,
`policy_view` reads the loaded policy, `processes` finds the processes that use a profile, and
`policy_changes` writes policy. If the parser, the kernel support or a permission is missing, the
backend returns a result with the reason instead of raising an exception.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal

from agent.backends.apparmor import diagnostics
from agent.backends.apparmor.inspector import Inspector
from agent.backends.apparmor.kernel_access import KernelAccess
from agent.backends.apparmor.loaded_objects import LoadedObjects
from agent.backends.apparmor.policy_changes import PolicyChanges
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.processes import Processes
from agent.core.model import (
    Evidence,
    Inspected,
    Observation,
    Observed,
    ObservedProfile,
    Profile,
    SourceKey,
    Unobservable,
)
from agent.core.ports import (
    Capabilities,
    Failed,
    Installed,
    InstalledForm,
    Removed,
    Sandbox,
    StillInUse,
)


class AppArmorBackend:
    """Handles the AppArmor profiles of one host. Implements agent.core.ports.ProfileBackend. Only
    the main thread uses the backend.

    Each attribute of the backend is one of its parts.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        inspector: Inspector,
        access: KernelAccess,
        view: PolicyView,
        processes: Processes,
        objects: LoadedObjects,
        changes: PolicyChanges,
    ) -> None:
        self.inspector = inspector
        self.access = access
        self.view = view
        self.processes = processes
        self.objects = objects
        self.changes = changes
        self._observed_names: frozenset[str] = frozenset()
        self._observation: Observation | None = None
        """The last observation; None if the next observation must read the policy."""

    @property
    def name(self) -> Literal["apparmor"]:
        """The kind of the profiles that this backend handles."""
        return "apparmor"

    @property
    def capabilities(self) -> Capabilities:
        """The properties in which AppArmor differs from other profile kinds."""
        return Capabilities(removal_unconfines=True, installed_form=InstalledForm.POLICY)

    # --- check -----------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Begin a pass, and collect the results of all parser runs that have ended."""
        self.inspector.begin_pass()

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until no profile text is being compiled, and return whether there are new
        results.
        """
        return self.inspector.wait(progress)

    def inspect(self, source_key: SourceKey) -> Inspected:
        """Check one key without changing the node. The key is pending until its profile text is
        compiled.
        """
        inspected = self.inspector.inspect(source_key)
        if isinstance(inspected, Profile):
            self.changes.record_checked(inspected.version)
        return inspected

    def body(self, profile: Profile) -> bytes | None:
        """Return the compiled policy of a profile, or None if the profile must be compiled
        again.
        """
        return self.inspector.body(profile)

    def discard(self, profile: Profile) -> None:
        """Remove the result of a check from memory; the copy in the cache on disk stays."""
        self.inspector.discard(profile)
        self.changes.forget_checked(profile.version)

    def sandbox(self) -> Sandbox | None:
        """Return whether the parser runs in a sandbox that limits the files it can open."""
        return self.inspector.sandbox()

    def accepts_context(self, context: str) -> bool:
        """Return whether a policy with this context was compiled for the features of this
        kernel.
        """
        return self.inspector.targets.accepts(context)

    # --- observe ---------------------------------------------------------------------------------

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Return which profiles are loaded, and whether the removal candidates are in use."""
        barrier = self.access.barrier()
        if barrier is not None:
            return barrier
        wanted = frozenset(names)
        observation = self._observation
        if observation is None or wanted != self._observed_names or not self.is_unchanged():
            profiles = self.view.observe(wanted, is_complete=True)
            if isinstance(profiles, Unobservable):
                self._observation = None
                return profiles
            observation = self._observed(profiles)
            self._observed_names, self._observation = wanted, observation
        loaded = [name for name in removal_candidates if name in observation.profiles]
        if not loaded:
            return observation
        return replace(observation, uses=self.processes.uses(loaded))

    def _observed(self, profiles: Mapping[str, ObservedProfile]) -> Observation:
        """Return the observation with a mark on each profile that this agent loaded."""
        revision = self.view.observed_revision
        own = self.objects.own(self.view.object_ids(profiles), revision, profiles)
        is_hidden = not all(profile.is_readable for profile in profiles.values())
        is_hidden = is_hidden or (not profiles and self.access.hides_content())
        unwritten = self.objects.finding()
        findings = (diagnostics.content_unverifiable(),) if is_hidden else ()
        return Observation(
            profiles={
                name: replace(profile, is_agent_object=name in own)
                for name, profile in profiles.items()
            },
            findings=findings if unwritten is None else (*findings, unwritten),
        )

    def is_unchanged(self) -> bool:
        """Return whether the policy is unchanged since the agent last observed or wrote it."""
        return bool(self.access.unsupported_reason()) or self.view.is_unchanged()

    def invalidate(self) -> None:
        """Make the next observation read the content of every profile.

        Check results that the next full pass does not use will be removed from memory.
        """
        self._observation = None
        self.view.invalidate()
        self.inspector.invalidate()
        self.changes.forget_checked()

    # --- change ----------------------------------------------------------------------------------

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Load or replace the profiles of a key in one write, and verify their content."""
        self._observation = None
        return self.changes.install(profile, body, replaceable=replaceable, foreign=foreign)

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove profiles after a final check of their content and use.

        If the last attempt to prove that a profile is unused failed, and would fail again now, this
        method returns the same result immediately.
        """
        uses = self.changes.remembered_uses(names) if require_unused else {}
        if uses:
            return StillInUse(uses=uses)
        self._observation = None
        return self.changes.remove(names, evidence, require_unused=require_unused)
