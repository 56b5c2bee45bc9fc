"""Renders the status page as HTML without scripts.

Text from profiles, names and errors is always escaped. The page is readable at widths of 400 px and
1,400 px, in light and dark mode, and with a screen reader. The size of the page is limited. Every
client that reaches the port can read the page. The page therefore contains no information that is
only for the log.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from agent.core.finding_codes import Severity
from agent.core.findings import Finding
from agent.core.report import ProfileStatus, Report
from agent.reporting.table import BAD_STATES, GOOD_STATES, clean


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSummary:
    """One pass in the list of recent passes."""

    at: float
    """The Unix time in seconds at which the pass ended."""
    seconds: float
    converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """The content of the page."""

    version: str
    node: str
    report: Report | None
    labels: Mapping[str, str] = field(default_factory=dict)
    """The agent's labels that are or may be on the Node."""
    passes: tuple[PassSummary, ...] = ()
    """The last passes, beginning with the oldest one."""
    at: float = 0.0
    """The Unix time in seconds at which the last pass ended."""


STYLE: Final = """
:root{color-scheme:light dark;--line:#767676;--bad:#a40000;--good:#0a5c0a}
@media(prefers-color-scheme:dark){:root{--line:#8c8c8c;--bad:#ff9d94;--good:#86d586}}
body{background:Canvas;color:CanvasText}
body{font:1rem/1.5 system-ui,sans-serif;margin:0 auto;max-width:80rem;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
caption{text-align:left;padding:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
th,td{overflow-wrap:anywhere}
thead th,.short{overflow-wrap:normal}
.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}
code{font-size:.95em}
@media(max-width:45rem){
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
tr{display:block;border-bottom:1px solid var(--line);padding:.4rem 0}
th,td{display:block;border:0;padding:.1rem 0}
td::before,th[data-name]::before{content:attr(data-name) ": ";font-weight:400}}
"""
ROWS: Final = 3000  # the largest number of rows in one table
TABLE_BYTES: Final = 1 << 20  # the largest size of one table in bytes
_SHORT_COLUMNS: Final = frozenset(  # the columns that contain single words, which are never broken
    {"Kind", "State", "Mode", "Code", "Keys", "Value", "Ended", "Took", "Result"}
)
_SEVERITIES: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTICE)


def page(view: StatusView) -> str:
    """Return the page as HTML."""
    parts = [_head(view)]
    if view.report is not None:
        parts += _body(view.report)
    parts += _labels(view.labels)
    parts += _passes(view.passes)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>profile-loader on {_text(view.node)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(view: StatusView) -> str:
    return (
        f"<h1>profile-loader on {_text(view.node)}</h1>{_summary(view)}"
        f'<p>Version {_text(view.version)}. <a href="metrics">Metrics</a></p>'
    )


def _summary(view: StatusView) -> str:
    """Return the first sentence of the page, which states whether the node matches the sources."""
    if view.report is None:
        return "<p>No pass has ended yet.</p>"
    converged = view.report.converged
    states = Counter(row.state for row in view.report.profiles)
    counts = ", ".join(f"{number} {state}" for state, number in states.most_common())
    return (
        f'<p class="{"good" if converged else "bad"}">'
        f"{'Every profile is in place.' if converged else 'Not every profile is in place.'}</p>"
        f"<p>{counts or 'No profiles'}. The last pass ended at {_time(view.at)}.</p>"
    )


def _body(report: Report) -> Iterator[str]:
    """Yield the sections of a report, beginning with problems."""
    rows = sorted(report.profiles, key=lambda row: row.state not in BAD_STATES)[:ROWS]
    findings = _findings(report, rows)
    yield "<h2>Problems</h2>"
    yield _table(
        "Findings, errors first",
        ("Where", "Code", "What", "What to do"),
        [_finding_cells(profile, finding) for profile, finding in findings[:ROWS]],
        omitted=max(0, len(findings) - ROWS),
    )
    yield "<h2>Profiles</h2>"
    yield _table(
        "Profiles, failures first",
        ("Name", "Kind", "State", "Mode", "Why", "Source"),
        [_profile_cells(row) for row in rows],
        omitted=len(report.profiles) - len(rows),
    )
    yield "<h2>Sources</h2>"
    yield _table(
        "Profile sets of the sources",
        ("Set", "State", "Keys", "Why"),
        [[one.profile_set, one.state, str(one.keys), one.reason] for one in report.profile_sets],
    )


def _findings(report: Report, rows: Sequence[ProfileStatus]) -> list[tuple[str, Finding]]:
    """Return all findings with the names of their profiles, sorted by severity."""
    findings = [("", finding) for finding in report.findings]
    supports = report.kind_support.values()
    findings += [("", support.finding) for support in supports if support.finding is not None]
    findings += [(row.name or row.key, finding) for row in rows for finding in row.findings]
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda pair: _SEVERITIES.index(pair[1].severity))


