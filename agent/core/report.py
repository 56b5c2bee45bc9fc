"""What a pass found and did: the only thing that reporters see.

Rule 1: a row says `installed` only if the node was seen to hold that version in this pass.
Rule 2: the exit status is a pure function of the report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from agent.core.findings import Finding, Severity
from agent.core.model import ProfileKind
from agent.core.vocabulary import (
    INSTALLS,
    ActionName,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
    UnreadableCause,
)

_CHANGES: Final = INSTALLS | {ActionName.ADOPT, ActionName.REMOVE, ActionName.RELEASE}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileStatus:
    """One provided name of one key (or the key itself, where no name is known: name is empty).

    name: AppArmor profile name, or seccomp path. localhost_profile: the exact string for
    securityContext.{appArmorProfile,seccompProfile}.localhostProfile, empty where there is none.
    source, installed, policy: sha256 hex of the key's bytes, of the file written (seccomp) and
    of the compiled policy (AppArmor); empty where unknown or of the other kind. mode: in the
    kernel (enforce, complain, kill, unconfined), empty for seccomp. desired: a current key, or the
    last good version of one, provides the name.
    """

    kind: ProfileKind
    profile_set: str
    key: str
    name: str
    localhost_profile: str
    state: ProfileState
    action: ActionName
    reason: Reason
    source_digest: str = ""
    installed: str = ""
    policy: str = ""
    mode: str = ""
    desired: bool = True
    findings: tuple[Finding, ...] = ()
    reason_text: str = ""
    """What to show instead of the reason, where more is known."""

    @property
    def why(self) -> str:
        """Return the text of the reason, as people read it."""
        return self.reason_text or self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSetStatus:
    """How reading one set went.

    left_out: its keys of kinds that are not handled (--kinds). cause: why an unreadable set is so.
    """

    profile_set: str
    state: ProfileSetState
    reason: str = ""
    keys: int = 0
    left_out: int = 0
    unlisted: int = 0
    """How many of its keys have no room and no row."""
    cause: UnreadableCause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSupport:
    """Whether this node can have profiles of a kind; the problem says why not."""

    state: SupportState
    finding: Finding | None = None
    sandboxed: bool | None = None
    """Whether the program that reads the texts runs in a sandbox; None if there is no program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One pass.

    problems: those that belong to no row (sources, ledger). names: every name that a key desires,
    by kind, as far as names are known: of accepted, rejected and pending keys. pending: how many
    keys are still being checked in the background.
    """

    profiles: tuple[ProfileStatus, ...]
    profile_sets: tuple[ProfileSetStatus, ...]
    kind_support: Mapping[ProfileKind, KindSupport]
    findings: tuple[Finding, ...] = ()
    pending: int = 0
    dry_run: bool = False
    desired_names: Mapping[ProfileKind, frozenset[str]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # read, inspect, observe, act
    pass_number: int = 0
    """The number of the pass that made this report, from 1; 0 if no pass made it.

    A pass that finds nothing changed returns the previous report with its number.
    """

    @property
    def converged(self) -> bool:
        """Return whether everything desired is verified in place and nothing is pending."""
        return is_converged(self, allow_unsupported=False)


def merge_reports(first: Report, second: Report) -> Report:
    """Merge the reports of two consecutive passes: the actions of both, the state of the second.

    A change by the first pass is part of it, where the second found nothing to do.
    """

    def place(row: ProfileStatus) -> tuple[str, ...]:
        return (row.kind, row.profile_set, row.key, row.name)

    changed = {place(row): row for row in first.profiles if row.action in _CHANGES}
    rows = {place(row): row for row in second.profiles}
    for where, row in changed.items():
        now = rows.get(where)
        if now is None and row.state in (ProfileState.REMOVED, ProfileState.RELEASED):
            rows[where] = row
        elif now is not None and (
            now.action == ActionName.KEEP
            or (now.action == ActionName.HOLD and now.state == row.state)
        ):
            rows[where] = replace(now, action=row.action, reason=row.reason)
    seconds = {step: first.seconds.get(step, 0.0) + spent for step, spent in second.seconds.items()}
    return replace(second, profiles=tuple(rows.values()), seconds=seconds)


def repeats_source_state(finding: Finding) -> bool:
    """Return whether a problem only repeats what a set's state says."""
    return finding.code.startswith("source_")


# A held row is fine when its removal waits for its users; the sets speak for missing sources.
_FINE = frozenset(
    {
        ProfileState.INSTALLED,
        ProfileState.HELD,
        ProfileState.REMOVED,
        ProfileState.RELEASED,
        ProfileState.PLANNED,
        ProfileState.ACCEPTED,
    }
)


def is_converged(report: Report, *, allow_unsupported: bool) -> bool:
    """Return whether everything desired is in place, whether or not the Node's labels say so."""
    return _of_profiles(report, allow_unsupported=allow_unsupported) == 0


def exit_status(report: Report, *, allow_unsupported: bool) -> Literal[0, 1, 3]:
    """Return 0, 1 or 3, as docs/reference.md says."""
    if any(one.code in ("node_unreachable", "label_refused") for one in report.findings):
        return 3
    return _of_profiles(report, allow_unsupported=allow_unsupported)


def _of_profiles(report: Report, *, allow_unsupported: bool) -> Literal[0, 1, 3]:
    if any(
        one.state in (ProfileSetState.MISSING, ProfileSetState.UNREADABLE)
        for one in report.profile_sets
    ):
        return 3
    if any(one.state == ProfileSetState.EMPTIED for one in report.profile_sets):
        return 1
    others = [one for one in report.findings if not repeats_source_state(one)]
    if any(finding.severity == Severity.ERROR for finding in others):
        return 1
    if report.pending:
        return 1
    fine = _FINE | ({ProfileState.UNSUPPORTED} if allow_unsupported else set())
    return 0 if all(row.state in fine for row in report.profiles) else 1
