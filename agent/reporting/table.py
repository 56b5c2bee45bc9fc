"""Writes a report as a human-readable table.

No control character in a name or message reaches the terminal. Each line fits into the width of the
terminal, unless it contains a name that is longer than a line. agent.reporting.json_report writes
reports for programs.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TextIO

from agent.core import labels
from agent.core.finding_codes import Severity
from agent.core.findings import Finding
from agent.core.printable import printable
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileState, Reason

GOOD_STATES: Final = frozenset(
    {
        ProfileState.INSTALLED,
        ProfileState.ACCEPTED,
        ProfileState.REMOVED,
        ProfileState.RELEASED,
    }
)
BAD_STATES: Final = frozenset(
    {
        ProfileState.REJECTED,
        ProfileState.FOREIGN,
        ProfileState.FAILED,
        ProfileState.UNOBSERVABLE,
        ProfileState.OUTDATED,
    }
)
# The codes of the colors green and red are in ECMA-48, 8.3.117.
_COLORS: Final[Mapping[str, str]] = {
    **dict.fromkeys(GOOD_STATES, "\x1b[32m"),
    **dict.fromkeys(BAD_STATES, "\x1b[31m"),
}
_PLAIN: Final = "\x1b[0m"
_HEADINGS = ("KIND", "PROFILE", "STATE", "WHY")
_GAP = 2  # The number of spaces between two columns.


def has_colors(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether a stream is a terminal on which colors are enabled (https://no-color.org)."""
    is_plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
    return stream.isatty() and not is_plain


def table(
    report: Report,
    *,
    width: int,
    domain: str = "",
    nothing: str = "Nothing to do",
    has_colors: bool = False,
) -> str:
    """Return a report as human-readable lines.

    Args:
        report: the report.
        width: the number of columns of the terminal.
        domain: the domain of the Node's labels. If a domain is passed, the text contains the
            nodeSelector of each profile, the active sandboxes and the security modules.
        nothing: the summary of a report that has no profiles.
        has_colors: whether to color the states of profiles.
    """
    rows = [
        (row.kind, printable(row.name or row.key), row.state, printable(displayed_reason(row)))
        for row in report.profiles
    ]
    colors = _COLORS if has_colors else {}
    paragraphs = [list(_columns([_HEADINGS, *rows], width, colors)) if rows else []]
    paragraphs.append([line for note in _notes(report) for line in _note_lines(note, width)])
    paragraphs += [
        _wrap(f"{kind}: {support.finding.message} {support.finding.hint}", width)
        for kind, support in report.kind_support.items()
        if support.finding is not None
    ]
    if domain:
        paragraphs += [_node_states(report), _selectors(report, domain)]
    paragraphs.append(_wrap(_summary(report, nothing), width))
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines) + "\n"


def errors(report: Report, *, width: int) -> str:
    """Return only the errors of a report, or an empty text."""
    notes = [note for note in _notes(report) if note.finding.severity == Severity.ERROR]
    return "".join(f"{line}\n" for note in notes for line in _note_lines(note, width))


def origins(report: Report) -> str:
    """Return lines with the source and the digest of each profile. Long lines are not wrapped."""
    lines = []
    for row in report.profiles:
        digest = f", sha256 {row.source_digest}" if row.source_digest else ""
        lines.append(
            printable(f'{row.name or row.key}: key "{row.key}" of {row.profile_set}{digest}')
        )
    return "".join(f"{line}\n" for line in lines)


def without_acknowledged(report: Report) -> Report:
    """Return a report without the warnings that the operator has acknowledged."""
    rows = [
        replace(row, findings=tuple(item for item in row.findings if not item.is_acknowledged))
        for row in report.profiles
    ]
    return replace(report, profiles=tuple(rows))


