"""Writes a report as JSON for programs. docs/report.md describes the schema.

A newer version of the agent may add fields to a schema. Within one version of the schema, fields
are never changed or removed.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Final

from agent.core import labels, left_out
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.reporting.table import BAD_STATES

SCHEMA = "profile-loader/report/v1"


# These limits apply to the lists in the document that the daemon serves, in bytes.
PUBLIC_BYTES: Final[Mapping[str, int]] = {
    "sets": 1 << 18,
    "profiles": 3 << 20,
    "problems": 1 << 19,
}


def document(report: Report, *, exit_status: int, domain: str = labels.DOMAIN) -> str:
    """Return a report as JSON text that ends with a newline.

    Args:
        report: the report.
        exit_status: the exit status of the process.
        domain: the domain of the Node's labels.
    """
    content = {
        **_head(report, exit_status),
        "sets": [_profile_set(item) for item in report.profile_sets],
        "support": {
            kind: _support(support, is_public=False)
            for kind, support in report.kind_support.items()
        },
        "security_modules": _modules(report),
        "profiles": [_profile(row, domain, is_public=False) for row in report.profiles],
        "problems": [_finding(finding, is_public=False) for finding in report.findings],
        "seconds": {name: round(value, 6) for name, value in report.seconds.items()},
    }
    return json.dumps(content, indent=2) + "\n"


def public_document(report: Report, *, exit_status: int, domain: str) -> bytes:
    """Return a report as JSON for clients that need no authentication.

    The document has a limited size, and the field `omitted` counts the objects that do not fit.
    Failures come first. The document omits the details of findings, which are only for the log.
    """
    rows = sorted(report.profiles, key=lambda row: row.state not in BAD_STATES)
    lists: Mapping[str, Iterable[object]] = {
        "sets": (_profile_set(item) for item in report.profile_sets),
        "profiles": (_profile(row, domain, is_public=True) for row in rows),
        "problems": (_finding(finding, is_public=True) for finding in report.findings),
    }
    head = {
        **_head(report, exit_status),
        "support": {
            kind: _support(support, is_public=True) for kind, support in report.kind_support.items()
        },
        "security_modules": _modules(report),
        "seconds": {name: round(value, 6) for name, value in report.seconds.items()},
    }
    content = bytearray(json.dumps(head).encode().removesuffix(b"}"))
    omitted = {}
    for name, items in lists.items():
        content += f', "{name}": ['.encode()
        omitted[name] = _append(content, items, PUBLIC_BYTES[name])
        content += b"]"
    content += f', "omitted": {json.dumps(omitted)}}}\n'.encode()
    return bytes(content)


def _append(content: bytearray, items: Iterable[object], max_bytes: int) -> int:
    """Append objects up to a limit, one on each line, and return the number of omitted objects."""
    end = len(content) + max_bytes
    separator, omitted = b"\n", 0
    for item in items:
        text = b"" if omitted else json.dumps(item).encode()
        if omitted or len(content) + len(separator) + len(text) > end:
            omitted += 1
            continue
        content += separator + text
        separator = b",\n"
    return omitted


def _head(report: Report, exit_status: int) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "exit_status": exit_status,
        "converged": report.converged,
        "dry_run": report.dry_run,
    }


def _profile_set(profile_set: ProfileSetStatus) -> dict[str, object]:
    return {
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


def _support(support: KindSupport, *, is_public: bool) -> dict[str, object]:
    finding = support.finding
    return {
        "state": support.state,
        "problem": _finding(finding, is_public=is_public) if finding is not None else None,
        "sandboxed": support.sandboxed,
    }


def _modules(report: Report) -> dict[str, object]:
    return {name: {"mode": mode} for name, mode in report.security_modules.items()}


def _profile(row: ProfileStatus, domain: str, *, is_public: bool) -> dict[str, object]:
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
        "problems": [_finding(finding, is_public=is_public) for finding in row.findings],
    }


def _finding(finding: Finding, *, is_public: bool) -> dict[str, str | bool]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "where": finding.location,
        "what": finding.message,
        "hint": finding.hint,
        "detail": "" if is_public else finding.detail,
        "acknowledged": finding.is_acknowledged,
    }
