"""Defines findings, which are coded messages about keys, profiles, sources and the node.

A finding states what happened and where, what the consequence is, and what to do next. A message
never contains a secret or the text of a profile. finding_codes.py declares the codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent.core.finding_codes import FindingCode, Severity

MAX_FINDINGS: Final = 50  # A malicious key could cause hundreds of thousands of findings.


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A coded message: an error, a warning or a notice."""

    code: FindingCode

    location: str
    """The key, path or name, with the field or line number, for example `syscalls[4].action`."""

    message: str
    """The event and its consequence, in one or two sentences."""

    hint: str = ""
    """The next step for the reader of the message."""

    detail: str = ""
    """Names for the log and the reports of commands, such as pods of other namespaces.

    More people can read the status page and the Events, so these outputs do not contain the detail.
    """

    is_acknowledged: bool = False
    """Whether the operator knows the warning and accepts it for this version of the profile."""

    is_escalated: bool = False
    """Whether this warning counts as an error, because a command could not complete its work."""

    @property
    def severity(self) -> Severity:
        """The severity of the code; error if the finding is escalated."""
        return Severity.ERROR if self.is_escalated else self.code.severity


def limit_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return at most MAX_FINDINGS findings about one key, with a note if there are more findings.

    If any of the findings is an error, the result contains at least one error. If there are too
    many findings, the function does not read all of them.
    """
    kept: list[Finding] = []
    has_error = has_more = False
    for finding in findings:
        if len(kept) < MAX_FINDINGS:
            kept.append(finding)
            has_error = has_error or finding.severity == Severity.ERROR
            continue
        has_more = True
        if not has_error and finding.severity == Severity.ERROR:
            kept[-1], has_error = finding, True
        if has_error:
            break
    return (*kept, _more_findings(kept[-1])) if has_more else tuple(kept)


def _more_findings(last: Finding) -> Finding:
    return Finding(
        code=last.code,
        location=last.location,
        message=f"More problems were found; only the first {MAX_FINDINGS} are shown.",
        hint="Correct these problems first, and check the profile again.",
    )
