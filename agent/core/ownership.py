"""Which profiles on the node an entry of the ledger owns, and how the node proves it.

Rule 1: this agent installed the retired profiles of an entry, and did not install adopted ones.
Rule 2: an entry owns the object that this agent created. An object that another program created
under the same name is foreign, even with the same content.
"""

from agent.core.model import Entry, Evidence, Fact, Version


def same(evidence: Evidence, fact: Fact, mode: str = "") -> bool:
    """Return whether a fact of the node proves the content that the evidence identifies."""
    return bool(evidence & fact.evidence) and (not mode or not fact.mode or mode == fact.mode)


def owned(entry: Entry) -> dict[str, Evidence]:
    """Return the names that an entry owns, with the evidence of their content."""
    mine = dict(entry.retired)
    if entry.installed is not None:
        for name in entry.installed.provides:
            mine[name] = entry.installed.evidence.get(name, frozenset())
    return mine


def evidence_of(entry: Entry, name: str) -> Evidence:
    """Return the evidence of the content of one name that an entry owns."""
    installed = entry.installed
    if installed is not None and name in installed.evidence:
        return installed.evidence[name]
    return entry.retired.get(name, frozenset())


def is_put(entry: Entry, name: str) -> bool:
    """Return whether this agent installed a name that an entry owns; retired names always are."""
    return entry.how == "put" or name in entry.retired


def is_created(entry: Entry, name: str, fact: Fact) -> bool:
    """Return whether this agent created the object that is loaded under one of an entry's names."""
    return is_put(entry, name) and fact.is_own is not False


def is_staged(version: Version | None, name: str, fact: Fact) -> bool:
    """Return whether the object on the node comes from an unfinished installation of a version."""
    if version is None or name not in version.provides or fact.is_own is False:
        return False
    return fact.is_own is True or same(version.evidence.get(name, frozenset()), fact)


def intact(entry: Entry, name: str, fact: Fact) -> bool:
    """Return whether the node has the content and mode that the entry recorded for a name."""
    mode = entry.installed.modes.get(name, "") if entry.installed is not None else ""
    return same(evidence_of(entry, name), fact, mode)
