"""docs/performance.md: its tables stand between markers and are written by `python -m bench`.

Rule 1: a row that was not measured in a run stays as it is, with the machine and day of its own
run. Rule 2: what the table at the top says of a row is what the row's own claims say.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.measure import median
from bench.rows import Claim, Figure, Result

PATH: Final = Path("docs/performance.md")
_MARKED: Final = re.compile(r"(<!-- bench:([a-z-]+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)
_ROW: Final = re.compile(r"^\| \[([a-z]+)\]\(#[a-z]+\) \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)
_CLAIM: Final = re.compile(r"^\| (.*) \| .* \| at most .* \| (yes|\*\*no\*\*) \|$", re.MULTILINE)


def written(text: str, results: Mapping[str, Result], about: str) -> str:
    """Return the document with the sections of what was measured written anew.

    The table at the top follows them.
    """

    def section(found: re.Match[str]) -> str:
        name = found[2]
        body = found[3]
        if name in results:
            body = measured(results[name], about)
        return found[1] + body + found[4]

    text = _MARKED.sub(section, text)
    reached = {found[2]: _reached(found[3]) for found in _MARKED.finditer(text)}
    return _ROW.sub(
        lambda row: f"| [{row[1]}](#{row[1]}) | {row[2]} | {row[3]} | {reached[row[1]]} |", text
    )


def _reached(section: str) -> str:
    """Return `yes`, or the labels of the claims that were not reached; nothing without claims."""
    claims = _CLAIM.findall(section)
    missed = [label for label, said in claims if said != "yes"]
    return f"**no**: {'; '.join(missed)}" if missed else "yes" if claims else ""


def sections(text: str) -> list[str]:
    """Return the names of the sections, in their order."""
    return [found[2] for found in _MARKED.finditer(text)]


def rows(text: str) -> list[tuple[str, str, str]]:
    """Return name, what and reach of each row of the table at the top."""
    return [(found[1], found[2], found[3]) for found in _ROW.finditer(text)]


def measured(result: Result, about: str) -> str:
    """Return what stands between a row's markers."""
    lines = ["| figure | median | from | to | runs |", "| --- | --- | --- | --- | --- |"]
    lines += [_figure(one) for one in result.figures]
    lines += ["", "| to reach | measured | limit | reached |", "| --- | --- | --- | --- |"]
    lines += [_claim(one) for one in result.claims]
    lines += ["", *(f"{one}\n" for one in result.said), about]
    return "\n".join(lines) + "\n"


def _figure(one: Figure) -> str:
    cells = [median(one.samples), min(one.samples), max(one.samples)]
    shown = " | ".join(number(value, one.unit) for value in cells)
    return f"| {one.label} | {shown} | {len(one.samples)} |"


def _claim(one: Claim) -> str:
    reached = "yes" if one.reached else "**no**"
    value, limit = number(one.value, one.unit), number(one.limit, one.unit)
    return f"| {one.label} | {value} | at most {limit} | {reached} |"


def number(value: float, unit: str) -> str:
    """Return a number with three digits and its unit."""
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3  # noqa: PLR2004 - three digits
    space = "" if unit == "%" else " "
    return f"{value:,.{digits}f}{space}{unit}"
