"""Builds the report of a pass from the desired keys, the observations and the outcomes.

This module performs no I/O. The types that this module returns are in `agent.core.report`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from agent.core import admission, left_out
from agent.core.actions import Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.desired import Desired
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    KeyId,
    Missing,
    Observation,
    Observed,
    ProfileKind,
    Read,
    Snapshot,
    Unobservable,
    Unreadable,
    Unsupported,
    Version,
)
from agent.core.ports import Capabilities, InstalledForm, ModuleStates, Sandbox
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import (
    DRIFTS,
    ActionName,
    OutcomeResult,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
    UnreadableCause,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """The decisions and the actions of one pass."""

    desired: Desired
    observed: Mapping[ProfileKind, Observed]
    capabilities: Mapping[ProfileKind, Capabilities]
    sandboxes: Mapping[ProfileKind, Sandbox | None]
    outcomes: Sequence[Outcome]

    findings: Sequence[Finding] = ()
    """The findings about the pass as a whole, for example about the ledger."""

    modules: ModuleStates = field(default_factory=dict)
    dry_run: bool = False
    pass_number: int = 0

    seconds: Mapping[str, float] = field(default_factory=dict)
    """The duration of each step."""


def build_report(result: PassResult) -> Report:
    """Return the report of one pass, with its rows sorted by kind, profile name and key."""
    desired, outcomes = result.desired, result.outcomes
    rows = _all_rows(result)
    return Report(
        profiles=tuple(sorted(rows, key=lambda row: (row.kind, row.name or row.key, row.key))),
        profile_sets=tuple(
            replace(
                profile_set_status(snapshot),
                left_out=desired.left_out.get(origin, ()),
                unlisted=desired.unlisted.get(origin, 0),
            )
            for origin, snapshot in desired.profile_sets.items()
        ),
        kind_support={
            kind: kind_support(observation, result.sandboxes.get(kind))
            for kind, observation in result.observed.items()
        },
        findings=_pass_findings(result),
        security_modules={name: module.mode for name, module in result.modules.items()},
        pending=len(desired.pending)
        + sum(outcome.result == OutcomeResult.PENDING for outcome in outcomes),
        dry_run=result.dry_run,
        desired_names={
            kind: names for kind in result.observed if (names := _desired_names(kind, desired))
        },
        seconds=result.seconds,
        pass_number=result.pass_number,
    )


def _pass_findings(result: PassResult) -> tuple[Finding, ...]:
    """Return the findings that do not belong to a single profile."""
    desired = result.desired
    return (
        *result.findings,
        *_source_findings(result),
        *(admission.unlisted_keys(origin, count) for origin, count in desired.unlisted.items()),
        *left_out_findings(desired),
        *sandbox_findings(result.sandboxes.values()),
        *(
            finding
            for observation in result.observed.values()
            if isinstance(observation, Observation)
            for finding in observation.findings
        ),
    )


def _all_rows(result: PassResult) -> list[ProfileStatus]:
    """Return the rows of all outcomes and the rows of duplicate keys."""
    desired = result.desired
    rows = [
        row
        for outcome in result.outcomes
        for row in _rows(outcome, desired, result.capabilities[outcome.action.id.kind])
    ]
    for other, first in desired.duplicates.items():
        rows += [
            replace(
                row,
                profile_set=other.profile_set,
                key=other.key,
                reason=Reason.SAME_CONTENT,
                reason_text=f'same content as "{first.key}"',
            )
            for row in rows
            if (row.kind, row.profile_set, row.key) == (first.kind, first.profile_set, first.key)
            and row.action != ActionName.REMOVE
        ]
    return rows


def _desired_names(kind: ProfileKind, desired: Desired) -> frozenset[str]:
    """Return every name of a kind that accepted and rejected keys provide."""
    accepted = [
        profile.version.names for id_, profile in desired.profiles.items() if id_.kind == kind
    ]
    rejected = [
        rejection.names for id_, rejection in desired.rejections.items() if id_.kind == kind
    ]
    return frozenset(name for names in (*accepted, *rejected) for name in names)


def _rows(
    outcome: Outcome, desired: Desired, capabilities: Capabilities
) -> Iterable[ProfileStatus]:
    action = outcome.action
    state, action_name = _state(outcome, desired)
    if outcome.result == OutcomeResult.PENDING:
        state, action_name = ProfileState.PENDING, ActionName.HOLD
    if state is None:
        return
    findings = _findings(outcome, desired)
    is_desired = not isinstance(action, Remove | Release) and (
        not isinstance(action, Hold) or action.desired
    )
    version_names = frozenset(outcome.version.names) if outcome.version is not None else frozenset()
    for index, name in enumerate(action.names or ("",)):
        version = outcome.version if name in version_names else None
        row = _row(action.id, name, version, capabilities)
        yield replace(
            row,
            state=state,
            action=action_name,
            reason=action.reason,
            desired=is_desired,
            findings=findings * (index == 0),
        )


def _findings(outcome: Outcome, desired: Desired) -> tuple[Finding, ...]:
    """Return the findings about an outcome, followed by the findings about the profile itself."""
    action = outcome.action
    action_findings = action.findings if isinstance(action, Install | Hold) else ()
    profile = desired.profiles.get(action.id)
    profile_findings = profile.findings if profile is not None else ()
    if isinstance(action, Remove | Release):
        profile_findings = ()
    return tuple(dict.fromkeys(outcome.findings + action_findings + profile_findings))


def installed_digest(version: Version | None, capabilities: Capabilities) -> str:
    """Return the digest of the installed file; empty for a kind that installs policy."""
    is_file = capabilities.installed_form == InstalledForm.FILE
    return version.body_digest if version is not None and is_file else ""


def policy_digest(version: Version | None, capabilities: Capabilities) -> str:
    """Return the digest of the compiled policy; empty for a kind that installs files."""
    is_policy = capabilities.installed_form == InstalledForm.POLICY
    return version.body_digest if version is not None and is_policy else ""


def _row(
    id_: KeyId, name: str, version: Version | None, capabilities: Capabilities
) -> ProfileStatus:
    """Return the row for a profile name. The caller adds the outcome of the action."""
    return ProfileStatus(
        kind=id_.kind,
        profile_set=id_.profile_set,
        key=id_.key,
        name=name,
        localhost_profile=name,
        state=ProfileState.HELD,
        action=ActionName.HOLD,
        reason=Reason.NONE,
        source_digest=version.source_digest if version is not None else "",
        installed=installed_digest(version, capabilities),
        policy=policy_digest(version, capabilities),
        mode=version.modes.get(name, "") if version is not None else "",
    )


def _state(outcome: Outcome, desired: Desired) -> tuple[ProfileState | None, ActionName]:
    """Return the state for the rows of an outcome (None: no rows) and the name of the action."""
    action = outcome.action
    match action:
        case Install(reason=reason, profile=profile):
            is_desired_version = profile is not None
            done = ProfileState.INSTALLED if is_desired_version else _last_good(action.id, desired)
            return _or_not_done(outcome, done), _install_name(reason)
        case Adopt():
            return _or_not_done(outcome, ProfileState.INSTALLED), ActionName.ADOPT
        case Keep():
            return _or_not_done(outcome, ProfileState.INSTALLED), ActionName.KEEP
        case Hold(state=state):
            rejected = state == ProfileState.REJECTED
            return state, ActionName.REJECT if rejected else ActionName.HOLD
        case Remove():
            held = outcome.result == OutcomeResult.HELD
            removed = _or_not_done(outcome, ProfileState.REMOVED)
            return (ProfileState.HELD, ActionName.HOLD) if held else (removed, ActionName.REMOVE)
        case Release():
            return _release_state(action, outcome), ActionName.RELEASE
        case unreachable:
            assert_never(unreachable)


def _or_not_done(outcome: Outcome, done: ProfileState) -> ProfileState:
    """Return the state after an action that was carried out successfully."""
    match outcome.result:
        case OutcomeResult.FAILED:
            return ProfileState.FAILED
        case OutcomeResult.PLANNED:
            return ProfileState.PLANNED
        case OutcomeResult.PENDING:
            return ProfileState.PENDING
        case OutcomeResult.DONE | OutcomeResult.HELD:
            return done
        case unreachable:
            assert_never(unreachable)


def _release_state(action: Release, outcome: Outcome) -> ProfileState | None:
    """Return the state of a released profile, or None if the profile gets no row."""
    if outcome.result == OutcomeResult.FAILED:
        return ProfileState.FAILED
    is_internal = action.reason in (Reason.MOVED, Reason.NEVER_INSTALLED)
    if is_internal or outcome.result == OutcomeResult.HELD:
        return None
    return _or_not_done(outcome, ProfileState.RELEASED)


def _install_name(reason: Reason) -> ActionName:
    """Return the name of an action with this reason: install, replace or restore."""
    if reason in DRIFTS:
        return ActionName.RESTORE
    return ActionName.INSTALL if reason == Reason.NEW else ActionName.REPLACE


def _last_good(id_: KeyId, desired: Desired) -> ProfileState:
    """Return the state of a last good version that is on the node."""
    return ProfileState.OUTDATED if desired.contains(id_) else ProfileState.HELD


def _source_findings(result: PassResult) -> Iterator[Finding]:
    """Yield a finding about each profile set that was not read or provides no profile."""
    recorded = {outcome.action.id.profile_set for outcome in result.outcomes}
    for profile_set, snapshot in result.desired.profile_sets.items():
        finding = source_finding(snapshot, had_profiles=profile_set in recorded)
        if finding is not None:
            yield finding


def left_out_findings(desired: Desired) -> Iterable[Finding]:
    """Return a notice about each profile set with inputs that are not read as profiles.

    For an emptied profile set, its own finding already lists these inputs.
    """
    for origin, items in desired.left_out.items():
        if not isinstance(desired.profile_sets[origin], Emptied):
            yield left_out.finding(origin, items)


_HINTS: Final = {
    FindingCode.SOURCE_MISSING: (
        "Check --source and the volume that is mounted there. The profiles of the source stay "
        "installed."
    ),
    FindingCode.SOURCE_UNREADABLE: "Correct the source. Until then, no profile is removed.",
    FindingCode.SOURCE_OVER_LIMIT: (
        "Delete ConfigMaps, or make them smaller. Installed ConfigMaps that grew least are read "
        "first."
    ),
    FindingCode.SOURCE_EMPTIED: "If this is intended, pass --allow-empty to remove its profiles.",
}


def source_finding(snapshot: Snapshot, *, had_profiles: bool = True) -> Finding | None:
    """Return the finding about a profile set that was not read, or None if it was read.

    Args:
        snapshot: the result of reading the profile set.
        had_profiles: whether the ledger has a profile of the profile set.
    """
    match snapshot:
        case Read():
            return None
        case Emptied():
            code, state = FindingCode.SOURCE_EMPTIED, "empty"
        case Missing():
            code, state = FindingCode.SOURCE_MISSING, "missing"
        case Unreadable(cause=UnreadableCause.OVER_LIMIT):
            code, state = FindingCode.SOURCE_OVER_LIMIT, "over the limit"
        case Unreadable():
            code, state = FindingCode.SOURCE_UNREADABLE, "unreadable"
        case unreachable:
            assert_never(unreachable)
    status = profile_set_status(snapshot)
    is_new = code == FindingCode.SOURCE_EMPTIED and not had_profiles
    next_step = "Check --source." if is_new else _HINTS[code]
    inputs, hint = left_out.text(snapshot.left_out if isinstance(snapshot, Emptied) else ())
    return Finding(
        code=code,
        location=status.profile_set,
        message=f"The source is {state}: {status.reason}. {inputs}".strip(),
        hint=f"{hint} {next_step}".strip(),
    )


def profile_set_status(snapshot: Snapshot) -> ProfileSetStatus:
    """Return the result of reading a profile set."""
    match snapshot:
        case Read():
            keys = len(snapshot.source_keys) + len(snapshot.rejected_keys)
            return ProfileSetStatus(
                profile_set=snapshot.profile_set,
                state=ProfileSetState.READ,
                keys=keys,
                created=snapshot.created,
            )
        case Emptied():
            return ProfileSetStatus(
                profile_set=snapshot.profile_set,
                state=ProfileSetState.EMPTIED,
                reason=snapshot.reason,
            )
        case Missing():
            return ProfileSetStatus(
                profile_set=snapshot.profile_set,
                state=ProfileSetState.MISSING,
                reason=snapshot.reason,
            )
        case Unreadable(reason=reason, cause=cause):
            return ProfileSetStatus(
                profile_set=snapshot.profile_set,
                state=ProfileSetState.UNREADABLE,
                reason=reason,
                cause=cause,
            )
        case unreachable:
            assert_never(unreachable)


def sandbox_findings(sandboxes: Iterable[Sandbox | None]) -> tuple[Finding, ...]:
    """Return the findings about parsers that run without a sandbox."""
    findings = (sandbox.finding for sandbox in sandboxes if sandbox is not None)
    return tuple(finding for finding in findings if finding is not None)


def kind_support(observed: Observed, sandbox: Sandbox | None) -> KindSupport:
    """Return whether an observation shows that the node supports a profile kind."""
    sandboxed = sandbox.finding is None if sandbox is not None else None
    match observed:
        case Observation():
            return KindSupport(state=SupportState.ENABLED, sandboxed=sandboxed)
        case Unobservable():
            return KindSupport(
                state=SupportState.UNKNOWN, finding=observed.finding, sandboxed=sandboxed
            )
        case Unsupported():
            return KindSupport(
                state=SupportState.DISABLED, finding=observed.finding, sandboxed=sandboxed
            )
        case unreachable:
            assert_never(unreachable)
