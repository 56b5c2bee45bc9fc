"""Tell what is installed here, from the ledger and the node. Nothing is locked or written."""

from agent import app
from agent.config import Config
from agent.core import report_builder
from agent.core.findings import Finding
from agent.core.model import LedgerEntry, Observation, Observed, ProfileKind
from agent.core.ownership import has_same_content, owned_names
from agent.core.report import KindSupport, ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileState, Provenance, Reason


def status(settings: Config) -> Report:
    """Return a report whose rows are the ledger's entries, each compared with the node."""
    parts = app.backend_parts(settings, may_write_state=False)
    kinds = {kind: part.backend for kind, part in parts.items()}
    ledger = app.ledger(settings)
    found = ledger.entries()
    if isinstance(found, Finding):
        return Report(profiles=(), profile_sets=(), kind_support={}, findings=(found,))
    rows: list[ProfileStatus] = []
    supports: dict[ProfileKind, KindSupport] = {}
    sandboxes = {name: kind.sandbox() for name, kind in kinds.items()}
    findings = [*ledger.findings, *report_builder.unsandboxed(sandboxes.values())]
    for name, kind in kinds.items():
        entries = [entry for id_, entry in found.items() if id_.kind == name]
        names = {one for entry in entries for one in owned_names(entry)}
        observed = kind.observe(names, ())
        supports[name] = report_builder.support_of(observed, sandboxes[name])
        findings += observed.findings if isinstance(observed, Observation) else ()
        for entry in entries:
            rows += _rows(entry, observed)
    rows.sort(key=lambda row: (row.kind, row.name))
    return Report(
        profiles=tuple(rows), profile_sets=(), kind_support=supports, findings=tuple(findings)
    )


def _rows(entry: LedgerEntry, observed: Observed) -> list[ProfileStatus]:
    version = entry.installed
    rows = []
    for name, evidence in owned_names(entry).items():
        current = version is not None and name in version.names
        state, reason, text = _state(
            name, evidence, observed, entry.provenance, retired=not current
        )
        held = version if current else None
        rows.append(
            ProfileStatus(
                kind=entry.id.kind,
                profile_set=entry.id.profile_set,
                key=entry.id.key,
                name=name,
                localhost_profile=name,
                state=state,
                action=ActionName.KEEP,
                reason=reason,
                reason_text=text,
                source_digest=held.source_digest if held is not None else "",
                installed=held.body_digest
                if held is not None and entry.id.kind == "seccomp"
                else "",
                policy=held.body_digest if held is not None and entry.id.kind == "apparmor" else "",
                mode=_mode(name, observed),
                desired=current,
            )
        )
    return rows


def _state(
    name: str,
    evidence: frozenset[str],
    observed: Observed,
    provenance: Provenance,
    *,
    retired: bool,
) -> tuple[ProfileState, Reason, str]:
    """Return the state, its reason, and a text that says more than the reason or is empty."""
    if not isinstance(observed, Observation):
        return ProfileState.UNOBSERVABLE, Reason.UNOBSERVABLE, observed.finding.message
    fact = observed.profiles.get(name)
    if fact is None:
        return ProfileState.FAILED, Reason.NOT_ON_NODE, ""
    if not has_same_content(evidence, fact):
        return ProfileState.FAILED, Reason.OTHER_CONTENT, ""
    if fact.is_own is False and provenance == Provenance.INSTALLED:
        return ProfileState.INSTALLED, Reason.OTHER_PROGRAM, ""
    if retired:
        return ProfileState.HELD, Reason.NO_LONGER_DESIRED, ""
    adopted = provenance == Provenance.ADOPTED
    return ProfileState.INSTALLED, Reason.ADOPTED if adopted else Reason.INSTALLED, ""


def _mode(name: str, observed: Observed) -> str:
    fact = observed.profiles.get(name) if isinstance(observed, Observation) else None
    return fact.mode if fact is not None else ""
