"""Which profiles on the node an entry of the ledger owns, and how the node proves it.

Rule 1: this agent installed the retired profiles of an entry, and did not install adopted ones.
Rule 2: an entry owns the object that this agent created. An object that another program created
under the same name is foreign, even with the same content.
"""

from agent.core.model import Evidence, LedgerEntry, ObservedProfile, Version
from agent.core.vocabulary import Provenance


def has_same_content(evidence: Evidence, fact: ObservedProfile, mode: str = "") -> bool:
    """Return whether a fact of the node proves the content that the evidence identifies."""
    return bool(evidence & fact.evidence) and (not mode or not fact.mode or mode == fact.mode)


def owned_names(entry: LedgerEntry) -> dict[str, Evidence]:
    """Return the names that an entry owns, with the evidence of their content."""
    mine = dict(entry.retired)
    if entry.installed is not None:
        for name in entry.installed.names:
            mine[name] = entry.installed.evidence.get(name, frozenset())
    return mine


def evidence_of(entry: LedgerEntry, name: str) -> Evidence:
    """Return the evidence of the content of one name that an entry owns."""
    installed = entry.installed
    if installed is not None and name in installed.evidence:
        return installed.evidence[name]
    return entry.retired.get(name, frozenset())


def is_installed_by_agent(entry: LedgerEntry, name: str) -> bool:
    """Return whether this agent installed a name that an entry owns; retired names always are."""
    return entry.provenance == Provenance.INSTALLED or name in entry.retired


def is_agent_owned(entry: LedgerEntry, name: str, fact: ObservedProfile) -> bool:
    """Return whether this agent created the object that is loaded under one of an entry's names."""
    return is_installed_by_agent(entry, name) and fact.is_agent_object is not False


def is_staged(version: Version | None, name: str, fact: ObservedProfile) -> bool:
    """Return whether the object on the node comes from an unfinished installation of a version."""
    if version is None or name not in version.names or fact.is_agent_object is False:
        return False
    return fact.is_agent_object is True or has_same_content(
        version.evidence.get(name, frozenset()), fact
    )


def is_intact(entry: LedgerEntry, name: str, fact: ObservedProfile) -> bool:
    """Return whether the node has the content and mode that the entry recorded for a name."""
    mode = entry.installed.modes.get(name, "") if entry.installed is not None else ""
    return has_same_content(evidence_of(entry, name), fact, mode)
