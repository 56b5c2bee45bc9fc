"""Decides for each accepted key whether its profile is installed, adopted, kept or held.

One key can block another key, because a profile is not installed while the last good version of
another key provides one of its names. `DesiredKeyPlanner` repeats the decisions until no more keys
are blocked.
"""

from collections.abc import Iterable, Sequence

from agent.core import common_findings, diagnostics
from agent.core.actions import Action, Adopt, Hold, Install, Keep
from agent.core.findings import Finding
from agent.core.model import KeyId, LedgerEntry, Pending, Profile, Version
from agent.core.ownership import is_intact, owned_names
from agent.core.plan.claims import (
    Claims,
    claimed_names,
    has_last_good_version,
    has_unavailable_source,
    is_replaced,
)
from agent.core.plan.context import PlanContext
from agent.core.plan.last_good import hold_or_restore, plan_without_version
from agent.core.plan.name_states import NameStates, name_states
from agent.core.vocabulary import ProfileState, Reason


class DesiredKeyPlanner:
    """Decides what to do with all accepted keys of one kind."""

    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.blocked_keys: set[KeyId] = set()
        self.accepted_names = set(context.providers)
        self.pending_keys: Sequence[Pending] = [
            pending for id_, pending in context.desired.pending.items() if id_.kind == context.kind
        ]

    def actions(self) -> list[Action]:
        """Return one action for each accepted key."""
        profiles = self.context.desired.profiles
        ids = self.context.sorted_keys(profiles)
        actions = {id_: self._action(profiles[id_]) for id_ in ids}
        newly_blocked = [id_ for id_ in ids if _is_blocked(actions[id_])]
        while newly_blocked:
            self.blocked_keys.update(newly_blocked)
            for id_ in newly_blocked:
                self.accepted_names.difference_update(profiles[id_].version.names)
            affected = self._affected_by(newly_blocked) - self.blocked_keys
            actions |= {id_: self._action(profiles[id_]) for id_ in affected}
            newly_blocked = [id_ for id_ in affected if _is_blocked(actions[id_])]
        return list(actions.values())

    def claims(self) -> Claims:
        """Return the claims that result from the planned actions. The method `actions` must be
        called first.
        """
        desired, kind = self.context.desired, self.context.kind
        claimed = {
            name
            for name_kind, name in claimed_names(desired, self.context.entries)
            if name_kind == kind
        }
        for id_ in self.blocked_keys & self.context.entries.keys():
            claimed |= provided_names(
                self.context, id_, self.accepted_names, is_blocked=id_ in self.blocked_keys
            )
        not_installed = [
            rejection.names for id_, rejection in desired.rejections.items() if id_.kind == kind
        ]
        not_installed += [desired.profiles[id_].version.names for id_ in self.blocked_keys]
        needed = frozenset(name for names in not_installed for name in names)
        return Claims(
            claimed_names=frozenset(claimed),
            accepted_names=frozenset(self.accepted_names),
            needed_names=needed - self.accepted_names,
            blocked_keys=frozenset(self.blocked_keys),
        )

    def _affected_by(self, blocked: Iterable[KeyId]) -> set[KeyId]:
        """Return the accepted keys that may become blocked because of the newly blocked keys.

        An accepted key may become blocked if the ledger entry of a newly blocked key owns one of
        its names. An accepted key may also become blocked if one of its names belongs to a ledger
        entry that shares a name with the profile of a newly blocked key.
        """
        names: set[str] = set()
        for id_ in blocked:
            entries = [self.context.entries[id_]] if id_ in self.context.entries else []
            for name in self.context.desired.profiles[id_].version.names:
                entries += self.context.owners_of(name)
            names.update(name for entry in entries for name in owned_names(entry))
        providers = self.context.providers
        return {providers[name] for name in names if name in providers}

    def _action(self, profile: Profile) -> Action:
        """Decide what to do with one accepted key."""
        context, id_, names = self.context, profile.id, profile.version.names
        if self._waits_for_pending_key(profile):
            return plan_without_version(context, id_, Reason.PENDING, ProfileState.PENDING, ())
        conflict = self._conflict(profile)
        if conflict is not None:
            return plan_without_version(
                context, id_, Reason.CONFLICT, ProfileState.REJECTED, (conflict,)
            )
        states = name_states(context, profile)
        if states.foreign:
            findings = tuple(
                common_findings.foreign_profile(
                    name, observed=context.observation.profiles[name], blocked_key=id_
                )
                for name in sorted(states.foreign)
            )
            return plan_without_version(
                context, id_, Reason.FOREIGN, ProfileState.FOREIGN, findings
            )
        if states.same_content:
            return Adopt(
                id=id_,
                reason=Reason.SAME_CONTENT,
                names=names,
                profile=profile,
                evidence=states.same_content,
            )
        return self._keep_or_install(profile, states)

    def _keep_or_install(self, profile: Profile, states: NameStates) -> Keep | Install:
        """Keep the profile if it is installed and intact, and install it otherwise."""
        id_, version = profile.id, profile.version
        owners = self._owners(profile)
        has_version = all(_has_version(owner, version) for owner in owners)
        if owners and has_version and len(states.intact) == len(version.names):
            entry = self.context.entries.get(id_)
            is_installed = entry is not None and entry.installed is not None
            return Keep(
                id=id_,
                reason=Reason.UNCHANGED if is_installed else Reason.RENAMED,
                names=version.names,
                profile=profile,
                evidence=states.intact,
                provenance=owners[0].provenance,
            )
        keeps_foreign = owners and has_version
        return Install(
            id=id_,
            reason=_install_reason(states, owners, version, has_version=has_version),
            names=version.names,
            profile=profile,
            replaceable=states.replaceable,
            foreign=self.context.foreign_objects(states.intact) if keeps_foreign else frozenset(),
            previous_owners=frozenset(owner.id for owner in owners),
            fallback=self._fallback(profile, owners),
        )

    def _fallback(self, profile: Profile, owners: Sequence[LedgerEntry]) -> Install | None:
        """Return the action that restores the last good version if the installation fails.

        The result is None if the last good version is on the node already, or if one of its names
        now belongs to another key or to another program.
        """
        context = self.context
        previous = [
            owner
            for owner in owners
            if owner.id == profile.id or context.is_undesired_or_duplicate(owner.id)
        ]
        if not previous or (len(previous) > 1 and previous[0].id != profile.id):
            return None
        entry = previous[0]
        if entry.installed is None or _is_same_version(entry.installed, profile.version):
            return None
        if not all(self._may_restore(entry, name, profile) for name in entry.installed.names):
            return None
        action = hold_or_restore(context, entry, Reason.REJECTED, ProfileState.OUTDATED)
        return action if isinstance(action, Install) else None

    def _may_restore(self, entry: LedgerEntry, name: str, profile: Profile) -> bool:
        """Return whether no other key owns a name of this key's last good version."""
        if self.context.providers.get(name, profile.id) != profile.id:
            return False
        if any(owner.id != entry.id for owner in self.context.owners_of(name)):
            return False
        observed = self.context.observed(name)
        is_replaced_by_profile = name in profile.version.names
        return is_replaced_by_profile or observed is None or is_intact(entry, name, observed)

    def _owners(self, profile: Profile) -> list[LedgerEntry]:
        """Return the ledger entries that own a name of the profile; the key's own entry comes
        first.
        """
        owners: dict[KeyId, LedgerEntry] = {}
        entry = self.context.entries.get(profile.id)
        if entry is not None and owned_names(entry):
            owners[entry.id] = entry
        for name in profile.version.names:
            for owner in self.context.owners_of(name):
                owners[owner.id] = owner
        return list(owners.values())

    def _waits_for_pending_key(self, profile: Profile) -> bool:
        """Return whether a pending key may provide one of the names that the profile adds."""
        for name in profile.version.names:
            owners = {entry.id for entry in self.context.owners_of(name)}
            if profile.id in owners:
                continue
            if owners & self.context.desired.pending.keys():
                return True
            if not owners and any(pending.may_provide(name) for pending in self.pending_keys):
                return True
        return False

    def _conflict(self, profile: Profile) -> Finding | None:
        """Return a finding if the last good version of another key blocks this profile."""
        body = profile.version.body_digest
        for name in profile.version.names:
            for entry in self.context.owners_of(name):
                installed = entry.installed
                if entry.id == profile.id or installed is None or name not in installed.names:
                    continue
                if installed.body_digest == body:
                    continue
                if self._is_rejected(entry.id):
                    return diagnostics.name_of_rejected_key(name, entry.id)
                if self._is_kept_for_unavailable_source(entry):
                    return diagnostics.name_of_unavailable_source(name, entry.id)
        return None

    def _is_rejected(self, id_: KeyId) -> bool:
        desired = self.context.desired
        return id_ in desired.rejections or id_ in desired.unchecked or id_ in self.blocked_keys

    def _is_kept_for_unavailable_source(self, entry: LedgerEntry) -> bool:
        desired = self.context.desired
        return has_unavailable_source(entry, desired) and not is_replaced(
            entry, desired, self.accepted_names
        )


