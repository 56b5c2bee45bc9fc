"""Determines which profiles on the node belong to a ledger entry, based on an observation.

A ledger entry owns a profile only if this agent created the loaded object or the file on the node.
If another program created the object or file, it is foreign, even if its content is the same.
Adopted profiles were installed by another program. Retired names were installed by this agent, but
are missing from a newer version.
"""

from agent.core.model import Evidence, LedgerEntry, ObservedProfile, Version
from agent.core.vocabulary import Provenance


def has_same_content(evidence: Evidence, observed: ObservedProfile, mode: str = "") -> bool:
    """Return whether the observed profile has the content of the given evidence, or other content
    with the same meaning.

    If a mode is passed, and the profile kind has modes, the observed profile must also have this
    mode.
    """
    return not evidence.isdisjoint(observed.evidence | observed.equivalent_evidence) and (
        not mode or not observed.mode or mode == observed.mode
    )


def has_exact_content(evidence: Evidence, observed: ObservedProfile) -> bool:
    """Return whether the observed profile has exactly the content of the given evidence.

    Only exactly equal content can prove that the agent wrote a profile.
    """
    return not evidence.isdisjoint(observed.evidence)


def owned_names(entry: LedgerEntry) -> dict[str, Evidence]:
    """Return the names that a ledger entry owns, with the evidence of their content."""
    names = dict(entry.retired)
    if entry.installed is not None:
        for name in entry.installed.names:
            names[name] = entry.installed.evidence.get(name, frozenset())
    return names


def recorded_names(entry: LedgerEntry) -> frozenset[str]:
    """Return every profile name that this agent may have installed on the node through a ledger
    entry.

    The result includes the names of an installation that did not finish.
    """
    staged = entry.staged.names if entry.staged is not None else ()
    return frozenset(owned_names(entry)).union(staged)


def evidence_of(entry: LedgerEntry, name: str) -> Evidence:
    """Return the recorded evidence of one profile name that a ledger entry owns."""
    installed = entry.installed
    if installed is not None and name in installed.evidence:
        return installed.evidence[name]
    return entry.retired.get(name, frozenset())


def is_installed_by_agent(entry: LedgerEntry, name: str) -> bool:
    """Return whether this agent installed a profile name that a ledger entry owns.

    All retired profile names were installed by this agent.
    """
    return entry.provenance == Provenance.INSTALLED or name in entry.retired


def is_agent_owned(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether this agent created the observed profile, whose name belongs to a ledger
    entry.
    """
    return is_installed_by_agent(entry, name) and observed.is_agent_object is not False


def is_staged(version: Version | None, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile comes from an unfinished installation of a version."""
    if version is None or name not in version.names or observed.is_agent_object is False:
        return False
    return observed.is_agent_object is True or has_exact_content(
        version.evidence.get(name, frozenset()), observed
    )


def staged_evidence(entry: LedgerEntry, name: str, observed: ObservedProfile) -> Evidence:
    """Return the evidence of one profile name whose installation did not finish.

    If the node does not show the content, the result includes the evidence of the observed profile.
    Without the content, only the agent's record of the profiles that it loaded identifies the
    profile.
    """
    version = entry.staged
    if version is None or name not in version.names:
        return frozenset()
    recorded = version.evidence.get(name, frozenset())
    is_hidden_own = observed.is_agent_object is True and not observed.is_readable
    return recorded | observed.evidence if is_hidden_own else recorded


def is_proven_staged(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether it is proven that an observed profile comes from an unfinished installation by
    this agent. Without an installed version in the ledger, only such a profile may be removed.
    """
    return observed.is_agent_object is not False and has_exact_content(
        staged_evidence(entry, name, observed), observed
    )


def is_intact(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile has the content and mode that its entry recorded."""
    mode = entry.installed.modes.get(name, "") if entry.installed is not None else ""
    return has_same_content(evidence_of(entry, name), observed, mode)
