"""A report as a document for programs; its schema is docs/report.md.

Rule 1: within a schema version fields are only added.
"""

import json

from agent.core import labels
from agent.core.problems import Problem
from agent.core.report import Report, Row

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
                "origin": one.origin,
                "state": one.state,
                "why": one.why,
                "keys": one.keys,
                "left_out": one.left_out,
            }
            for one in report.sets
        ],
        "support": {
            kind: {
                "state": one.state,
                "problem": _problem(one.problem) if one.problem is not None else None,
                "sandboxed": one.sandboxed,
            }
            for kind, one in report.supports.items()
        },
        "profiles": [_profile(row, domain) for row in report.rows],
        "problems": [_problem(one) for one in report.problems],
        "seconds": {name: round(value, 6) for name, value in report.seconds.items()},
    }
    return json.dumps(content, indent=2) + "\n"


def _profile(row: Row, domain: str) -> dict[str, object]:
    return {
        "kind": row.kind,
        "origin": row.origin,
        "key": row.key,
        "name": row.name,
        "localhostProfile": row.localhost_profile,
        "state": row.state,
        "action": row.action,
        "why": row.why,
        "digests": {"source": row.source, "installed": row.installed, "policy": row.policy},
        "mode": row.mode,
        "desired": row.desired,
        "nodeSelector": labels.selector(row, domain),
        "problems": [_problem(one) for one in row.problems],
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {
        "code": problem.code,
        "severity": problem.severity,
        "where": problem.where,
        "what": problem.what,
        "hint": problem.hint,
        "detail": problem.detail,
    }
