"""Renders the status page as HTML without scripts.

The page is readable at widths of 400 px and 1,400 px, in light and dark mode, and with a screen
reader. The size of the page is limited (agent.reporting.page_tables). A filter is a link to an
anchor, for which the style sheet hides the other rows. Therefore, the server never renders filtered
tables. Every client that reaches the port can read the page. Therefore, the page contains no
information that is only for the log.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.core.finding_codes import Severity
from agent.core.findings import Finding
from agent.core.labels import DOMAIN, label_key, node_selector
from agent.core.model import KINDS
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ProfileState
from agent.reporting.page_tables import Row, Table, plain, text
from agent.reporting.table import BAD_STATES, GOOD_STATES, displayed_reason


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
    """The last passes; the oldest pass comes first."""
    at: float = 0.0
    """The Unix time in seconds at which the last pass ended."""
    domain: str = DOMAIN
    """The domain of the Node's labels."""
    runbook_url: str = ""
    """The address of docs/runbook.md; empty if no address is known."""


ROWS: Final = 3000  # The largest number of rows in one table.
# The units of an age. Each entry contains a unit, the age at which the next unit begins, and the
# length of the unit in seconds.
_UNITS: Final = ((120, "s", 1), (7200, "min", 60), (float("inf"), "h", 3600))
_SEVERITIES: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTICE)
_FINDINGS: Final = Table(
    name="findings",
    caption="Findings, errors first",
    columns=("Severity", "Code", "Where", "What", "What to do"),
    unbroken=frozenset({"Severity", "Code"}),
    max_bytes=1 << 20,
)
_PROFILES: Final = Table(
    name="profiles",
    caption="Profiles, failures first",
    columns=("Name", "Kind", "State", "Mode", "Why", "Source", "Label", "For the pod"),
    unbroken=frozenset({"Kind", "State", "Mode", "Label"}),
    max_bytes=3 << 19,
)
_SETS: Final = Table(
    name="sets",
    caption="Profile sets of the sources",
    columns=("Set", "State", "Keys", "Why"),
    unbroken=frozenset({"State", "Keys"}),
    max_bytes=1 << 19,
)
_LABELS: Final = Table(
    name="labels",
    caption="The agent's other labels on the Node",
    columns=("Key", "Value"),
    unbroken=frozenset(),
    max_bytes=1 << 18,
)
_PASSES: Final = Table(
    name="passes",
    caption="Newest first",
    columns=("Ended", "Took", "Result"),
    unbroken=frozenset({"Ended", "Took", "Result"}),
    max_bytes=1 << 16,
)
TABLES: Final = (_FINDINGS, _PROFILES, _SETS, _LABELS, _PASSES)
# The largest size of the whole page.
MAX_BYTES: Final = sum(table.max_bytes for table in TABLES) + 20_000
_FILTERS: Final = ("failures", *ProfileState, *KINDS)
STYLE: Final = (
    """
:root{color-scheme:light dark;--line:#767676;--bad:#a40000;--good:#0a5c0a}
@media(prefers-color-scheme:dark){:root{--line:#8c8c8c;--bad:#ff9d94;--good:#86d586}
a{color:#9cc3ff}}
body{background:Canvas;color:CanvasText}
body{font:1rem/1.5 system-ui,sans-serif;margin:0 auto;max-width:88rem;padding:1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.15rem;margin-top:2rem}
.answer{font-size:1.4rem;font-weight:600;margin:.3rem 0}
nav ul{list-style:none;margin:.5rem 0;padding:0}nav li{display:inline-block;margin-right:1.2rem}
table{border-collapse:collapse;width:100%}
caption{text-align:left;padding:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
th,td,h1{overflow-wrap:anywhere}
thead th{overflow-wrap:normal}
.bad{color:var(--bad)}.good{color:var(--good)}
.profiles .bad,.profiles .good,.sets .bad,.sets .good{color:inherit}
.profiles .bad>:nth-child(3),.sets .bad>:nth-child(2){color:var(--bad);font-weight:600}
.profiles .good>:nth-child(3),.sets .good>:nth-child(2){color:var(--good);font-weight:600}
code{font-size:.95em;user-select:all}
td:empty::after{content:"\\2014"}
span[id]{scroll-margin-top:5rem}
td code{display:block}.l::before{content:"localhostProfile: "}.n::before{content:"nodeSelector: "}
"""
    + "".join(
        f"#show-{name}:target~.profiles tbody>:not(.{'bad' if name == 'failures' else name})"
        f'{{display:none}}#show-{name}:target~nav a[href="#show-{name}"]{{font-weight:700}}\n'
        for name in _FILTERS
    )
    + "".join(table.wide_style() for table in TABLES)
    + """
@media(min-width:60rem){.profiles th:first-child{width:18%}
.profiles td:nth-child(6){width:16%}.profiles td:last-child{width:32%}}
@media(max-width:45rem){
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
tr{display:block;border-bottom:1px solid var(--line);padding:.4rem 0}
th,td{display:block;border:0;padding:.1rem 0}
tbody th::before,tbody td::before{color:CanvasText;font-weight:400}
td:empty{display:none}
"""
    + "".join(table.narrow_style() for table in TABLES)
    + "}\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A rendered page without the age of the last pass, which changes with each request."""

    beginning: str
    ending: str
    at: float | None
    """The Unix time in seconds at which the last pass ended; None before the first pass."""

    def opening(self, now: float) -> str:
        """Return the beginning of the page with the age of the last pass."""
        if self.at is None:
            return self.beginning
        return f"{self.beginning}{_age(now - self.at)} ago"


def page(view: StatusView) -> Page:
    """Return the page about a view."""
    answer, sections = "No pass has ended yet", ""
    color = ""
    if view.report is not None:
        states = Counter(row.state for row in view.report.profiles)
        counts = [f"{number} {state}" for state, number in states.most_common()]
        answer = f"{', '.join(counts) or 'No profiles'}, last pass "
        color = " good" if view.report.converged else " bad"
        sections = "".join(_sections(view, view.report))
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>profile-loader on {text(view.node)}</title>"
        f"<style>{STYLE}</style></head>"
    )
    return Page(
        beginning=f"{head}<body><main><h1>profile-loader on {text(view.node)}</h1>"
        f'<p class="answer{color}">{answer}',
        ending=f".</p>{sections or _footer(view)}</main></body></html>\n",
        at=view.at if view.report is not None else None,
    )


