"""Writes the figures of a benchmark run into bench/results.md and docs/performance.md.

bench/results.md has a section for each row, between markers. The section of a row that a run does
not measure stays, with the machine and the day of an earlier run. The table at the top of
docs/performance.md shows for each row whether its limits were reached, as in the sections.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.measure import median
from bench.rows import Claim, Figure, Result

PAGE: Final = Path("docs/performance.md")
RESULTS: Final = Path("bench/results.md")
_LINK: Final = r"\.\./bench/results\.md"
_SECTION: Final = re.compile(r"(<!-- bench:([a-z-]+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)
_ROW: Final = re.compile(
    rf"^\| \[([a-z]+)\]\({_LINK}#[a-z]+\) \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE
)
_CLAIM: Final = re.compile(r"^\| (.*) \| .* \| at most .* \| (yes|\*\*no\*\*) \|$", re.MULTILINE)


def write(results: Mapping[str, Result], about: str) -> None:
    """Write the results of a run into both pages; `about` is the text about the machine."""
    text = results_page(RESULTS.read_text(), results, about)
    RESULTS.write_text(text)
    PAGE.write_text(performance_page(PAGE.read_text(), text))


def results_page(text: str, results: Mapping[str, Result], about: str) -> str:
    """Return bench/results.md with new sections for the measured rows."""

    def section(match: re.Match[str]) -> str:
        name = match[2]
        body = measured(results[name], about) if name in results else match[3]
        return match[1] + body + match[4]

    return _SECTION.sub(section, text)


def performance_page(text: str, results: str) -> str:
    """Return docs/performance.md with the last column of its table from bench/results.md."""
    reached = {match[2]: _reached(match[3]) for match in _SECTION.finditer(results)}

    def row(match: re.Match[str]) -> str:
        name = match[1]
        link = f"[{name}](../bench/results.md#{name})"
        return f"| {link} | {match[2]} | {match[3]} | {reached[name]} |"

    return _ROW.sub(row, text)


def _reached(section: str) -> str:
    """Return `yes` if all limits of a section were reached, or else how many were not reached;
    empty if it has no limits.
    """
    claims = [reached == "yes" for _, reached in _CLAIM.findall(section)]
    if all(claims):
        return "yes" if claims else ""
    return f"**no** ({claims.count(False)} of {len(claims)})"


def sections(text: str) -> list[str]:
    """Return the names of the sections of bench/results.md, in the order of the page."""
    return [match[2] for match in _SECTION.finditer(text)]


def rows(text: str) -> list[tuple[str, str, str]]:
    """Return the name, the subject and the limit of each row of the table in
    docs/performance.md.
    """
    return [(match[1], match[2], match[3]) for match in _ROW.finditer(text)]


def measured(result: Result, about: str) -> str:
    """Return the text between the markers of a row."""
    lines = ["| figure | median | smallest | largest | runs |", "| --- | --- | --- | --- | --- |"]
    lines += [_figure(figure) for figure in result.figures]
    lines += ["", "| claim | measured | limit | reached |", "| --- | --- | --- | --- |"]
    lines += [_claim(claim) for claim in result.claims]
    lines += ["", *(f"{sentence}\n" for sentence in result.said), about]
    return "\n".join(lines) + "\n"


def _figure(figure: Figure) -> str:
    values = [median(figure.samples), min(figure.samples), max(figure.samples)]
    shown = " | ".join(number(value, figure.unit) for value in values)
    return f"| {figure.label} | {shown} | {len(figure.samples)} |"


def _claim(claim: Claim) -> str:
    reached = "yes" if claim.reached else "**no**"
    value, limit = number(claim.value, claim.unit), number(claim.limit, claim.unit)
    return f"| {claim.label} | {value} | at most {limit} | {reached} |"


def number(value: float, unit: str) -> str:
    """Return a number with three digits and its unit."""
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3  # noqa: PLR2004 - three digits
    space = "" if unit == "%" else " "
    return f"{value:,.{digits}f}{space}{unit}"
