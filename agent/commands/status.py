"""Shows the installed profiles, from the ledger and the node.

The command locks no file and writes no file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from agent import app
from agent.backends import security_modules
from agent.config import Config
from agent.core import left_out, report_builder
from agent.core.findings import Finding
from agent.core.model import LedgerEntry, Observation, Observed, ProfileKind
from agent.core.ownership import (
    has_same_content,
    is_proven_staged,
    owned_names,
    recorded_names,
)
from agent.core.ports import Capabilities
from agent.core.report import KindSupport, ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileState, Provenance, Reason
from agent.reporting.problem_record import ProblemRecord, Problems


def problems(config: Config) -> Problems:
    """Return the profiles that the last pass did not install, and the inputs that it skipped."""
    recorded = ProblemRecord(app.host(config), config.state_dir).read()
    return replace(recorded, rows=tuple(row for row in recorded.rows if row.kind in config.kinds))


def status(config: Config, problems: Problems) -> Report:
    """Return a report that compares each profile name in the ledger with the node.

    Args:
        config: the options of this run.
        problems: the profiles that the last pass did not install, and the inputs that it skipped.
    """
    parts = app.backend_parts(config, may_write_state=False)
    ledger = app.ledger(config)
    entries = ledger.entries()
    if isinstance(entries, Finding):
        return Report(profiles=(), profile_sets=(), kind_support={}, findings=(entries,))
    rows: list[ProfileStatus] = []
    supports: dict[ProfileKind, KindSupport] = {}
    sandboxes = {kind: part.backend.sandbox() for kind, part in parts.items()}
    modules = security_modules.states(app.host(config))
    findings = [
        *ledger.findings,
        *report_builder.sandbox_findings(sandboxes.values()),
        *(state.finding for state in modules.values() if state.finding),
    ]
    for kind, part in parts.items():
        of_kind = [entry for id_, entry in entries.items() if id_.kind == kind]
        names = {name for entry in of_kind for name in recorded_names(entry)}
        observed = part.backend.observe(names, ())
        supports[kind] = report_builder.kind_support(observed, sandboxes[kind])
        findings += observed.findings if isinstance(observed, Observation) else ()
        rows += [
            row for entry in of_kind for row in _rows(entry, observed, part.backend.capabilities)
        ]
    rows = _with_problems(rows, problems)
    rows.sort(key=lambda row: (row.kind, row.name or row.key))
    findings += [left_out.finding(item.profile_set, item.left_out) for item in problems.skipped]
    return Report(
        profiles=tuple(rows),
        profile_sets=problems.skipped,
        kind_support=supports,
        findings=tuple(findings),
        security_modules={name: module.mode for name, module in modules.items()},
    )


def _with_problems(rows: Sequence[ProfileStatus], problems: Problems) -> list[ProfileStatus]:
    """Return the rows of the ledger, with the recorded problems added.

    A profile that is now missing or changed on the node keeps that state in its row.
    """
    recorded = {(row.kind, row.profile_set, row.key, row.name): row for row in problems.rows}
    completed = []
    for row in rows:
        problem = recorded.pop((row.kind, row.profile_set, row.key, row.name), None)
        if problem is None or row.state != ProfileState.INSTALLED:
            completed.append(row)
        else:  # The last good version of the rejected profile is on the node.
            completed.append(replace(row, state=problem.state, findings=problem.findings))
    # This name was moved to another key after the record was written.
    names = {(row.kind, row.name) for row in rows}
    return completed + [row for row in recorded.values() if (row.kind, row.name) not in names]


def _rows(
    entry: LedgerEntry, observed: Observed, capabilities: Capabilities
) -> Iterator[ProfileStatus]:
    """Yield a row for each profile name that the agent owns through a ledger entry."""
    yield from _staged_rows(entry, observed)
    version = entry.installed
    for name, evidence in owned_names(entry).items():
        is_current = version is not None and name in version.names
        state, reason, text = _state(
            name, evidence, observed, entry.provenance, is_current=is_current
        )
        current = version if is_current else None
        yield ProfileStatus(
            kind=entry.id.kind,
            profile_set=entry.id.profile_set,
            key=entry.id.key,
            name=name,
            localhost_profile=name,
            state=state,
            action=ActionName.KEEP,
            reason=reason,
            reason_text=text,
            source_digest=current.source_digest if current is not None else "",
            installed=report_builder.installed_digest(current, capabilities),
            policy=report_builder.policy_digest(current, capabilities),
            mode=_mode(name, observed),
            desired=is_current,
        )


def _staged_rows(entry: LedgerEntry, observed: Observed) -> Iterator[ProfileStatus]:
    """Yield a row for each profile that is on the node only because of an unfinished
    installation.
    """
    profiles = observed.profiles if isinstance(observed, Observation) else {}
    for name in sorted(recorded_names(entry) - owned_names(entry).keys()):
        if name in profiles and is_proven_staged(entry, name, profiles[name]):
            yield ProfileStatus(
                kind=entry.id.kind,
                profile_set=entry.id.profile_set,
                key=entry.id.key,
                name=name,
                localhost_profile=name,
                state=ProfileState.HELD,
                action=ActionName.KEEP,
                reason=Reason.UNFINISHED,
                mode=_mode(name, observed),
                desired=False,
            )


def _state(
    name: str,
    evidence: frozenset[str],
    observed: Observed,
    provenance: Provenance,
    *,
    is_current: bool,
) -> tuple[ProfileState, Reason, str]:
    """Return the state of a profile name, the reason, and details, which may be empty."""
    if not isinstance(observed, Observation):
        return ProfileState.UNOBSERVABLE, Reason.UNOBSERVABLE, observed.finding.message
    profile = observed.profiles.get(name)
    if profile is None:
        return ProfileState.FAILED, Reason.NOT_ON_NODE, ""
    if not has_same_content(evidence, profile):
        return ProfileState.FAILED, Reason.OTHER_CONTENT, ""
    if profile.is_agent_object is False and provenance == Provenance.INSTALLED:
        return ProfileState.INSTALLED, Reason.OTHER_PROGRAM, ""
    if not is_current:
        return ProfileState.HELD, Reason.NO_LONGER_DESIRED, ""
    is_adopted = provenance == Provenance.ADOPTED
    return ProfileState.INSTALLED, Reason.ADOPTED if is_adopted else Reason.INSTALLED, ""


def _mode(name: str, observed: Observed) -> str:
    profile = observed.profiles.get(name) if isinstance(observed, Observation) else None
    return profile.mode if profile is not None else ""


def where_to_look(problems: Problems) -> str:
    """Return the text about the age of the recorded problems and about the place of all
    messages.
    """
    time = datetime.fromtimestamp(problems.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    subjects = ["Rejected and failed profiles"] * bool(problems.rows)
    subjects += ["skipped inputs"] * bool(problems.skipped)
    subject = " and ".join(subjects)
    more = f" {problems.omitted} more are not recorded." if problems.omitted else ""
    if problems.omitted_sets:
        more += f" Skipped inputs of {problems.omitted_sets} more profile sets are not recorded."
    return (
        f"{subject[:1].upper()}{subject[1:]} come from the pass at {time}.{more}\nFor all "
        "messages, see the agent's log (kubectl logs, or journalctl), or the status page."
    )
