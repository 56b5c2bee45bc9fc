"""Determines which profiles on the node belong to a ledger entry, based on an observation.

An entry owns a profile only if this agent created the loaded object or the file on the node. If
another program created an object under the same name, the object is foreign, even if its content is
the same. Another program installed the profiles that an entry adopted; this agent installed the
names that an entry retired.
"""

from agent.core.model import Evidence, LedgerEntry, ObservedProfile, Version
from agent.core.vocabulary import Provenance


def has_same_content(evidence: Evidence, observed: ObservedProfile, mode: str = "") -> bool:
    """Return whether an observed profile has the content that some evidence identifies, or
    another content with the same meaning.

    If a mode is passed and the kind has modes, the observed profile must also have this mode.
    """
    return not evidence.isdisjoint(observed.evidence | observed.equivalent_evidence) and (
        not mode or not observed.mode or mode == observed.mode
    )


def has_exact_content(evidence: Evidence, observed: ObservedProfile) -> bool:
    """Return whether an observed profile has exactly the content that some evidence identifies.

    Only the exact content can prove that the agent wrote a profile.
    """
    return not evidence.isdisjoint(observed.evidence)


def owned_names(entry: LedgerEntry) -> dict[str, Evidence]:
    """Return the names that an entry owns, with the evidence of their content."""
    names = dict(entry.retired)
    if entry.installed is not None:
        for name in entry.installed.names:
            names[name] = entry.installed.evidence.get(name, frozenset())
    return names


def recorded_names(entry: LedgerEntry) -> frozenset[str]:
    """Return every name that this agent may have installed on the node through an entry.

    The result includes the names of an installation that did not finish.
    """
    staged = entry.staged.names if entry.staged is not None else ()
    return frozenset(owned_names(entry)).union(staged)


def evidence_of(entry: LedgerEntry, name: str) -> Evidence:
    """Return the recorded evidence of one name that an entry owns."""
    installed = entry.installed
    if installed is not None and name in installed.evidence:
        return installed.evidence[name]
    return entry.retired.get(name, frozenset())


def is_installed_by_agent(entry: LedgerEntry, name: str) -> bool:
    """Return whether this agent installed a name that an entry owns.

    This agent installed all retired names.
    """
    return entry.provenance == Provenance.INSTALLED or name in entry.retired


def is_agent_owned(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether this agent created the observed profile of a name that an entry owns."""
    return is_installed_by_agent(entry, name) and observed.is_agent_object is not False


def is_staged(version: Version | None, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile comes from an unfinished installation of a version."""
    if version is None or name not in version.names or observed.is_agent_object is False:
        return False
    return observed.is_agent_object is True or has_exact_content(
        version.evidence.get(name, frozenset()), observed
    )


def staged_evidence(entry: LedgerEntry, name: str, observed: ObservedProfile) -> Evidence:
    """Return the evidence of one name whose installation did not finish.

    If the node hides the content, the evidence of the observed object counts, because only the
    agent's record of its own objects identifies the profile.
    """
    version = entry.staged
    if version is None or name not in version.names:
        return frozenset()
    recorded = version.evidence.get(name, frozenset())
    is_hidden_own = observed.is_agent_object is True and not observed.is_readable
    return recorded | observed.evidence if is_hidden_own else recorded


def is_proven_staged(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile provably comes from an unfinished installation by this
    agent. Only such a profile may be removed without an installed version.
    """
    return observed.is_agent_object is not False and has_exact_content(
        staged_evidence(entry, name, observed), observed
    )


def is_intact(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile has the content and mode that its entry recorded."""
    mode = entry.installed.modes.get(name, "") if entry.installed is not None else ""
    return has_same_content(evidence_of(entry, name), observed, mode)
