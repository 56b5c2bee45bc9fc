"""Decides what to do with the profile names in the ledger that no accepted key provides.

An undesired name is removed only if four conditions are met: this agent installed it, its content
is unchanged, no key needs it, and no process uses it. All other undesired profile names are held,
or are released without changing the node. The conditions also apply to the names of an unfinished
installation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.core.actions import Action, Hold, Release, Remove
from agent.core.model import Evidence, LedgerEntry, ObservedProfile, Read
from agent.core.ownership import (
    evidence_of,
    has_exact_content,
    has_same_content,
    is_installed_by_agent,
    is_proven_staged,
    owned_names,
    recorded_names,
    staged_evidence,
)
from agent.core.plan.claims import Claims
from agent.core.plan.context import PlanContext
from agent.core.plan.desired_keys import keeps_last_good_version, provided_names
from agent.core.plan.last_good import hold_or_restore
from agent.core.plan.removal_checks import RemovalChecks
from agent.core.vocabulary import ProfileState, Reason


class UndesiredNamePlanner:
    """Decides what to do with the undesired names of one kind."""

    def __init__(self, context: PlanContext, claims: Claims) -> None:
        self.context = context
        self.claims = claims
        self.checks = RemovalChecks(context)
        self.has_pending_keys = any(id_.kind == context.kind for id_ in context.desired.pending)

    def actions(self) -> list[Action]:
        """Return the actions; the removals come last."""
        context, desired = self.context, self.context.desired
        actions: list[Action] = []
        for id_ in context.sorted_keys(context.entries.keys()):
            if id_.profile_set in desired.profile_sets or id_ in desired.duplicates:
                actions += self._of_entry(context.entries[id_])
        for id_ in context.sorted_keys(context.entries.keys()):
            if id_.profile_set not in desired.profile_sets:
                # No configured source provides this profile set, but a key of another set may
                # provide its names.
                actions += self._moved_names(context.entries[id_])
        removals = [action for action in actions if isinstance(action, Remove)]
        others = [action for action in actions if not isinstance(action, Remove)]
        # If several entries own a name, the entry that matches the node is released last.
        others.sort(key=self._matches_node)
        return [*others, *removals]

    def _of_entry(self, entry: LedgerEntry) -> Iterable[Action]:
        """Decide what to do with the names of one entry that the entry's key does not provide."""
        profile = self.context.desired.profiles.get(entry.id)
        evidence = self._undecided_names(entry)
        if profile is not None and evidence.keys() <= frozenset(profile.version.names):
            return  # Usually, the key still provides every name in its ledger entry.
        reason_to_stay = self._reason_to_stay_whole(entry)
        if reason_to_stay is not None:
            yield hold_or_restore(self.context, entry, reason_to_stay, ProfileState.HELD)
        names = entry.retired if reason_to_stay is not None else evidence
        provided = provided_names(
            self.context,
            entry.id,
            self.claims.accepted_names,
            is_blocked=entry.id in self.claims.blocked_keys,
        )
        decided = self._decide_names(entry, sorted(set(names) - provided), evidence)
        yield from decided.holds.values()
        for reason, released in decided.releases.items():
            yield Release(id=entry.id, reason=reason, names=tuple(released))
        if self._is_read(entry) and not evidence and not self.context.desired.contains(entry.id):
            yield Release(id=entry.id, reason=Reason.NEVER_INSTALLED, names=())
        if decided.removals:
            yield Remove(
                id=entry.id,
                reason=Reason.NOT_DESIRED,
                names=tuple(decided.removals),
                evidence={name: evidence[name] for name in decided.removals},
                require_unused=self.checks.requires_proof_of_disuse,
            )

    def _undecided_names(self, entry: LedgerEntry) -> dict[str, Evidence]:
        """Return the names that a ledger entry owns, and the names of its staged version.

        The staged names of an existing key are excluded if the key is blocked or has no accepted
        version, because its next accepted version may contain them.
        """
        names = owned_names(entry)
        id_, desired = entry.id, self.context.desired
        if id_ in desired.profiles:
            is_waiting = id_ in self.claims.blocked_keys
        else:
            is_present = not self.context.is_undesired_or_duplicate(id_)
            is_waiting = is_present or desired.is_present_unaccepted(id_)
        if entry.staged is None or is_waiting:
            return names
        for name in entry.staged.names:
            if not is_installed_by_agent(entry, name):
                # The evidence of an adopted profile identifies the content that another program
                # installed.
                names[name] = frozenset()
            names.setdefault(name, frozenset())
            observed = self.context.observed(name)
            if observed is not None:
                names[name] |= staged_evidence(entry, name, observed)
        return names

    def _decide_names(
        self, entry: LedgerEntry, names: Iterable[str], evidence: Mapping[str, Evidence]
    ) -> "_NameDecisions":
        """Decide whether to hold, release or remove each profile name."""
        decided = _NameDecisions(holds={}, releases={}, removals=[])
        for name in names:
            reason = self._reason_to_release(entry, name, evidence[name])
            hold = None if reason is not None else self._hold(entry, name, decided.holds)
            if self.has_pending_keys and reason in (None, Reason.ADOPTED, Reason.FOREIGN):
                # The profile may have moved to a key that is pending. A foreign profile loses its
                # label now, but the ledger entry stays, because the pending key may repair the
                # profile.
                hold = Hold(
                    id=entry.id,
                    reason=Reason.PENDING,
                    names=(name,),
                    state=ProfileState.HELD,
                    desired=reason != Reason.FOREIGN,
                )
            if hold is not None:
                decided.holds[name] = hold
            elif reason is not None:
                decided.releases.setdefault(reason, []).append(name)
            else:
                decided.removals.append(name)
        return decided

    def _reason_to_release(
        self, entry: LedgerEntry, name: str, evidence: Evidence
    ) -> Reason | None:
        """Return the reason to release a profile name without changing the node, or None."""
        observed = self.context.observed(name)
        if name in self.claims.claimed_names and not self._is_last_owner_of_needed(entry, name):
            return Reason.MOVED
        is_owned = name in owned_names(entry)
        if observed is None:
            return Reason.ABSENT if is_owned else Reason.NEVER_INSTALLED
        owners = self.context.owners_of(name)
        is_proven = is_proven_staged(entry, name, observed)
        is_sole = is_proven and all(self._is_stale(owner, name, observed) for owner in owners)
        if not is_owned and owners and not is_sole:
            return Reason.MOVED
        if is_proven:
            return None
        if not is_installed_by_agent(entry, name):
            return Reason.ADOPTED
        is_agent_owned = (
            has_exact_content(evidence, observed) and observed.is_agent_object is not False
        )
        return None if is_agent_owned else Reason.FOREIGN

    def _is_stale(self, owner: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
        """Return whether a ledger entry releases a profile name because the key of the entry is not
        desired and the node has other content.
        """
        return (
            self.context.is_undesired_or_duplicate(owner.id)
            and self._reason_to_stay_whole(owner) is None
            and not has_exact_content(evidence_of(owner, name), observed)
        )

    def _hold(self, entry: LedgerEntry, name: str, holds: Mapping[str, Hold]) -> Hold | None:
        """Return the Hold for a profile name that must stay on the node; return None if the name
        may be removed.
        """
        reason = None
        if self._is_last_owner_of_needed(entry, name):
            reason = Reason.STILL_NEEDED
        elif name not in owned_names(entry) and not self._is_read(entry):
            # The agent knows that the staged version is not desired only after a complete read of
            # the source.
            reason = Reason.SOURCE_UNAVAILABLE
        if reason is not None:
            return Hold(
                id=entry.id,
                reason=reason,
                names=(name,),
                state=ProfileState.HELD,
                desired=False,
            )
        parent = holds.get(name.rpartition("//")[0])
        if parent is not None:
            # A process that runs under the parent may change to its hats and child profiles at any
            # time.
            return replace(parent, names=(name,), findings=())
        return self.checks.hold(entry.id, name)

    def _is_read(self, entry: LedgerEntry) -> bool:
        """Return whether the profile set of a ledger entry was read completely."""
        return isinstance(self.context.desired.profile_sets.get(entry.id.profile_set), Read)

    def _is_last_owner_of_needed(self, entry: LedgerEntry, name: str) -> bool:
        """Return whether a key that cannot be installed needs a profile name that only this entry
        owns.

        This check prevents the removal of a profile whose key is renamed and rejected in the same
        change.
        """
        owners = self.context.owners_of(name)
        return name in self.claims.needed_names and all(owner.id == entry.id for owner in owners)

    def _reason_to_stay_whole(self, entry: LedgerEntry) -> Reason | None:
        """Return the reason to keep all names of an undesired key, or None."""
        if entry.installed is None or not self.context.is_undesired_or_duplicate(entry.id):
            return None
        if keeps_last_good_version(self.context, entry, self.claims.accepted_names):
            return Reason.SOURCE_UNAVAILABLE
        names = entry.installed.names
        is_needed = any(self._is_last_owner_of_needed(entry, name) for name in names)
        if is_needed and self.claims.accepted_names.isdisjoint(names):
            return Reason.STILL_NEEDED
        return None

    def _matches_node(self, action: Action) -> bool:
        """Return whether an action releases a moved profile name from the ledger entry that matches
        the node.
        """
        if not isinstance(action, Release) or action.reason != Reason.MOVED:
            return False
        evidence = owned_names(self.context.entries[action.id])
        return any(
            len(self.context.owners_of(name)) > 1
            and (observed := self.context.observed(name)) is not None
            and has_same_content(evidence.get(name, frozenset()), observed)
            for name in action.names
        )

    def _moved_names(self, entry: LedgerEntry) -> Iterable[Release]:
        """Release those names of a ledger entry that accepted keys now provide."""
        moved = sorted(recorded_names(entry) & self.claims.accepted_names)
        if moved:
            yield Release(id=entry.id, reason=Reason.MOVED, names=tuple(moved))


@dataclass(slots=True, kw_only=True)
class _NameDecisions:
    """The decisions about the undesired names of one ledger entry."""

    holds: dict[str, Hold]
    releases: dict[Reason, list[str]]
    removals: list[str]
