"""Handles acknowledgements: warnings that the operator accepts for one version of a profile.

An acknowledgement consists of a code and the sha256 of the key's content, so that it no longer
applies when the profile changes. Reports contain acknowledged warnings, but tables and the log do
not show them. Errors and escape rules cannot be acknowledged.
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final

from agent.core.finding_codes import FindingCode, Severity
from agent.core.model import Inspected, Profile

Acknowledgements = AbstractSet[tuple[str, str]]
"""Pairs of a code and a source digest. The digest may be shortened, but not to less than 12
digits."""

SHORTEST_DIGEST: Final = 12

ESCAPE_CODES: Final = frozenset({FindingCode.UNCONFINED_EXEC, FindingCode.UNCONFINED_TRANSITION})
"""The codes of rules that let a process leave its confinement."""

SHIPPED: Final[Acknowledgements] = frozenset(
    {
        # The shipped profile audit.json logs every system call and denies none.
        ("dangerous_syscalls", "73300c7ea05bc797db1c4ce98abf3415575d758fa10a7d95094faeab6fe03c8a"),
        ("not_enforcing", "73300c7ea05bc797db1c4ce98abf3415575d758fa10a7d95094faeab6fe03c8a"),
        # The shipped profile violation.json denies every system call, so that no container starts.
        ("start_impossible", "981fb767754da361bb54ac8b4853aeae2631c5a43a0d49efe959b1fb7ed9edd9"),
        # The shipped profile fine-grained.json allows only the system calls of one web server.
        ("dangerous_syscalls", "4f239e4e727c61a27a0f9749ddc00931138f400df4068450dc869a5881f5c232"),
        ("start_limited", "4f239e4e727c61a27a0f9749ddc00931138f400df4068450dc869a5881f5c232"),
        # The profile prevent-chmod denies three system calls and allows all others.
        ("dangerous_syscalls", "38e4eb086ffe9850acf485309ddc3a1b5e93c706d6d1bba90e513ca0a6cf7878"),
    }
)
"""The warnings that are acknowledged for the shipped profiles, because they describe the purpose of
a profile."""


def parse(text: str) -> tuple[str, str]:
    """Return the code and the digest in the text of an acknowledgement. Raises ValueError."""
    code, at, digest = text.partition("@")
    digest = digest.removeprefix("sha256:")
    is_digest = len(digest) in range(SHORTEST_DIGEST, 65) and set(digest) <= set("0123456789abcdef")
    if not at or not is_digest:
        raise ValueError(
            f'"{text}" must be CODE@DIGEST, with at least {SHORTEST_DIGEST} digits of the sha256 '
            "of the file or key"
        )
    severity = {member.value: member.severity for member in FindingCode}.get(code)
    if severity is None:
        raise ValueError(f'"{code}" is not the code of a finding')
    if severity != Severity.WARNING or code in ESCAPE_CODES:
        kind = "about an escape rule" if code in ESCAPE_CODES else f"of severity {severity}"
        raise ValueError(f'"{code}" is {kind}, and cannot be acknowledged')
    return code, digest


def acknowledge(inspected: Inspected, accepted: Acknowledgements) -> Inspected:
    """Return the result of a check in which the accepted warnings are marked."""
    if not isinstance(inspected, Profile):
        return inspected
    digest = inspected.version.source_digest
    codes = {code for code, prefix in accepted if digest.startswith(prefix)}
    if not codes:
        return inspected
    findings = tuple(
        replace(finding, is_acknowledged=True)
        if finding.code in codes and finding.severity == Severity.WARNING
        else finding
        for finding in inspected.findings
    )
    return replace(inspected, findings=findings)
