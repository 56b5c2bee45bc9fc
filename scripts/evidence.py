"""Write docs/evidence.md and the decision table of docs/architecture.md.

The evidence page lists the tests that prove the claims in the documents. The claims are in
tests/evidence.toml. The decision table is copied from the docstring of agent/core/plan/__init__.py.

usage: .venv/bin/python scripts/evidence.py [--print PAGE]
"""  # noqa: INP001 - a script

import inspect
import itertools
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

# Without this line, Python would read the installed package, which may be older than this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.core import plan

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "tests/evidence.toml"
MARKED = re.compile(r"(<!-- decision table: .* -->\n).*?(<!-- /decision table -->)", re.DOTALL)
INTRODUCTION = """\
# Evidence

For auditors and contributors: this page lists the tests that prove the claims of the other pages.
Guides for operators contain no test names.

The name of a test consists of a path in `tests/`, the name of a function, and in brackets the name
of one of its cases. `scripts/evidence.py` writes this page from `tests/evidence.toml`. A unit test
checks that the page is current and that every test on it exists. [CONTRIBUTING](../CONTRIBUTING.md)
explains how to run the tests.
"""


def main(arguments: list[str]) -> None:
    """Write both pages, or print a single page."""
    pages = {"docs/evidence.md": evidence(), "docs/architecture.md": architecture()}
    if arguments[:1] == ["--print"]:
        sys.stdout.write(pages[arguments[1]])
        return
    for page, text in pages.items():
        (ROOT / page).write_text(text, encoding="utf-8")


def evidence() -> str:
    """Return docs/evidence.md."""
    claims: dict[str, Any] = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    lines = [INTRODUCTION]
    lines += [
        "## The decision table",
        "",
        "One test proves each row of [the decision table](architecture.md#how-a-pass-decides).",
        "",
        "| row | action | test |",
        "| --- | --- | --- |",
    ]
    rows = decisions()
    for number, (row, test) in enumerate(zip(rows, claims["decisions"], strict=True), 1):
        lines.append(f"| {number} | {row[-1]} | `{test}` |")
    for section in claims["sections"]:
        lines += [
            "",
            f"## {section['title']}",
            "",
            f"Page: [{section['page']}]({section['page']}).",
        ]
        for claim in section["claims"]:
            lines += ["", claim["claim"], ""]
            lines += [f"- `{test}`" for test in claim["tests"]]
    return "\n".join(lines) + "\n"


def architecture() -> str:
    """Return docs/architecture.md with the decision table of the code."""
    header, *rows = table(documentation())
    lines = [["row", *header], ["---"] * (len(header) + 1)]
    lines += [[str(number), *row] for number, row in enumerate(rows, 1)]
    written = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return MARKED.sub(lambda match: match[1] + written + match[2], text)


def decisions() -> list[list[str]]:
    """Return the rows of the decision table."""
    return table(documentation())[1:]


def documentation() -> str:
    """Return the docstring of agent/core/plan/__init__.py."""
    return inspect.getdoc(plan) or ""


def table(text: str) -> list[list[str]]:
    """Return the header and the rows of the first table in a text, as cells."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines())
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines)
    ]
    return [rows[0], *rows[2:]]


if __name__ == "__main__":
    main(sys.argv[1:])
