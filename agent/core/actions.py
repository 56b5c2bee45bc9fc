"""The actions of a plan and the outcomes of these actions."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.findings import Finding
from agent.core.model import Evidence, KeyId, Profile, Version
from agent.core.vocabulary import OutcomeResult, ProfileState, Provenance, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """Install, replace or restore one version of a profile."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    profile: Profile | None
    """The desired version of the profile; None for the installed version in the ledger entry."""

    replaceable: frozenset[str]
    """Profile names whose content on the node may be replaced. All other profile names must be
    absent."""

    foreign: frozenset[str] = frozenset()
    """Replaceable profile names that another program installed with this content; they stay
    foreign."""

    findings: tuple[Finding, ...] = ()
    previous_owners: frozenset[KeyId] = frozenset()
    """The keys whose ledger entries own at least one of the names before the installation."""

    fallback: "Install | None" = None
    """The action that restores the last good version if this installation fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Track a profile that another program has installed with the desired content."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    profile: Profile
    evidence: Mapping[str, Evidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Keep a profile that is installed and intact, and update its ledger entry."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    profile: Profile
    evidence: Mapping[str, Evidence]
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Leave the node unchanged for some profile names, and report the reason."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    state: ProfileState
    findings: tuple[Finding, ...] = ()
    desired: bool = True
    """Whether a current key provides the names, at least in its last good version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Remove agent-owned profile names that are no longer desired."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    require_unused: bool
    """Whether a profile name is removed only after a proof that no process uses the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Stop tracking profile names, without changing the node."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]


Action = Install | Adopt | Keep | Hold | Remove | Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one action."""

    action: Action
    result: OutcomeResult
    findings: tuple[Finding, ...] = ()
    version: Version | None = None
    """The version on the node after the action; None if the version is unknown."""

    seconds: float = 0.0
