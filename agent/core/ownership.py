"""Determines which profiles on the node belong to a ledger entry, based on an observation.

An entry owns a profile only if this agent created the object on the node. An object that another
program created under the same name is foreign, even with the same content. An adopted profile was
installed by another program; the retired names of an entry were installed by this agent.
"""

from agent.core.model import Evidence, LedgerEntry, ObservedProfile, Version
from agent.core.vocabulary import Provenance


def has_same_content(evidence: Evidence, observed: ObservedProfile, mode: str = "") -> bool:
    """Return whether an observed profile has the content that the evidence identifies.

    With a mode, the observed profile must also have this mode, if its kind has modes.
    """
    return bool(evidence & observed.evidence) and (
        not mode or not observed.mode or mode == observed.mode
    )


def owned_names(entry: LedgerEntry) -> dict[str, Evidence]:
    """Return the names that an entry owns, with the evidence of their content."""
    names = dict(entry.retired)
    if entry.installed is not None:
        for name in entry.installed.names:
            names[name] = entry.installed.evidence.get(name, frozenset())
    return names


def evidence_of(entry: LedgerEntry, name: str) -> Evidence:
    """Return the recorded evidence of one name that an entry owns."""
    installed = entry.installed
    if installed is not None and name in installed.evidence:
        return installed.evidence[name]
    return entry.retired.get(name, frozenset())


def is_installed_by_agent(entry: LedgerEntry, name: str) -> bool:
    """Return whether this agent installed a name that an entry owns.

    Retired names were always installed by this agent.
    """
    return entry.provenance == Provenance.INSTALLED or name in entry.retired


def is_agent_owned(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether this agent created the observed profile of a name that an entry owns."""
    return is_installed_by_agent(entry, name) and observed.is_agent_object is not False


def is_staged(version: Version | None, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile comes from an unfinished installation of a version."""
    if version is None or name not in version.names or observed.is_agent_object is False:
        return False
    return observed.is_agent_object is True or has_same_content(
        version.evidence.get(name, frozenset()), observed
    )


def is_intact(entry: LedgerEntry, name: str, observed: ObservedProfile) -> bool:
    """Return whether an observed profile has the content and mode that its entry recorded."""
    mode = entry.installed.modes.get(name, "") if entry.installed is not None else ""
    return has_same_content(evidence_of(entry, name), observed, mode)
