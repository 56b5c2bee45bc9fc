"""Runs the commands that exit after their work: `--oneshot` and `restore`.

This module repeats the pass until no key is pending, because such a command cannot wait for later
changes. A profile is removed only if an earlier run removed its label from the Node. The labels of
the Node are set at the end of the run.
"""

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agent import app, reconciler
from agent.config import Config
from agent.control.confinement_checks import ConfinementChecks
from agent.core.findings import Finding
from agent.core.labels import label_key
from agent.core.model import ProfileKind
from agent.core.ownership import recorded_names
from agent.core.ports import Progress
from agent.core.report import Report
from agent.heartbeat import Heartbeat
from agent.reporting.problem_record import ProblemRecord

if TYPE_CHECKING:
    from agent.cluster import ClusterConnections, NodeConnections


def restore(config: Config, progress: Progress) -> Report:
    """Reinstall the profiles in the ledger, without reading any source."""
    passes = app.build_reconciler(
        replace(config, removal_grace=0.0),
        parts=app.backend_parts(config),
        sources=(),
        ledger=app.ledger(config),
        heartbeat=Heartbeat(time.monotonic, progress),
    )
    return passes.run_to_completion(lambda: passes.restore(dry_run=config.dry_run))


def run_once(config: Config, progress: Progress) -> Report:
    """Install the profiles from the sources. With --node-name, also label the Node."""
    ledger = app.ledger(config)
    connections = app.connect(config, installed_size=ledger.installed_keys.size)
    parts = app.backend_parts(config)
    passes = app.build_reconciler(
        replace(config, removal_grace=0.0),
        parts=parts,
        sources=app.open_sources(config, connections),
        ledger=ledger,
        heartbeat=Heartbeat(time.monotonic, progress),
    )
    confinement = ConfinementChecks({} if config.dry_run else app.confinement_trackers(parts))
    entries = ledger.entries()
    confinement.observe_recorded(() if isinstance(entries, Finding) else entries.values())
    conditions = reconciler.RemovalConditions()
    if connections is not None:
        _list_all(connections)
        conditions = _conditions(config, passes, connections)
    report = passes.run_to_completion(
        lambda: passes.run(dry_run=config.dry_run, conditions=conditions)
    )
    if connections is not None and connections.own_node is not None and not config.dry_run:
        report = _label_node(connections.own_node, report)
    confinement.end_pass(report)
    report = replace(report, findings=(*report.findings, *confinement.findings()))
    ProblemRecord(app.host(config), config.state_dir).on_report(report, time.time(), passed=True)
    return report


def _list_all(connections: "ClusterConnections") -> None:
    """Read all objects from the API server once. A failed request is recorded in the copy of the
    objects, so that the report shows the failure.
    """
    from agent.kube.errors import KubeError

    for reflector in connections.reflectors():
        with contextlib.suppress(KubeError):
            reflector.list()


def _conditions(
    config: Config, passes: reconciler.Reconciler, connections: "ClusterConnections"
) -> reconciler.RemovalConditions:
    """Return the conditions under which this run removes profiles. Without --node-name, the removal
    of a profile does not depend on labels.
    """
    if connections.own_node is None:
        return reconciler.RemovalConditions()
    return reconciler.RemovalConditions(
        label_absent_seconds=_absent_labels(config, passes, connections.own_node),
        pods_by_profile=connections.pods_by_profile(),
    )


def _absent_labels(
    config: Config, passes: reconciler.Reconciler, own_node: "NodeConnections"
) -> dict[tuple[ProfileKind, str], float]:
    """Return the profile names in the ledger whose labels an earlier run removed from the Node."""
    entries = passes.ledger.entries()
    metadata = own_node.metadata()
    if isinstance(entries, Finding) or metadata is None:
        return {}
    return {
        (entry.id.kind, name): 0.0
        for entry in entries.values()
        for name in recorded_names(entry)
        if label_key(entry.id.kind, name, config.label_domain) not in metadata.labels
    }


def _label_node(own_node: "NodeConnections", report: Report) -> Report:
    """Set the labels for a report, and return the report with the findings about labels."""
    from agent.kube import node_findings
    from agent.kube.errors import KubeError
    from agent.kube.own_node import WrongNodeError

    labeler, metadata = own_node.labeler, own_node.metadata()
    name = labeler.options.name
    findings: tuple[Finding, ...] = ()
    if metadata is None:
        store = own_node.node.store
        findings = (node_findings.labels_not_set(store.reason, store.status, name),)
        return replace(report, findings=report.findings + findings)
    try:
        wanted = labeler.desired_labels(report, metadata)
        labeler.remove_startup_taint(labeler.publish(metadata, wanted.labels), report)
        findings = (*wanted.findings, *labeler.findings())
    except WrongNodeError as error:
        findings = (node_findings.wrong_node(str(error), name),)
    except KubeError as error:
        findings = (node_findings.labels_not_set(str(error), error.status, name),)
    return replace(report, findings=report.findings + findings)
