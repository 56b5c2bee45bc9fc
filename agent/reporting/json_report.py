"""A report as a document for programs; its schema is docs/report.md.

Rule 1: within a schema version fields are only added.
"""

import json

from agent.core import labels
from agent.core.findings import Finding
from agent.core.report import ProfileStatus, Report

SCHEMA = "profile-loader/report/v1"


def document(report: Report, *, exit_status: int, domain: str = labels.DOMAIN) -> str:
    """Return a report as JSON text with a newline at its end. domain: of the Node's labels."""
    content = {
        "schema": SCHEMA,
        "exit_status": exit_status,
        "converged": report.converged,
        "dry_run": report.dry_run,
        "sets": [
            {
                "origin": one.profile_set,
                "state": one.state,
                "why": one.reason,
                "keys": one.keys,
                "left_out": one.left_out,
            }
            for one in report.profile_sets
        ],
        "support": {
            kind: {
                "state": one.state,
                "problem": _finding(one.finding) if one.finding is not None else None,
                "sandboxed": one.sandboxed,
            }
            for kind, one in report.kind_support.items()
        },
        "profiles": [_profile(row, domain) for row in report.profiles],
        "problems": [_finding(one) for one in report.findings],
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
        "nodeSelector": labels.selector(row, domain),
        "problems": [_finding(one) for one in row.findings],
    }


def _finding(finding: Finding) -> dict[str, str]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "where": finding.location,
        "what": finding.message,
        "hint": finding.hint,
        "detail": finding.detail,
    }