def provided_names(
    context: PlanContext, id_: KeyId, accepted_names: Iterable[str], *, is_blocked: bool
) -> frozenset[str]:
    """Return the names that a key currently provides, including names of its last good version."""
    entry = context.entries[id_]
    names: set[str] = set()
    if id_ in context.desired.profiles:
        names.update(context.desired.profiles[id_].version.names)
    if entry.installed is not None and (
        is_blocked or keeps_last_good_version(context, entry, accepted_names)
    ):
        names.update(entry.installed.names)
    return frozenset(names)


def keeps_last_good_version(
    context: PlanContext, entry: LedgerEntry, accepted_names: Iterable[str]
) -> bool:
    """Return whether the last good version of a ledger entry stays on the node, because no key
    replaces it.
    """
    return has_last_good_version(entry, context.desired) and not is_replaced(
        entry, context.desired, frozenset(accepted_names)
    )


def _has_version(entry: LedgerEntry, version: Version) -> bool:
    """Return whether a ledger entry has at least this version's profile names and has this version
    installed.
    """
    installed = entry.installed
    return (
        installed is not None
        and installed.body_digest == version.body_digest
        and set(version.names) <= set(installed.names)
    )


def _install_reason(
    states: NameStates, owners: Sequence[LedgerEntry], version: Version, *, has_version: bool
) -> Reason:
    """Return the reason to install a profile."""
    if not owners:
        if states.unfinished:
            return Reason.UNFINISHED
        return Reason.TAKEN_OVER if states.taken_over else Reason.NEW
    if not has_version:
        installed = (owner.installed for owner in owners)
        sources = {old.source_digest for old in installed if old is not None}
        return Reason.RECOMPILED if sources == {version.source_digest} else Reason.CHANGED
    if states.missing:
        return Reason.WENT_MISSING
    return Reason.DRIFTED if states.drifted else Reason.TAKEN_OVER


def _is_same_version(installed: Version, version: Version) -> bool:
    return (installed.body_digest, installed.names) == (version.body_digest, version.names)


def _is_blocked(action: Action) -> bool:
    """Return whether this pass does not install the desired version of an accepted key."""
    return isinstance(action, Hold) or (isinstance(action, Install) and action.profile is None)
