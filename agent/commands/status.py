"""Tell what is installed here, from the ledger and the node. Nothing is locked or written."""

from agent import wiring
from agent.core import account
from agent.core.model import Entry, KindName, Observed, Seen
from agent.core.ownership import owned, same
from agent.core.problems import Problem
from agent.core.report import Report, Row, State, Support
from agent.settings import Settings


def status(settings: Settings) -> Report:
    """Return a report whose rows are the ledger's entries, each compared with the node."""
    kinds, ledger = wiring.kinds(settings, write=False), wiring.ledger(settings)
    found = ledger.entries()
    if isinstance(found, Problem):
        return Report(rows=(), sets=(), supports={}, problems=(found,))
    rows: list[Row] = []
    supports: dict[KindName, Support] = {}
    sandboxes = {name: kind.sandbox() for name, kind in kinds.items()}
    problems = [*ledger.damaged, *account.unsandboxed(sandboxes.values())]
    for name, kind in kinds.items():
        entries = [entry for id_, entry in found.items() if id_.kind == name]
        names = {one for entry in entries for one in owned(entry)}
        observed = kind.observe(names, ())
        supports[name] = account.support(observed, sandboxes[name])
        problems += observed.remarks if isinstance(observed, Seen) else ()
        for entry in entries:
            rows += _rows(entry, observed)
    rows.sort(key=lambda row: (row.kind, row.name))
    return Report(rows=tuple(rows), sets=(), supports=supports, problems=tuple(problems))


def _rows(entry: Entry, observed: Observed) -> list[Row]:
    version = entry.installed
    rows = []
    for name, evidence in owned(entry).items():
        current = version is not None and name in version.provides
        state, why = _state(name, evidence, observed, entry.how, retired=not current)
        held = version if current else None
        rows.append(
            Row(
                kind=entry.id.kind,
                origin=entry.id.origin,
                key=entry.id.key,
                name=name,
                localhost_profile=name,
                state=state,
                action="keep",
                why=why or entry.how,
                source=held.source if held is not None else "",
                installed=held.body if held is not None and entry.id.kind == "seccomp" else "",
                policy=held.body if held is not None and entry.id.kind == "apparmor" else "",
                mode=_mode(name, observed),
                desired=current,
            )
        )
    return rows


def _state(
    name: str, evidence: frozenset[str], observed: Observed, how: str, *, retired: bool
) -> tuple[State, str]:
    if not isinstance(observed, Seen):
        return "unobservable", observed.problem.what
    fact = observed.facts.get(name)
    if fact is None:
        return "failed", "absent on the node"
    if not same(evidence, fact):
        return "failed", "other content on the node"
    if fact.is_own is False and how == "put":
        return "installed", "loaded by another program"
    return ("held", "no longer desired") if retired else ("installed", "")


def _mode(name: str, observed: Observed) -> str:
    fact = observed.facts.get(name) if isinstance(observed, Seen) else None
    return fact.mode if fact is not None else ""
