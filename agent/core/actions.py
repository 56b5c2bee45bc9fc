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
    """The desired version; None for the installed version in the ledger entry."""

    replaceable: frozenset[str]
    """Names whose content on the node may be replaced. All other names must be absent."""

    foreign: frozenset[str] = frozenset()
    """Replaceable names that another program installed with this content; they stay foreign."""

    findings: tuple[Finding, ...] = ()
    previous_owners: frozenset[KeyId] = frozenset()
    """Keys whose ledger entries own at least one of the names before the installation."""

    fallback: "Install | None" = None
    """The action that restores the last good version if this installation fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Track a profile that another program installed with the desired content."""

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
    """Leave the node unchanged, and report the reason."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    state: ProfileState
    findings: tuple[Finding, ...] = ()
    desired: bool = True
    """Whether a current key provides the names, at least in its last good version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Remove agent-owned names that are no longer desired."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    require_unused: bool
    """Whether a name is removed only if it is proven that no process uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Stop tracking names, without changing the node."""

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
