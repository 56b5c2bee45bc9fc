"""Tests of the limits of structure, which keep modules, functions and classes small."""

import ast
import re
from pathlib import Path
from typing import TypeVar

import agent

Node = TypeVar("Node", bound=ast.AST)
ROOT = Path(agent.__file__).parent
MODULES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in MODULES.items()}
ALLOWED_EXCEPTIONS = {
    "A002",  # a parameter that has the name of an option
    "ARG002",  # a parameter that belongs to a protocol
    "BLE001",  # an error of a library or of a thread must not end the agent
    "S603",  # commands.py is the only module that starts processes
    "SIM115",  # standard streams stay open
    "SLF001",  # a library has no public access
}


def nodes(type_: type[Node]) -> list[tuple[str, Node]]:
    """Return each node of this type with the name of its module."""
    return [
        (name, node) for name, tree in TREES.items() for node in ast.walk(tree)
        if isinstance(node, type_)
    ]  # fmt: skip


def attributes(class_: ast.ClassDef) -> set[str]:
    """Return the names of the attributes that the methods of a class set."""
    targets = [
        target
        for node in ast.walk(class_)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    flat = [
        item
        for target in targets
        for item in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]
    return {
        item.attr
        for item in flat
        if isinstance(item, ast.Attribute)
        and isinstance(item.value, ast.Name)
        and item.value.id == "self"
    }


def test_modules_have_at_most_400_lines() -> None:
    """A module with more than 400 lines has several responsibilities."""
    lengths = {name: len(text.splitlines()) for name, text in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_functions_have_at_most_50_lines() -> None:
    """The 50 lines of a function include its signature and its docstring."""
    lengths = {
        f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, node in nodes(ast.FunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 50} == {}


def test_classes_have_at_most_10_attributes() -> None:
    """A class that only represents a value may have more fields."""
    counts = {f"{name}: {node.name}": len(attributes(node)) for name, node in nodes(ast.ClassDef)}
    assert {name: count for name, count in counts.items() if count > 10} == {}


def test_no_linter_exception_hides_a_limit_of_structure() -> None:
    """Only a constructor with keywords may have more than five parameters."""
    exceptions = {
        f"{name}: {line.strip()}"
        for name, text in MODULES.items()
        for line in text.splitlines()
        for code in re.findall(r"# noqa: (.*?)(?: - |$)", line)
        if code not in ALLOWED_EXCEPTIONS and not re.match(r"\s+def __init__\(  # noqa", line)
    }
    assert exceptions == set()


def test_constructors_with_many_parameters_take_keywords() -> None:
    """A constructor has at most two positional parameters if it has more than five in total."""
    signatures = {
        f"{name}: line {node.lineno}": node.args
        for name, node in nodes(ast.FunctionDef)
        if node.name == "__init__"
    }
    positional = {
        place: len(signature.args) - 1
        for place, signature in signatures.items()
        if len(signature.args) + len(signature.kwonlyargs) - 1 > 5
    }
    assert {place: count for place, count in positional.items() if count > 2} == {}