def _profile_cells(row: ProfileStatus) -> list[str]:
    source = f"{row.key} in {row.profile_set}"
    return [row.name or row.key, row.kind, row.state, row.mode, row.why, source]


def _finding_cells(profile: str, finding: Finding) -> list[str]:
    places = dict.fromkeys(place for place in (profile, finding.location) if place)
    return [": ".join(places), finding.code, finding.message, finding.hint]


def _labels(labels: Mapping[str, str]) -> Iterator[str]:
    if labels:
        yield "<h2>Labels</h2>"
        rows = [[key, value] for key, value in sorted(labels.items())]
        yield _table("The agent's labels on the Node", ("Label", "Value"), rows)


def _passes(passes: tuple[PassSummary, ...]) -> Iterator[str]:
    if passes:
        yield "<h2>Last passes</h2>"
        rows = [
            [
                _time(one.at),
                f"{one.seconds:.3f} s",
                "in place" if one.converged else "not in place",
            ]
            for one in reversed(passes)
        ]
        yield _table("Newest first", ("Ended", "Took", "Result"), rows)


def _table(
    caption: str, columns: tuple[str, ...], rows: Sequence[list[str]], *, omitted: int = 0
) -> str:
    """Return a table of at most TABLE_BYTES, and the number of omitted rows.

    Args:
        caption: the caption of the table.
        columns: the headings of the columns.
        rows: the cells of each row.
        omitted: the number of rows that the caller has already omitted.
    """
    if not rows:
        return "<p>None.</p>"
    # If a style sheet displays table elements as blocks, browsers ignore their meaning, so each
    # element has a role.
    head = "".join(f'<th scope="col" role="columnheader">{_text(name)}</th>' for name in columns)
    lines: list[str] = []
    size = 0
    for row in rows:
        line = _line(columns, row)
        size += len(line.encode("utf-8", "replace"))
        if size > TABLE_BYTES:
            break
        lines.append(line)
    omitted += len(rows) - len(lines)
    more = f"<p>{omitted} more are not shown here. The log contains them.</p>" if omitted else ""
    return (
        f'<table role="table"><caption>{_text(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table>{more}'
    )


def _line(columns: tuple[str, ...], row: list[str]) -> str:
    cells = enumerate(zip(columns, row, strict=True))
    shown = (_cell(value, column, is_first=index == 0) for index, (column, value) in cells)
    return f'<tr role="row">{"".join(shown)}</tr>'


def _cell(value: str, column: str, *, is_first: bool) -> str:
    tag, scope = ("th", ' scope="row" role="rowheader"') if is_first else ("td", ' role="cell"')
    color = "good" if value in GOOD_STATES else "bad" if value in BAD_STATES else ""
    classes = [color] if color and column == "State" else []
    classes += ["short"] if column in _SHORT_COLUMNS else []
    attribute = f' class="{" ".join(classes)}"' if classes else ""
    shown = _text(value) or "&mdash;"
    return f'<{tag}{scope}{attribute} data-name="{_text(column)}">{shown}</{tag}>'


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _text(value: str) -> str:
    return escape(clean(value))