def hidden_warnings(report: Report) -> str:
    """Return a line with the number of acknowledged warnings, or an empty text."""
    hidden = sum(finding.is_acknowledged for row in report.profiles for finding in row.findings)
    if not hidden:
        return ""
    warnings = "1 acknowledged warning is" if hidden == 1 else f"{hidden} acknowledged warnings are"
    return f"{warnings} hidden; -v shows more.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """A finding, with the keys to which it applies."""

    finding: Finding
    keys: tuple[str, ...]


_ORDER: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTICE)
_SHOWN_KEYS: Final = 3


def _notes(report: Report) -> list[_Note]:
    """Return each finding once, with errors first. Findings about a whole profile kind are
    omitted.
    """
    of_kinds = {one.finding for one in report.kind_support.values() if one.finding is not None}
    findings = [(row.key, finding) for row in report.profiles for finding in row.findings]
    findings += [(finding.location, finding) for finding in report.findings]
    keys_by_finding: dict[Finding, dict[str, None]] = {}
    for key, finding in findings:
        if finding in of_kinds:
            continue
        # Findings that differ only in their keys have the same cause, such as a missing parser.
        common = replace(finding, location="") if finding.location == key else finding
        keys_by_finding.setdefault(common, {})[key] = None
    notes = [_Note(finding=finding, keys=tuple(keys)) for finding, keys in keys_by_finding.items()]
    return sorted(notes, key=lambda note: _ORDER.index(note.finding.severity))


def _node_states(report: Report) -> list[str]:
    """Return a line for each kind whose parser runs in a sandbox, and for each security module."""
    kinds = [
        kind
        for kind, support in report.kind_support.items()
        if support.sandboxed and support.finding is None
    ]
    lines = [f"{kind}: the parser runs in a sandbox (Landlock)." for kind in kinds]
    return lines + [f"{name}: {mode}" for name, mode in report.security_modules.items()]


def _selectors(report: Report, domain: str) -> list[str]:
    """Return the nodeSelector of each profile. The lines are never wrapped, so that users can copy
    them.
    """
    selectors = [labels.node_selector(row, domain).items() for row in report.profiles]
    lines = [f"  {printable(key)}: {value}" for selector in selectors for key, value in selector]
    return ["nodeSelector, if the Node has labels:", *lines] if lines else []


def displayed_reason(row: ProfileStatus) -> str:
    """Return the code of the first error, which a note explains, or the reason for the action if
    there is no error.
    """
    codes = [finding.code for finding in row.findings if finding.severity == Severity.ERROR]
    if codes:
        return codes[0]
    if row.reason_text:
        return row.reason_text
    return _REASONS.get((row.action, row.reason), _ACTIONS.get(row.action, "") + row.reason)


# The reason shows only the cause of the action, because the state already shows its result.
_ACTIONS: Final[Mapping[ActionName, str]] = {
    ActionName.RESTORE: "restored: ",
    ActionName.REPLACE: "replaced: ",
}
_REASONS: Final[Mapping[tuple[ActionName, Reason], str]] = {
    (ActionName.KEEP, Reason.RENAMED): "source moved",
    # The reason is omitted, because the command `status` already shows it as the state.
    (ActionName.KEEP, Reason.INSTALLED): "",
}


def _columns(rows: Sequence[Sequence[str]], width: int, colors: Mapping[str, str]) -> Iterable[str]:
    """Return the rows of the table as lines. If the rows are too wide, each reason has its own
    line.

    If a name is too long for its column, it also has its own line, so that it does not widen the
    column.
    """
    gaps = _GAP * (len(_HEADINGS) - 1)
    kind, _, state, _ = (max(len(row[i]) for row in rows) for i in range(len(_HEADINGS)))
    longest_name = width - kind - state - gaps + _GAP
    name, why = (
        max((len(row[i]) for row in rows if len(row[1]) <= longest_name), default=0) for i in (1, 3)
    )
    has_reasons = kind + name + state + why + gaps <= width
    for number, row in enumerate(rows):
        has_name = len(row[1]) <= longest_name
        if has_name:
            line = f"{row[0].ljust(kind)}{' ' * _GAP}{row[1].ljust(name)}{' ' * _GAP}"
            reason = f"{' ' * (state - len(row[2]) + _GAP)}{row[3]}" if has_reasons else ""
        else:
            yield row[1]
            line, reason = f"  {row[0]}, ", ""
        yield f"{line}{_colored(row[2], colors)}{reason}".rstrip()
        if number > 0 and row[3] and not (has_reasons and has_name):
            yield from _wrap(row[3], width, "    ")


def _colored(state: str, colors: Mapping[str, str]) -> str:
    return f"{colors[state]}{state}{_PLAIN}" if state in colors else state


def _note_lines(note: _Note, width: int) -> Iterable[str]:
    finding, keys = note.finding, note.keys
    where = f" at {finding.location}" if finding.location else ""
    subject = ", ".join(keys[:_SHOWN_KEYS])
    if len(keys) > _SHOWN_KEYS:
        subject = f"{subject} and {len(keys) - _SHOWN_KEYS} more"
    severity = f"acknowledged {finding.severity}" if finding.is_acknowledged else finding.severity
    yield from _wrap(f"{severity}: {finding.code}: {subject}{where}", width)
    stop = "" if finding.message.rstrip().endswith((".", "!", "?", ":")) else "."
    yield from _wrap(f"{finding.message.rstrip()}{stop} {finding.hint}", width, "  ")
    if finding.detail:
        yield from _wrap(finding.detail, width, "  ")


def _summary(report: Report, nothing: str) -> str:
    states = Counter(row.state for row in report.profiles)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{'Dry run: ' if report.dry_run else ''}{counts or nothing}."


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        printable(" ".join(text.split())),
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
