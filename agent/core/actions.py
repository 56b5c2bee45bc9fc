"""What may be decided about one key: plain data, for reconcile to act on and account to tell."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.findings import Finding
from agent.core.model import Evidence, KeyId, Profile, Version
from agent.core.vocabulary import OutcomeResult, ProfileState, Provenance, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """Install profile (the desired one), or the entry's installed version when it is None.

    ours: the names whose content on the node may be replaced. others are written as new. foreign:
    those of ours that another program installed with this very content; they stay foreign. former:
    the entries that own any of the names now. back: what to put instead if this one fails, since
    the node lacks the last good version.
    """

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    profile: Profile | None
    replaceable: frozenset[str]
    foreign: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()
    previous_owners: frozenset[KeyId] = frozenset()
    fallback: "Install | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Track content that is on the node already; it stays somebody else's."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    profile: Profile
    evidence: Mapping[str, Evidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Nothing to do on the node. inherited: what is known of names that other keys had."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    profile: Profile
    evidence: Mapping[str, Evidence]
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Leave the node as it is, for a reason that people should see."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    state: ProfileState
    findings: tuple[Finding, ...] = ()
    desired: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Remove names that are ours and no longer desired; prove: only if nobody uses them."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    require_unused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Forget names; the node stays as it is."""

    id: KeyId
    reason: Reason
    names: tuple[str, ...]


Action = Install | Adopt | Keep | Hold | Remove | Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One action and what became of it. version: what the node holds now, where that is known."""

    action: Action
    result: OutcomeResult
    findings: tuple[Finding, ...] = ()
    version: Version | None = None
    seconds: float = 0.0
