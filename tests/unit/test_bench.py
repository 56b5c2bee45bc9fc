"""Tests that the benchmark can start, and that its pages match its rows."""

import ast
import importlib
import types
from pathlib import Path

import pytest

from bench import document, rows
from bench.rows import Claim, Figure, Result
from tests.narrowing import not_none

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/performance.md").read_text()
RESULTS = (ROOT / "bench/results.md").read_text()


def test_the_page_lists_every_row_in_order() -> None:
    """docs/performance.md shows the name, the subject and the limit of each row of
    bench/rows.py.
    """
    assert document.rows(PAGE) == [(row.name, row.what, row.reach) for row in rows.ROWS]


def test_each_row_has_a_section_in_the_results() -> None:
    """bench/results.md has one section for each row."""
    assert document.sections(RESULTS) == [row.name for row in rows.ROWS]


def test_each_row_has_a_function() -> None:
    """The function of each row exists in its module."""
    for row in rows.ROWS:
        module, _, function = row.place.partition(":")
        tree = ast.parse((ROOT / f"bench/{module}.py").read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names, row.place


def test_only_the_section_of_a_measured_row_changes() -> None:
    """A new result replaces the section of its row and leaves other sections unchanged."""
    result = Result(
        figures=(Figure(label="time", samples=(3.0, 1.0, 2.0), unit="ms"),),
        claims=(
            Claim(label="time", value=2.0, limit=1.5, unit="ms"),
            Claim(label="CPU", value=1.0, limit=1.5, unit="x"),
        ),
        said=("A remark.",),
    )
    before = (
        "a\n<!-- bench:start -->\nold\n<!-- /bench -->\n<!-- bench:idle -->\nx\n<!-- /bench -->"
    )
    expected = """a
<!-- bench:start -->
| figure | median | smallest | largest | runs |
| --- | --- | --- | --- | --- |
| time | 2 ms | 1 ms | 3 ms | 3 |

| claim | measured | limit | reached |
| --- | --- | --- | --- |
| time | 2 ms | at most 1.50 ms | **no** |
| CPU | 1 x | at most 1.50 x | yes |

A remark.

Machine.
<!-- /bench -->
<!-- bench:idle -->
x
<!-- /bench -->"""
    assert document.results_page(before, {"start": result}, "Machine.") == expected


def test_the_page_shows_how_many_claims_are_not_reached() -> None:
    """The page shows how many limits of each section are not reached."""
    missed = Claim(label="a: b / c", value=2.0, limit=1.5, unit="ms")
    reached = Claim(label="b", value=1.0, limit=1.5, unit="ms")
    figure = Figure(label="time", samples=(1.0,), unit="ms")
    start = Result(figures=(figure,), claims=(missed, reached, missed))
    idle = Result(figures=(figure,), claims=(reached,))
    page = """| [label](../bench/results.md#label) | what | to reach | yes |
| [start](../bench/results.md#start) | what | to reach |  |
| [idle](../bench/results.md#idle) | what | to reach | **no** (1 of 1) |
"""
    results = """<!-- bench:label -->
never measured
<!-- /bench -->
<!-- bench:start -->
<!-- /bench -->
<!-- bench:idle -->
<!-- /bench -->
"""
    results = document.results_page(results, {"start": start}, "Machine.")
    results = document.results_page(results, {"idle": idle}, "Machine.")
    assert document.performance_page(page, results).splitlines() == [
        "| [label](../bench/results.md#label) | what | to reach |  |",
        "| [start](../bench/results.md#start) | what | to reach | **no** (2 of 3) |",
        "| [idle](../bench/results.md#idle) | what | to reach | yes |",
    ]


def test_the_page_matches_the_results() -> None:
    """The last column of docs/performance.md matches bench/results.md."""
    assert document.performance_page(PAGE, RESULTS) == PAGE


def test_numbers_have_three_digits() -> None:
    """Numbers are rounded to three significant digits."""
    shown = [document.number(value, "ms") for value in (1234.5, 123.4, 12.34, 1.234, 0.1234, 2.0)]
    assert shown == ["1,234 ms", "123 ms", "12.3 ms", "1.23 ms", "0.123 ms", "2 ms"]


@pytest.mark.parametrize("path", sorted(Path("bench").glob("*.py")), ids=lambda path: path.stem)
def test_imported_names_of_the_benchmark_exist(path: Path) -> None:
    """All names that the benchmark imports exist. This test is necessary because CI does not run
    the benchmark.
    """
    tree = ast.parse(path.read_text())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not_none(node.module).partition(".")[0] in (
            "tests",
            "agent",
        ):
            for name in node.names:
                value = importlib.import_module(not_none(node.module))
                if hasattr(value, name.name):
                    value = getattr(value, name.name)
                else:
                    value = importlib.import_module(f"{node.module}.{name.name}")
                modules[name.asname or name.name] = value
    missing = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and isinstance(modules.get(node.value.id), types.ModuleType)
        and not hasattr(modules[node.value.id], node.attr)
    ]
    assert missing == []
