"""What of the node an entry of the ledger owns, and how the node proves it.

Rule: what was retired was put by this agent; what was adopted was not.
"""

from agent.core.model import Entry, Evidence, Fact


def same(evidence: Evidence, fact: Fact, mode: str = "") -> bool:
    """Return whether the node's fact proves the content that evidence stands for."""
    return bool(evidence & fact.evidence) and (not mode or not fact.mode or mode == fact.mode)


def owned(entry: Entry) -> dict[str, Evidence]:
    """Return the names that an entry owns, with what the node shows for them."""
    mine = dict(entry.retired)
    if entry.installed is not None:
        for name in entry.installed.provides:
            mine[name] = entry.installed.evidence.get(name, frozenset())
    return mine


def evidence_of(entry: Entry, name: str) -> Evidence:
    """Return what the node shows of one name that an entry owns."""
    installed = entry.installed
    if installed is not None and name in installed.evidence:
        return installed.evidence[name]
    return entry.retired.get(name, frozenset())


def is_put(entry: Entry, name: str) -> bool:
    """Return whether this agent put a name that an entry owns; what was retired it always did."""
    return entry.how == "put" or name in entry.retired


def intact(entry: Entry, name: str, fact: Fact) -> bool:
    """Return whether the node holds what the entry says it put under that name."""
    mode = entry.installed.modes.get(name, "") if entry.installed is not None else ""
    return same(evidence_of(entry, name), fact, mode)