def _age(seconds: float) -> str:
    """Return an age as a number and a unit, for example `12 s`."""
    unit, length = next((unit, length) for limit, unit, length in _UNITS if seconds < limit)
    return f"{max(0, round(seconds / length))} {unit}"


def _sections(view: StatusView, report: Report) -> Iterator[str]:
    """Yield the sections for a report; the findings come first."""
    rows = sorted(report.profiles, key=_rank)
    findings = _findings(report, rows)
    severities = Counter(finding.severity for _, finding in findings)
    counts = ", ".join(
        f"{severities[name]} {name}{'s' if severities[name] > 1 else ''}"
        for name in _SEVERITIES
        if severities[name]
    )
    yield _summary(view, report)
    yield _contents(len(findings), len(rows))
    yield f"<h2 id=findings>Findings</h2><p>{counts or 'No findings'}.{_runbook_note(view)}</p>"
    yield _FINDINGS.html(
        [_finding_row(profile, finding, view.runbook_url) for profile, finding in findings[:ROWS]],
        omitted=max(0, len(findings) - ROWS),
    )
    yield f"<h2 id=profiles>Profiles</h2><div>{_filters(rows)}"
    yield _PROFILES.html(
        [_profile_row(row, view) for row in rows[:ROWS]], omitted=max(0, len(rows) - ROWS)
    )
    yield "</div><h2 id=sources>Sources</h2>"
    sets = report.profile_sets
    yield _SETS.html(
        [
            Row(cells=plain(item.profile_set, item.state, str(item.keys), item.reason))
            for item in sets[:ROWS]
        ],
        omitted=max(0, len(sets) - ROWS),
    )
    yield from _other_labels(view.labels, rows, view.domain)
    yield from _passes(view.passes)


def _rank(row: ProfileStatus) -> int:
    """Return the sort key of a profile. Failed profiles come first, and installed profiles come
    last.
    """
    return 0 if row.state in BAD_STATES else 2 if row.state in GOOD_STATES else 1


def _summary(view: StatusView, report: Report) -> str:
    result = (
        "Converged: every profile is installed and verified."
        if report.converged
        else "Not converged: some profiles are not installed, or a source has a problem."
    )
    modules = "".join(
        f" The security module {text(name)} is {text(mode)}."
        for name, mode in report.security_modules.items()
    )
    return (
        f"<p>{result}{modules} The last pass ended at {_time(view.at)}. "
        f"Version {text(view.version)}.</p>"
    )


def _footer(view: StatusView) -> str:
    return f'<p>Version {text(view.version)}. <a href="metrics">Metrics</a></p>'


def _contents(findings: int, profiles: int) -> str:
    links = (
        ("#findings", f"Findings ({findings})"),
        ("#profiles", f"Profiles ({profiles})"),
        ("#sources", "Sources"),
        ("report.json", "JSON report"),
        ("metrics", "Metrics"),
    )
    return _links("Contents", links)


