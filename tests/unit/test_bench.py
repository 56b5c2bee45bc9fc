"""The benchmark measures what docs/performance.md tells, and can be started."""

import ast
import importlib
import types
from pathlib import Path

import pytest

from bench import document, rows
from bench.rows import Claim, Figure, Result

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/performance.md").read_text()


def test_the_page_has_every_row_in_its_order_and_no_other():
    """Name, what and what is to be reached stand in the table as in bench/rows.py."""
    assert document.rows(TEXT) == [(one.name, one.what, one.reach) for one in rows.ROWS]


def test_each_row_has_a_section_of_its_own():
    """What is measured has a place to be written to."""
    assert document.sections(TEXT) == [one.name for one in rows.ROWS]


def test_each_row_has_its_function():
    """A row names a function that there is; it is read, not run."""
    for row in rows.ROWS:
        module, _, function = row.place.partition(":")
        tree = ast.parse((ROOT / f"bench/{module}.py").read_text())
        names = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
        assert function in names, row.place


def test_a_measured_row_is_written_and_the_others_stay():
    """Only what lies between the markers of that row changes."""
    result = Result(
        figures=(Figure(label="time", samples=(3.0, 1.0, 2.0), unit="ms"),),
        claims=(
            Claim(label="time", value=2.0, limit=1.5, unit="ms"),
            Claim(label="CPU", value=1.0, limit=1.5, unit="x"),
        ),
        said=("So it was.",),
    )
    before = (
        "a\n<!-- bench:start -->\nold\n<!-- /bench -->\n<!-- bench:idle -->\nx\n<!-- /bench -->"
    )
    expected = """a
<!-- bench:start -->
| figure | median | from | to | runs |
| --- | --- | --- | --- | --- |
| time | 2 ms | 1 ms | 3 ms | 3 |

| to reach | measured | limit | reached |
| --- | --- | --- | --- |
| time | 2 ms | at most 1.50 ms | **no** |
| CPU | 1 x | at most 1.50 x | yes |

So it was.

Machine.
<!-- /bench -->
<!-- bench:idle -->
x
<!-- /bench -->"""
    assert document.written(before, {"start": result}, "Machine.") == expected


def test_the_table_at_the_top_says_which_claims_are_not_reached():
    """The last column is made of the claims of each section, that of a row measured before too."""
    missed = Claim(label="a: b / c", value=2.0, limit=1.5, unit="ms")
    reached = Claim(label="b", value=1.0, limit=1.5, unit="ms")
    figure = Figure(label="time", samples=(1.0,), unit="ms")
    start = Result(figures=(figure,), claims=(missed, reached, missed))
    idle = Result(figures=(figure,), claims=(reached,))
    text = """| [label](#label) | what | to reach | yes |
| [start](#start) | what | to reach |  |
| [idle](#idle) | what | to reach | **no**: b |
<!-- bench:label -->
never measured
<!-- /bench -->
<!-- bench:start -->
<!-- /bench -->
<!-- bench:idle -->
<!-- /bench -->
"""
    once = document.written(text, {"start": start}, "Machine.")
    top = document.written(once, {"idle": idle}, "Machine.").split("\n")[:3]
    assert top == [
        "| [label](#label) | what | to reach |  |",
        "| [start](#start) | what | to reach | **no**: a: b / c; a: b / c |",
        "| [idle](#idle) | what | to reach | yes |",
    ]


def test_the_table_at_the_top_is_that_of_the_sections():
    """Nobody wrote into it by hand."""
    assert document.written(TEXT, {}, "") == TEXT


def test_numbers_have_three_digits():
    """More would be noise."""
    shown = [document.number(one, "ms") for one in (1234.5, 123.4, 12.34, 1.234, 0.1234, 2.0)]
    assert shown == ["1,234 ms", "123 ms", "12.3 ms", "1.23 ms", "0.123 ms", "2 ms"]


@pytest.mark.parametrize("path", sorted(Path("bench").glob("*.py")), ids=lambda one: one.stem)
def test_what_the_benchmark_takes_from_elsewhere_is_there(path):
    """Names that it imports, and what it asks of the tests' modules; it is no part of CI."""
    tree = ast.parse(path.read_text())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("tests", "agent"):
            for one in node.names:
                found = importlib.import_module(node.module)
                if not hasattr(found, one.name):
                    found = importlib.import_module(f"{node.module}.{one.name}")
                else:
                    found = getattr(found, one.name)
                modules[one.asname or one.name] = found
    missing = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and isinstance(modules.get(node.value.id), types.ModuleType)
        and not hasattr(modules[node.value.id], node.attr)
    ]
    assert missing == []
