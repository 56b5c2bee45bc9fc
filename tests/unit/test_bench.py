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
            Claim(label="speed", value=2.0, limit=1.5, unit="x", least=True),
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
| speed | 2 x | at least 1.50 x | yes |

So it was.

Machine.
<!-- /bench -->
<!-- bench:idle -->
x
<!-- /bench -->"""
    assert document.written(before, {"start": result}, "Machine.") == expected


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
