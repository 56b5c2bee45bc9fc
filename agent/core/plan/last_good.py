"""Decisions about keys whose last good version must stay on the node."""

from agent.core import common_findings
from agent.core.actions import Hold, Install
from agent.core.findings import Finding
from agent.core.model import KeyId, LedgerEntry
from agent.core.ownership import is_agent_owned
from agent.core.plan.context import PlanContext
from agent.core.vocabulary import ProfileState, Reason


def plan_without_version(
    context: PlanContext,
    id_: KeyId,
    reason: Reason,
    state: ProfileState,
    findings: tuple[Finding, ...],
) -> Hold | Install:
    """Decide what to do with a key that currently has no version to install.

    Args:
        context: the input of the plan.
        id_: the key.
        reason: the reason why the key has no version to install.
        state: the state to report if the key has no last good version either.
        findings: the findings to report.
    """
    entry = context.entries.get(id_)
    if entry is None or entry.installed is None:
        profile = context.desired.profiles.get(id_)
        names = profile.version.names if profile is not None else ()
        return Hold(id=id_, reason=reason, names=names, state=state, findings=findings)
    return hold_or_restore(context, entry, reason, ProfileState.OUTDATED, findings)


def hold_or_restore(
    context: PlanContext,
    entry: LedgerEntry,
    reason: Reason,
    state: ProfileState,
    findings: tuple[Finding, ...] = (),
) -> Hold | Install:
    """Hold the installed version of a ledger entry, or restore it if it is not on the node."""
    names = entry.installed.names if entry.installed is not None else ()
    present = {name: profile for name in names if (profile := context.observed(name)) is not None}
    drifted = {
        name: profile
        for name, profile in present.items()
        if context.matching_entry(entry, name, profile) is None
    }
    foreign = tuple(
        common_findings.foreign_profile(name, observed=profile, blocked_key=entry.id)
        for name, profile in drifted.items()
        if not is_agent_owned(entry, name, profile)
    )
    if foreign:
        return Hold(
            id=entry.id,
            reason=Reason.FOREIGN,
            names=names,
            state=ProfileState.FOREIGN,
            findings=findings + foreign,
        )
    is_complete = len(present) == len(names)
    if is_complete and not drifted:
        return Hold(id=entry.id, reason=reason, names=names, state=state, findings=findings)
    return Install(
        id=entry.id,
        reason=Reason.DRIFTED if is_complete else Reason.WENT_MISSING,
        names=names,
        profile=None,
        replaceable=frozenset(present),
        foreign=context.foreign_objects(set(names) - set(drifted)),
        findings=findings,
    )
