"""Decides what to do with the profiles of a kind that this node does not support or that the agent
cannot observe.

Every decision is a Hold, because the agent does not change profiles that it cannot observe.
"""

from collections.abc import Iterable, Mapping

from agent.core.actions import Hold
from agent.core.desired import Desired
from agent.core.model import KeyId, LedgerEntry, ProfileKind, Unobservable, Unsupported
from agent.core.ownership import owned_names
from agent.core.plan.claims import has_last_good_version
from agent.core.plan.context import sorted_keys
from agent.core.vocabulary import ProfileState, Reason


def plan_unobservable(
    kind: ProfileKind,
    desired: Desired,
    entries: Mapping[KeyId, LedgerEntry],
    observed: Unobservable | Unsupported,
) -> Iterable[Hold]:
    """Hold every key and every ledger entry of the kind."""
    if isinstance(observed, Unobservable):
        reason, state = Reason.UNOBSERVABLE, ProfileState.UNOBSERVABLE
    else:
        reason, state = Reason.UNSUPPORTED, ProfileState.UNSUPPORTED
    for id_ in sorted_keys(desired.rejections, kind):
        yield _hold_rejected(id_, desired, entries, observed, state)
    undecided = [*desired.profiles, *desired.unchecked, *desired.pending]
    for id_ in sorted_keys(undecided, kind):
        profile = desired.profiles.get(id_)
        names = profile.version.names if profile is not None else ()
        yield Hold(id=id_, reason=reason, names=names, state=state, findings=(observed.finding,))
    for id_ in sorted_keys(entries.keys(), kind):
        entry = entries[id_]
        if id_.profile_set in desired.profile_sets and not desired.contains(id_):
            yield Hold(
                id=id_,
                reason=reason,
                names=tuple(sorted(owned_names(entry))),
                state=state,
                findings=(observed.finding,),
                desired=has_last_good_version(entry, desired),
            )


def _hold_rejected(
    id_: KeyId,
    desired: Desired,
    entries: Mapping[KeyId, LedgerEntry],
    observed: Unobservable | Unsupported,
    state: ProfileState,
) -> Hold:
    """Hold a rejected key, because the state of its last good version is unknown."""
    findings = desired.rejections[id_].findings
    installed = entries[id_].installed if id_ in entries else None
    if installed is None:
        return Hold(
            id=id_,
            reason=Reason.REJECTED,
            names=(),
            state=ProfileState.REJECTED,
            findings=findings,
        )
    return Hold(
        id=id_,
        reason=Reason.REJECTED,
        names=installed.names,
        state=state,
        findings=(*findings, observed.finding),
    )
