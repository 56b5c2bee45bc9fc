"""Decides whether an undesired, agent-owned profile name may be removed from the node now."""

from typing import assert_never

from agent.core import diagnostics
from agent.core.actions import Hold
from agent.core.findings import Finding
from agent.core.model import InUse, KeyId, UnknownUse, Unreadable, Unused
from agent.core.plan.context import PlanContext
from agent.core.vocabulary import ProfileState, PruneMode, Reason


class RemovalChecks:
    """Checks whether profile names of one kind may be removed from the node."""

    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.has_unreadable_source = any(
            isinstance(snapshot, Unreadable) for snapshot in context.desired.profile_sets.values()
        )

    @property
    def requires_proof_of_disuse(self) -> bool:
        """Return whether a removal needs a proof that no process on the node uses the profile.

        A removal that would unconfine processes always needs this proof. For a kind without this
        effect, the list of pods or `--prune=always` is enough.
        """
        options = self.context.options
        if self.context.capabilities.removal_unconfines:
            return True
        return options.prune != PruneMode.ALWAYS and options.pods_by_profile is None

    def hold(self, id_: KeyId, name: str) -> Hold | None:
        """Return the Hold for a profile name that must stay, or None if the name may be removed."""
        if self.has_unreadable_source:
            # The label of the profile stays too, because the unreadable source may desire the
            # profile.
            return Hold(
                id=id_, reason=Reason.SOURCE_UNREADABLE, names=(name,), state=ProfileState.HELD
            )
        if self.context.options.prune == PruneMode.NEVER:
            return _hold(id_, name, Reason.PRUNE_NEVER)
        if self._may_have_label(name):
            return _hold(id_, name, Reason.LABEL_PENDING, diagnostics.label_pending(name))
        return self._hold_for_pods(id_, name) or self._hold_for_use(id_, name)

    def _may_have_label(self, name: str) -> bool:
        """Return whether the profile has a label, or had one within the grace period."""
        options = self.context.options
        if options.label_absent_seconds is None:
            return False
        absent = options.label_absent_seconds.get((self.context.kind, name))
        return absent is None or absent < options.grace_seconds

    def _hold_for_pods(self, id_: KeyId, name: str) -> Hold | None:
        """Return the Hold for a profile name that a pod on this node references or may
        reference.
        """
        options = self.context.options
        if options.pods_by_profile is None:
            if not options.pod_aware:
                return None
            return _hold(id_, name, Reason.USE_UNKNOWN, diagnostics.pods_unknown(name))
        pods = options.pods_by_profile.get((self.context.kind, name), ())
        if not pods:
            return None
        return _hold(id_, name, Reason.IN_USE, diagnostics.referenced_by_pods(name, pods))

    def _hold_for_use(self, id_: KeyId, name: str) -> Hold | None:
        """Return the Hold for a profile name that a process uses or may use."""
        unknown = UnknownUse(reason="the use of the profile was not checked")
        use = self.context.observation.uses.get(name, unknown)
        match use:
            case Unused():
                return None
            case InUse():
                return _hold(id_, name, Reason.IN_USE, diagnostics.in_use(name, use))
            case UnknownUse():
                if not self.requires_proof_of_disuse:
                    return None
                finding = diagnostics.use_unknown(name, use, self.context.capabilities)
                return _hold(id_, name, Reason.USE_UNKNOWN, finding)
            case unreachable:
                assert_never(unreachable)


def _hold(id_: KeyId, name: str, reason: Reason, *findings: Finding) -> Hold:
    """Return the Hold for a profile name that is no longer desired."""
    return Hold(
        id=id_,
        reason=reason,
        names=(name,),
        state=ProfileState.HELD,
        findings=findings,
        desired=False,
    )
