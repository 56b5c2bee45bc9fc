"""Writes a report as JSON for programs. docs/report.md describes the schema.

A newer version of the agent may add fields. Within a version of the schema, no field is changed or
removed.
"""

import json

from agent.core import labels, left_out
from agent.core.findings import Finding
from agent.core.report import ProfileStatus, Report

SCHEMA = "profile-loader/report/v1"


def document(report: Report, *, exit_status: int, domain: str = labels.DOMAIN) -> str:
    """Return a report as JSON text that ends with a newline.

    Args:
        report: the report.
        exit_status: the exit status of the process.
        domain: the domain of the Node's labels.
    """
    content = {
        "schema": SCHEMA,
        "exit_status": exit_status,
        "converged": report.converged,
        "dry_run": report.dry_run,
        "sets": [
            {
                "origin": profile_set.profile_set,
                "state": profile_set.state,
                "why": profile_set.reason,
                "keys": profile_set.keys,
                "left_out": left_out.count(profile_set.left_out),
                "left_out_inputs": [
                    {"reason": item.reason, "count": item.count, "names": list(item.names)}
                    for item in profile_set.left_out
                ],
            }
            for profile_set in report.profile_sets
        ],
        "support": {
            kind: {
                "state": support.state,
                "problem": _finding(support.finding) if support.finding is not None else None,
                "sandboxed": support.sandboxed,
            }
            for kind, support in report.kind_support.items()
        },
        "profiles": [_profile(row, domain) for row in report.profiles],
        "problems": [_finding(finding) for finding in report.findings],
        "seconds": {name: round(value, 6) for name, value in report.seconds.items()},
    }
    return json.dumps(content, indent=2) + "\n"


def _profile(row: ProfileStatus, domain: str) -> dict[str, object]:
    return {
        "kind": row.kind,
        "origin": row.profile_set,
        "key": row.key,
        "name": row.name,
        "localhostProfile": row.localhost_profile,
        "state": row.state,
        "action": row.action,
        "why": row.why,
        "digests": {"source": row.source_digest, "installed": row.installed, "policy": row.policy},
        "mode": row.mode,
        "desired": row.desired,
        "nodeSelector": labels.node_selector(row, domain),
        "problems": [_finding(finding) for finding in row.findings],
    }


def _finding(finding: Finding) -> dict[str, str | bool]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "where": finding.location,
        "what": finding.message,
        "hint": finding.hint,
        "detail": finding.detail,
        "acknowledged": finding.is_acknowledged,
    }
