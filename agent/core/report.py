"""Defines the report of a pass, which contains the states of all profiles and profile sets, and the
findings.

The receivers of a report use no other data about the pass. A profile is `installed` only if this
pass verified it on the node. The exit status of a command depends only on its report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from agent.core.finding_codes import SOURCE_CODES, FindingCode, Severity
from agent.core.findings import Finding
from agent.core.left_out import LeftOut
from agent.core.model import ProfileKind, SecurityModule
from agent.core.vocabulary import (
    DRIFTS,
    INSTALLS,
    ActionName,
    ModuleMode,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
    UnreadableCause,
)

_CHANGES: Final = INSTALLS | {ActionName.ADOPT, ActionName.REMOVE, ActionName.RELEASE}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileStatus:
    """The row of a profile name that a key provides, or of a key whose names are unknown."""

    kind: ProfileKind
    profile_set: str
    key: str
    name: str
    """The name that pods can reference; empty if the key's names are unknown."""

    localhost_profile: str
    """The value for `localhostProfile` in a pod's security context; empty if no value is known."""

    state: ProfileState
    action: ActionName
    reason: Reason
    source_digest: str = ""
    """The sha256 of the content of the key; empty if the content is unknown."""

    installed: str = ""
    """The sha256 of the installed file; empty for kinds that install policy."""

    policy: str = ""
    """The sha256 of the compiled policy; empty for kinds that install files."""

    mode: str = ""
    """The mode that the profile has in the kernel; empty for kinds without modes."""

    desired: bool = True
    """Whether a current key provides the name, at least in its last good version."""

    findings: tuple[Finding, ...] = ()
    reason_text: str = ""
    """A more precise text that replaces the reason in tables and messages; empty if there is
    none."""

    @property
    def why(self) -> str:
        """The text that explains the reason to users."""
        return self.reason_text or self.reason

    @property
    def is_repair(self) -> bool:
        """Return whether this row reports a repair of the profile.

        The row of a duplicate key repeats only the action of the other key, and not its reason.
        """
        return self.action == ActionName.RESTORE and self.reason in DRIFTS


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSetStatus:
    """The result of reading one profile set."""

    profile_set: str
    state: ProfileSetState
    reason: str = ""
    keys: int = 0
    left_out: tuple[LeftOut, ...] = ()
    """The inputs that are not read as profiles, by reason."""

    unlisted: int = 0
    """The number of keys that exceed a limit and have no row in the report."""

    created: str | None = None
    """The creation time of a ConfigMap that was read; empty for files; None if nothing was read."""

    cause: UnreadableCause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSupport:
    """Whether this node supports one profile kind."""

    state: SupportState
    finding: Finding | None = None
    """The reason why the kind is not supported, or why its profiles cannot be observed."""

    sandboxed: bool | None = None
    """Whether the parser of the kind runs in a sandbox; None for a kind without a parser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of one pass."""

    profiles: tuple[ProfileStatus, ...]
    profile_sets: tuple[ProfileSetStatus, ...]
    kind_support: Mapping[ProfileKind, KindSupport]
    findings: tuple[Finding, ...] = ()
    """The findings that belong to no row, for example findings about sources or the ledger."""

    security_modules: Mapping[SecurityModule, ModuleMode] = field(default_factory=dict)
    """The modes of the security modules for which the agent installs nothing."""

    pending: int = 0
    """The number of keys that are still being checked in the background."""

    dry_run: bool = False
    desired_names: Mapping[ProfileKind, frozenset[str]] = field(default_factory=dict)
    """For each profile kind, the known names of accepted and rejected keys."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """The duration of each step of the pass (read, inspect, observe and act)."""

    pass_number: int = 0
    """The number of the pass that made this report, starting with 1; 0 if no pass made it.

    A pass that finds no change returns the previous report with its number.
    """

    @property
    def converged(self) -> bool:
        """Return whether all accepted profiles are verified on the node and no key is pending.

        A dry run that plans a change is not converged.
        """
        return is_converged(self, allow_unsupported=False)


def merge_reports(first: Report, second: Report) -> Report:
    """Merge the reports of two consecutive passes.

    All states come from the second pass. A change by the first pass is included if the second pass
    did not change the same profile.
    """

    def identity(row: ProfileStatus) -> tuple[str, ...]:
        return (row.kind, row.profile_set, row.key, row.name)

    changed = {identity(row): row for row in first.profiles if row.action in _CHANGES}
    rows = {identity(row): row for row in second.profiles}
    for row_identity, row in changed.items():
        current = rows.get(row_identity)
        if current is None and row.state in (ProfileState.REMOVED, ProfileState.RELEASED):
            rows[row_identity] = row
        elif current is not None and (
            current.action == ActionName.KEEP
            or (current.action == ActionName.HOLD and current.state == row.state)
        ):
            rows[row_identity] = replace(
                current, action=row.action, reason=row.reason, reason_text=row.reason_text
            )
    seconds = {
        step: first.seconds.get(step, 0.0) + duration for step, duration in second.seconds.items()
    }
    return replace(second, profiles=tuple(rows.values()), seconds=seconds)


def repeats_source_state(finding: Finding) -> bool:
    """Return whether a finding only repeats the state of a profile set."""
    return finding.code in SOURCE_CODES


# A held profile does not count, because its removal may wait until the profile is unused. Findings
# about missing sources do not count, because the states of the profile sets already do.
_CONVERGED_STATES = frozenset(
    {
        ProfileState.INSTALLED,
        ProfileState.HELD,
        ProfileState.REMOVED,
        ProfileState.RELEASED,
        ProfileState.PLANNED,
        ProfileState.ACCEPTED,
    }
)


# Findings about labels do not count, because labels are not part of the state of the profiles.
_LABEL_FAILURES: Final = (FindingCode.NODE_UNREACHABLE, FindingCode.LABEL_REFUSED)


def is_converged(report: Report, *, allow_unsupported: bool) -> bool:
    """Return whether the node is converged. The result does not depend on the labels of the
    Node.
    """
    status = _profiles_status(report, allow_unsupported=allow_unsupported)
    return status == 0 and not _has_planned_changes(report)


def exit_status(
    report: Report, *, allow_unsupported: bool, detailed: bool = False
) -> Literal[0, 1, 3, 5]:
    """Return the exit status of a command. docs/reference.md explains the statuses.

    Args:
        report: the report.
        allow_unsupported: whether unsupported kinds do not count.
        detailed: whether planned changes have a separate exit status, unless another status
            applies.
    """
    if any(finding.code in _LABEL_FAILURES for finding in report.findings):
        return 3
    status = _profiles_status(report, allow_unsupported=allow_unsupported)
    return 5 if status == 0 and detailed and _has_planned_changes(report) else status


def _has_planned_changes(report: Report) -> bool:
    return any(row.state == ProfileState.PLANNED for row in report.profiles)


def _profiles_status(report: Report, *, allow_unsupported: bool) -> Literal[0, 1, 3]:
    if any(
        status.state in (ProfileSetState.MISSING, ProfileSetState.UNREADABLE)
        for status in report.profile_sets
    ):
        return 3
    if any(status.state == ProfileSetState.EMPTIED for status in report.profile_sets):
        return 1
    others = [
        finding
        for finding in report.findings
        if not repeats_source_state(finding) and finding.code not in _LABEL_FAILURES
    ]
    if any(finding.severity == Severity.ERROR for finding in others):
        return 1
    if report.pending:
        return 1
    converged = _CONVERGED_STATES | ({ProfileState.UNSUPPORTED} if allow_unsupported else set())
    return 0 if all(row.state in converged for row in report.profiles) else 1
