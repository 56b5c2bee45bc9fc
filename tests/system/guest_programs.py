"""Copies the programs in tests/system/guest to a virtual machine, and reads their results."""

import ast
import json
from pathlib import Path

from tests.system.vm import GuestResult

GUEST = Path("tests/system/guest")


def files() -> dict[str, bytes]:
    """Return the content of each program by its path in the guest."""
    return {f"guest/{path.name}": path.read_bytes() for path in GUEST.glob("*.py")}


def scenarios(program: str, variable: str = "SCENARIOS") -> list[str]:
    """Return the names of the scenarios in a list of a program in the guest."""
    tree = ast.parse((GUEST / f"{program}.py").read_text())
    return [
        ast.unparse(item)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable
        if isinstance(node.value, ast.List | ast.Tuple)
        for item in node.value.elts
    ]


def outcomes(result: GuestResult) -> dict[str, str | None]:
    """Print the durations and notes of a run, and return the error of each scenario. The error of a
    successful scenario is None.
    """
    lines = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    for line in lines:
        print(line.get("note") or f"{line['scenario']}: {line['seconds']} s")
    return {line["scenario"]: line["error"] for line in lines if "scenario" in line}
