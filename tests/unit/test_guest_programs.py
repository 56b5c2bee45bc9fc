"""Tests of the programs that run in a virtual machine, without a virtual machine."""

import ast
from pathlib import Path

GUEST = Path(__file__).resolve().parents[1] / "system/guest"


def test_every_function_is_used() -> None:
    """Each function without parameters is used or listed. A scenario that is missing in the list of
    its program would never run, and no test would fail.
    """
    trees = [ast.parse(path.read_text()) for path in sorted(GUEST.glob("*.py"))]
    functions = {
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.decorator_list
    }
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    assert functions
    assert functions - used == set()