def _links(name: str, links: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="{address}">{shown}</a></li>' for address, shown in links)
    return f'<nav aria-label="{name}"><ul>{items}</ul></nav>'


def _filters(rows: Sequence[ProfileStatus]) -> str:
    """Return the links that filter the profiles, and the anchors to which they lead."""
    if not rows:
        return ""
    numbers: Counter[str] = Counter(row.state for row in rows)
    numbers["failures"] = sum(numbers[state] for state in BAD_STATES)
    numbers.update(row.kind for row in rows)
    names = [name for name in _FILTERS if numbers[name]]
    anchors = "".join(f"<span id=show-{name}></span>" for name in names)
    links = [(f"#show-{name}", f"{name} ({numbers[name]})") for name in names]
    return anchors + _links("Filters", [("#profiles", f"all ({len(rows)})"), *links])


def _findings(report: Report, rows: Sequence[ProfileStatus]) -> list[tuple[str, Finding]]:
    """Return all findings with the names of their profiles, sorted by severity.

    Warnings that the operator has acknowledged follow all other warnings.
    """
    findings = [("", finding) for finding in report.findings]
    supports = report.kind_support.values()
    findings += [("", support.finding) for support in supports if support.finding is not None]
    findings += [(row.name or row.key, finding) for row in rows for finding in row.findings]

    def rank(pair: tuple[str, Finding]) -> tuple[int, bool]:
        return _SEVERITIES.index(pair[1].severity), pair[1].is_acknowledged

    return sorted(dict.fromkeys(findings), key=rank)


def _runbook_note(view: StatusView) -> str:
    """Return the sentence that explains where the codes are described, if the codes are not
    links.
    """
    if view.runbook_url:
        return ""
    return " Each code is a heading of docs/runbook.md; --runbook-url makes the codes links."


def _finding_row(profile: str, finding: Finding, runbook_url: str) -> Row:
    places = dict.fromkeys(place for place in (profile, finding.location) if place)
    acknowledged = " (acknowledged)" if finding.is_acknowledged else ""
    severity, code, *others = plain(
        f"{finding.severity}{acknowledged}",
        finding.code,
        ": ".join(places),
        finding.message,
        finding.hint,
    )
    if runbook_url:
        code = f'<a href="{text(runbook_url)}#{code}">{code}</a>'
    return Row(cells=(severity, code, *others))


def _profile_row(row: ProfileStatus, view: StatusView) -> Row:
    source = row.profile_set if row.key == row.name else f"{row.key} in {row.profile_set}"
    selector = node_selector(row, view.domain)
    cells = plain(
        row.name or row.key,
        row.kind,
        row.state,
        row.mode,
        displayed_reason(row),
        source,
        _label_state(row, selector, view),
    )
    codes = [f"<code class=l>{text(row.localhost_profile)}</code>"] * bool(row.localhost_profile)
    codes += [f"<code class=n>{text(f'{key}: {value}')}</code>" for key, value in selector.items()]
    color = "good" if row.state in GOOD_STATES else "bad" if row.state in BAD_STATES else ""
    return Row(
        cells=(*cells, "".join(codes)), classes=" ".join(filter(None, (color, row.state, row.kind)))
    )


def _label_state(row: ProfileStatus, selector: Mapping[str, str], view: StatusView) -> str:
    """Return as text whether the Node has the label of a profile; empty if the profile needs no
    label.
    """
    if not row.name:
        return ""
    for key, value in selector.items():
        if key in view.labels:
            return "set" if view.labels[key] == value else "outdated"
        return "not set"
    return "set" if label_key(row.kind, row.name, view.domain) in view.labels else ""


def _other_labels(
    present: Mapping[str, str], rows: Sequence[ProfileStatus], domain: str
) -> Iterator[str]:
    """Yield the section about labels that do not belong to a row in the table of profiles."""
    shown = {label_key(row.kind, row.name, domain) for row in rows[:ROWS] if row.name}
    others = [
        Row(cells=plain(key, value)) for key, value in sorted(present.items()) if key not in shown
    ]
    if others:
        yield "<h2>Labels</h2>"
        yield _LABELS.html(others)


def _passes(passes: tuple[PassSummary, ...]) -> Iterator[str]:
    if passes:
        yield "<h2>Last passes</h2>"
        yield _PASSES.html(
            [
                Row(
                    cells=plain(
                        _time(item.at),
                        f"{item.seconds:.3f} s",
                        "converged" if item.converged else "not converged",
                    )
                )
                for item in reversed(passes)
            ]
        )


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
