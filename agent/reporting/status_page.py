"""The status page: plain HTML for people, without a script.

Rule 1: everything that comes from a profile, a name or an error is escaped. Rule 2: it reads well
at 400 px and at 1,400 px, in light and dark, and with a screen reader. Rule 3: its size is bounded,
and it shows nothing that only the log may show, because anybody who reaches the port reads it.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from agent.core.findings import Finding
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ProfileState
from agent.reporting.table import clean


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSummary:
    """One pass: when it ended (Unix seconds), how long it took, and whether all was in place."""

    at: float
    seconds: float
    converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """What the page shows.

    labels: those that are or may be on the Node. at: when the last pass ended, in Unix seconds.
    """

    version: str
    node: str
    report: Report | None
    labels: Mapping[str, str] = field(default_factory=dict)
    passes: tuple[PassSummary, ...] = ()
    at: float = 0.0


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
ROWS: Final = 3000  # of the profiles and of the problems
TABLE_BYTES: Final = 1 << 20  # at most so much of one table is shown
_SHORT: Final = frozenset(  # columns of single words, which are not to be cut
    {"Kind", "State", "Mode", "Code", "Keys", "Value", "Ended", "Took", "Result"}
)
_GOOD: Final[frozenset[str]] = frozenset(
    {
        ProfileState.INSTALLED,
        ProfileState.ACCEPTED,
        ProfileState.REMOVED,
        ProfileState.RELEASED,
    }
)
_BAD: Final[frozenset[str]] = frozenset(
    {
        ProfileState.REJECTED,
        ProfileState.FOREIGN,
        ProfileState.FAILED,
        ProfileState.UNOBSERVABLE,
        ProfileState.OUTDATED,
    }
)


def page(view: StatusView) -> str:
    """Return the page as HTML."""
    parts = [_head(view)]
    if view.report is None:
        parts.append("<p>No pass has ended yet.</p>")
    else:
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
    state = ""
    if view.report is not None:
        good = view.report.converged
        state = (
            f'<p class="{"good" if good else "bad"}">'
            f"{'Everything desired is in place.' if good else 'Not everything is in place.'}</p>"
            f"<p>The last pass ended at {_time(view.at)}.</p>"
        )
    return (
        f"<h1>profile-loader on {_text(view.node)}</h1>{state}"
        f'<p>Version {_text(view.version)}. <a href="metrics">Metrics</a></p>'
    )


def _body(report: Report) -> Iterable[str]:
    yield "<h2>Profiles</h2>"
    rows = _most_urgent(report.profiles)
    yield _table(
        "Each name that a profile provides",
        ("Name", "Kind", "State", "Mode", "Why", "Source"),
        [_row(one) for one in rows],
        omitted=len(report.profiles) - len(rows),
    )
    findings = [("", one) for one in report.findings]
    findings += [
        ("", one.finding) for one in report.kind_support.values() if one.finding is not None
    ]
    findings += [(row.name or row.key, one) for row in rows for one in row.findings]
    shown = [*dict.fromkeys(findings[: 2 * ROWS])][:ROWS]
    yield "<h2>Problems</h2>"
    yield _table(
        "What is not as it should be",
        ("Where", "Code", "What", "What to do"),
        [_finding_cells(profile, one) for profile, one in shown],
        omitted=max(0, len(findings) - 2 * ROWS),
    )
    yield "<h2>Sources</h2>"
    yield _table(
        "Where profiles come from",
        ("Set", "State", "Keys", "Why"),
        [[one.profile_set, one.state, str(one.keys), one.reason] for one in report.profile_sets],
    )


def _most_urgent(rows: tuple[ProfileStatus, ...]) -> Sequence[ProfileStatus]:
    """Return at most ROWS rows; rows that need attention come first."""
    if len(rows) <= ROWS:
        return rows
    return sorted(rows, key=lambda row: row.state not in _BAD)[:ROWS]


def _row(row: ProfileStatus) -> list[str]:
    return [
        row.name or row.key,
        row.kind,
        row.state,
        row.mode,
        row.why,
        f"{row.key} in {row.profile_set}",
    ]


def _finding_cells(profile: str, finding: Finding) -> list[str]:
    places = dict.fromkeys(one for one in (profile, finding.location) if one)
    return [": ".join(places), finding.code, finding.message, finding.hint]


def _labels(labels: Mapping[str, str]) -> Iterable[str]:
    if labels:
        yield "<h2>Labels</h2>"
        rows = [[key, value] for key, value in sorted(labels.items())]
        yield _table("The agent's labels on the Node", ("Label", "Value"), rows)


def _passes(passes: tuple[PassSummary, ...]) -> Iterable[str]:
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
    caption: str, names: tuple[str, ...], rows: Sequence[list[str]], *, omitted: int = 0
) -> str:
    """Return a table of at most TABLE_BYTES, and how many more rows there are.

    omitted: the rows that were left out before.
    """
    if not rows:
        return "<p>None.</p>"
    # Where a narrow screen shows cells as blocks, browsers forget what they are: hence the roles.
    head = "".join(f'<th scope="col" role="columnheader">{_text(one)}</th>' for one in names)
    lines: list[str] = []
    size = 0
    for row in rows:
        line = _line(names, row)
        size += len(line.encode("utf-8", "replace"))
        if size > TABLE_BYTES:
            break
        lines.append(line)
    omitted += len(rows) - len(lines)
    more = f"<p>{omitted} more are not shown here; the log has them.</p>" if omitted else ""
    return (
        f'<table role="table"><caption>{_text(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table>{more}'
    )


def _line(names: tuple[str, ...], row: list[str]) -> str:
    cells = enumerate(zip(names, row, strict=True))
    shown = (_cell(value, name, first=index == 0) for index, (name, value) in cells)
    return f'<tr role="row">{"".join(shown)}</tr>'


def _cell(value: str, name: str, *, first: bool) -> str:
    tag, scope = ("th", ' scope="row" role="rowheader"') if first else ("td", ' role="cell"')
    kind = "good" if value in _GOOD else "bad" if value in _BAD else ""
    words = [kind] if kind and name == "State" else []
    words += ["short"] if name in _SHORT else []
    mark = f' class="{" ".join(words)}"' if words else ""
    shown = _text(value) or "&mdash;"
    return f'<{tag}{scope}{mark} data-name="{_text(name)}">{shown}</{tag}>'


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _text(value: str) -> str:
    return escape(clean(value))
