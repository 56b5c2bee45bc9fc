"""Checks one seccomp profile, and returns its canonical form or the errors.

If a profile is rejected, the result contains only errors, because further warnings would distract
from the errors. The checks are in `syntax`, `fields` and `comparisons`, and the checks for faults
of libseccomp are in `multiplex`, `anchor` and `conditions`.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from agent.backends.seccomp import (
    advice,
    anchor,
    canonical,
    comparisons,
    conditions,
    decoding,
    fields,
    multiplex,
    resolve,
    syntax,
)
from agent.backends.seccomp.document import Document
from agent.core import common_findings
from agent.core.finding_codes import FindingCode, Severity
from agent.core.findings import MAX_FINDINGS, Finding, limit_findings

# If a file causes a notice with one of these codes, at least one runtime reads the file differently
# from its canonical form.
_READ_DIFFERENTLY: Final = frozenset(
    {
        *(
            FindingCode.NAME_REWRITTEN,
            FindingCode.EXPANDED_FOR_ARCH,
            FindingCode.EXPANDED_FOR_KERNEL,
            FindingCode.ERRNO_REWRITTEN,
        ),
        FindingCode.RULE_ADDED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of the check of a profile."""

    body: bytes  # The canonical form of the profile; empty if the profile is rejected.
    findings: tuple[Finding, ...]
    depends_on_kernel: bool = False  # Whether the canonical form depends on the kernel version.

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The reasons why the profile was rejected."""
        return tuple(finding for finding in self.findings if finding.severity == Severity.ERROR)


def check(content: bytes, options: fields.Options) -> Checked:
    """Check a profile for a node. If the profile is accepted, the result contains its warnings and
    notices.
    """
    document, read = _read(content, options)
    if document is None:
        return Checked(body=b"", findings=_errors(read))
    written = canonical.expand(document, options.node)
    result = _until_enough_errors(
        itertools.chain(read, fields.findings(document, options), faults(written.document, options))
    )
    if errors := _errors(result):
        return Checked(body=b"", findings=errors)
    body = canonical.encode(written.document)
    if large := _too_large(body):
        return Checked(body=b"", findings=(large,))
    remarks = (*result, *written.notices, *advice.findings(written.document, options))
    return Checked(
        body=body, findings=limit_findings(remarks), depends_on_kernel=written.depends_on_kernel
    )


def unchecked_form(content: bytes, options: fields.Options) -> bytes:
    """Return the canonical form of a profile that was accepted earlier, or "" if the file contains
    no profile.
    """
    document, _ = _read(content, options)
    if document is None:
        return b""
    return canonical.encode(canonical.expand(document, options.node).document)


def canonical_form(content: bytes, options: fields.Options) -> bytes:
    """Return the canonical form of a file if all runtimes read the file in the same way.

    The result is empty if the file is rejected, or if a runtime reads the file differently.
    """
    document, read = _read(content, options)
    if document is None:
        return b""
    written = canonical.expand(document, options.node)
    codes = {finding.code for finding in (*read, *written.notices)}
    if not _READ_DIFFERENTLY.isdisjoint(codes):
        return b""
    candidates = itertools.chain(
        read, fields.findings(document, options), faults(written.document, options)
    )
    if any(finding.severity == Severity.ERROR for finding in candidates):
        return b""
    body = canonical.encode(written.document)
    return b"" if _too_large(body) else body


def faults(document: Document, options: fields.Options) -> Iterator[Finding]:
    """Return findings about rules that contradict each other or that libseccomp compiles
    incorrectly.

    The rules of a very large document are not compared, because the comparison takes quadratic
    time.
    """
    large = tuple(comparisons.size(document))
    yield from large
    if large:
        return
    native = resolve.MACHINES[options.machine][0]
    yield from comparisons.findings(document)
    yield from multiplex.findings(document, native)
    yield from anchor.findings(document, resolve.abis(options.machine))
    yield from conditions.findings(document, native)


def _read(content: bytes, options: fields.Options) -> tuple[Document | None, tuple[Finding, ...]]:
    if options.machine in resolve.MACHINES:
        return syntax.read(content)
    known = ", ".join(sorted(resolve.MACHINES))
    message = f"The agent has no tables for the architecture {options.machine[:40]}."
    hint = f"Use nodes with a supported architecture: {known}."
    return None, (
        Finding(code=FindingCode.NOT_PORTABLE, location="profile", message=message, hint=hint),
    )


def _errors(candidates: Iterable[Finding]) -> tuple[Finding, ...]:
    return limit_findings(finding for finding in candidates if finding.severity == Severity.ERROR)


def _until_enough_errors(candidates: Iterable[Finding]) -> list[Finding]:
    """Return the findings up to the last reported error, because a hostile profile can cause
    thousands of findings.
    """
    findings = []
    errors = 0
    for finding in candidates:
        findings.append(finding)
        errors += finding.severity == Severity.ERROR
        if errors > MAX_FINDINGS:
            break
    return findings


def _too_large(body: bytes) -> Finding | None:
    if len(body) <= decoding.MOST_BYTES:
        return None
    reason = f"The written form has {len(body)} bytes; the limit is {decoding.MOST_BYTES} bytes"
    return common_findings.key_too_large(
        "profile", reason, "Name each system call in one rule only."
    )
