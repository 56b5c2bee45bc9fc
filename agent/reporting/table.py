"""A report as text for people.

Rule 1: no control character of a name or a message reaches the terminal.
Rule 2: a line fits the terminal; only a name that is longer than it does not.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from agent.core import labels
from agent.core.findings import Finding, Severity
from agent.core.report import ProfileStatus, Report

_HEAD = ("KIND", "PROFILE", "STATE", "WHY")
_GAP = 2


def table(report: Report, *, width: int, domain: str = "", nothing: str = "Nothing to do") -> str:
    """Return a report as lines of at most width characters where names allow it.

    domain: of the Node's labels; with a domain the table lists the nodeSelector of each profile,
    and the active sandboxes. nothing: what a report without rows says.
    """
    lines: list[str] = []
    rows = [
        (row.kind, clean(row.name or row.key), row.state, clean(_why(row)))
        for row in report.profiles
    ]
    if rows:
        lines += _columns([_HEAD, *rows], width)
    findings = [(row.key, one) for row in report.profiles for one in row.findings]
    findings += [(one.location, one) for one in report.findings]
    shown: set[tuple[str, Finding]] = set()
    notes: list[str] = []
    unsupported = {one.finding for one in report.kind_support.values() if one.finding is not None}
    for key, finding in findings:
        if finding in unsupported or (key, finding) in shown:
            continue
        shown.add((key, finding))
        notes += _finding_lines(finding, key, width)
    if notes:
        lines += ["", *notes]
    told = [
        f"{kind}: {one.finding.message} {one.finding.hint}".rstrip()
        for kind, one in report.kind_support.items()
        if one.finding is not None
    ]
    for text in told:
        lines += ["", *_wrap(text, width)]
    if domain:
        lines += [*_sandboxes(report), *_selectors(report, domain)]
    lines += ["", *_wrap(_summary(report, nothing), width)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _sandboxes(report: Report) -> list[str]:
    """Return a line for each kind whose texts are read in a sandbox."""
    kinds = [kind for kind, one in report.kind_support.items() if one.sandboxed]
    return ["", *(f"{kind}: the parser runs in a sandbox (Landlock)." for kind in kinds)] * (
        len(kinds) > 0
    )


def _selectors(report: Report, domain: str) -> list[str]:
    """Return the nodeSelector of each profile, ready to be pasted and never wrapped."""
    found = [labels.selector(row, domain) for row in report.profiles]
    told = [f"  {clean(key)}: {value}" for one in found for key, value in one.items()]
    return ["", "nodeSelector, where the Node is labelled:", *told] if told else []


def clean(text: str) -> str:
    """Return text with everything that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _why(row: ProfileStatus) -> str:
    """Return the first error's code, which the lines below explain, or the action's reason."""
    codes = [one.code for one in row.findings if one.severity == Severity.ERROR]
    return codes[0] if codes else row.why


def _columns(rows: Sequence[Sequence[str]], width: int) -> Iterable[str]:
    """Lay out rows; where they do not fit, the reason goes to a line of its own.

    A name for which there is no room at all has a line of its own, and widens no column.
    """
    gaps = _GAP * (len(_HEAD) - 1)
    kind, _, state, _ = (max(len(row[i]) for row in rows) for i in range(len(_HEAD)))
    room = width - kind - state - gaps + _GAP
    name, why = (
        max((len(row[i]) for row in rows if len(row[1]) <= room), default=0) for i in (1, 3)
    )
    fits = kind + name + state + why + gaps <= width
    for row in rows:
        short = len(row[1]) <= room
        if short:
            line = (" " * _GAP).join((row[0].ljust(kind), row[1].ljust(name), row[2].ljust(state)))
            line += f"{' ' * _GAP}{row[3]}" if fits else ""
        else:
            yield row[1]
            line = f"  {row[0]}, {row[2]}"
        yield line.rstrip()
        if row is not rows[0] and row[3] and not (fits and short):
            yield from _wrap(row[3], width, "    ")


def _finding_lines(finding: Finding, key: str, width: int) -> Iterable[str]:
    where = "" if finding.location in ("", key) else f" at {finding.location}"
    head = f"{finding.severity}: {finding.code}: {key}{where}"
    yield from _wrap(head, width)
    stop = "" if finding.message.rstrip().endswith((".", "!", "?", ":")) else "."
    yield from _wrap(f"{finding.message.rstrip()}{stop} {finding.hint}", width, "  ")
    if finding.detail:
        yield from _wrap(finding.detail, width, "  ")


def _summary(report: Report, nothing: str) -> str:
    states = Counter(row.state for row in report.profiles)
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{'Dry run: ' if report.dry_run else ''}{said or nothing}."


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        clean(" ".join(text.split())),
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
