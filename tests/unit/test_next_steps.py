"""Tests that each message has a next step, and that the runbook describes the same step.

The tests read the source of the agent. These tests follow the parameters, the variables and the
functions from which the hint of a finding comes, and compare its literal parts with the runbook.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import agent
from agent.core.finding_codes import FindingCode, Severity

SOURCE = Path(agent.__file__).parent
SECTION = re.compile(r"^### ([a-z0-9_]+)\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
RUNBOOK = {
    code: " ".join(text.split())
    for code, text in SECTION.findall(Path("docs/runbook.md").read_text())
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`((?:profile-loader|apparmor_parser|kubectl|python3)[^`{}]*)`")
# The verbs with which a next step can begin.
VERBS = (
    *("add", "allow", "apply", "assign", "begin", "boot", "change", "check", "choose", "close"),
    *("compare", "correct", "declare", "delete", "deny", "free", "increase", "install", "keep"),
    *("look", "make", "mount", "move", "pass", "put", "raise", "reboot", "reduce", "remove"),
    *("rename", "replace", "report", "restart", "restrict", "run", "save", "set", "simplify"),
    *("split", "stop", "use", "write"),
)
FIRST = re.compile(rf"(?:^|[.:;,] |\b(?:or|and|then) )({'|'.join(VERBS)})\b", re.IGNORECASE)
# Each of these exceptions carries the hint of a finding with one code.
EXCEPTIONS = {
    "ExpansionError": FindingCode.INCLUDE_REFUSED,
    "IncludeFileError": FindingCode.INCLUDE_REFUSED,
}
# These calls take their hints from a value that is built elsewhere.
COPIES = {
    *("reporting/problem_record.py", "core/left_out.py", "commands/check.py"),
    "commands/inline.py",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A function of the agent, or a whole module."""

    path: str
    module: ast.Module
    function: ast.AST

    @property
    def name(self) -> str:
        """The name of the function, or "" for a module."""
        return getattr(self.function, "name", "")

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters without `self`."""
        if not isinstance(self.function, ast.FunctionDef):
            return []
        arguments = self.function.args
        every = [arg.arg for arg in (*arguments.args, *arguments.kwonlyargs)]
        return every[1:] if every[:1] == ["self"] else every


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A call that builds a finding with a code."""

    place: str
    code: FindingCode
    hints: tuple[str, ...]
    """The literal parts from which the hint is built."""


def scopes() -> Iterator[Scope]:
    """Yield each function and method of the agent."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ast.parse(path.read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                yield Scope(path=str(path.relative_to(SOURCE)), module=module, function=node)


SCOPES = tuple(scopes())
BY_NAME: dict[str, list[Scope]] = defaultdict(list)
for each in SCOPES:
    BY_NAME[each.name].append(each)


def calls(scope: Scope) -> Iterator[ast.Call]:
    """Yield the calls in a function, without the calls in nested functions."""
    stack = list(ast.iter_child_nodes(scope.function))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef):
            continue
        if isinstance(node, ast.Call):
            yield node
        stack += ast.iter_child_nodes(node)


def called_name(call: ast.Call) -> str:
    """Return the name of the called function or class."""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


CONSTANTS: dict[str, list[ast.stmt]] = defaultdict(list)
for each in SCOPES:
    for statement in each.module.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            for part in ast.walk(statement):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    CONSTANTS[part.id].append(statement)
CALLS: dict[str, list[tuple[Scope, ast.Call]]] = defaultdict(list)
for each in SCOPES:
    for found in calls(each):
        CALLS[called_name(found)].append((each, found))


def owner(call: ast.Call) -> str:
    """Return the name of the module in a call of the form `module.function()`."""
    return getattr(getattr(call.func, "value", None), "id", "")


def arguments(call: ast.Call, callee: Scope) -> Mapping[str, ast.expr]:
    """Return the arguments of a call by the names of the parameters.

    An argument with a star stands for all remaining parameters.
    """
    named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    given = list(call.args)
    if given and isinstance(given[-1], ast.Starred):
        given += [given[-1].value] * len(callee.parameters)
    return dict(zip(callee.parameters, given, strict=False)) | named


def callers(callee: Scope) -> Iterator[tuple[Scope, ast.Call]]:
    """Yield the calls to a function within its own module, and the calls of the form
    `module.function()`.
    """
    for scope, call in CALLS[callee.name]:
        if scope.path == callee.path or owner(call) == Path(callee.path).stem:
            yield scope, call


def codes_in(node: ast.AST | None) -> set[FindingCode]:
    """Return the codes that an expression contains literally."""
    return {
        FindingCode[part.attr]
        for part in (ast.walk(node) if node is not None else ())
        if isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id == "FindingCode"
    }


@dataclass(frozen=True, slots=True)
class HintReader:
    """Reads the literal parts of one hint. Each variable and function is read only once."""

    seen: set[tuple[str, str, str]] = field(default_factory=set)

    def read(self, node: ast.AST | None, scope: Scope) -> Iterator[str]:
        """Yield the literal parts of an expression, its variables and the called functions."""
        match node:
            case None | ast.Compare():
                return
            case ast.Constant(value=str(text)) if text:
                yield text
            case ast.JoinedStr(values=values):
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in values]
                yield "".join(map(str, parts))
                for part in values:
                    if isinstance(part, ast.FormattedValue):
                        yield from self.read(part.value, scope)
            case ast.Name(id=name):
                yield from self.variable(name, scope)
            case ast.Attribute(attr=name) if name.isupper():
                yield from self.variable(name, scope)
            case ast.Call():
                yield from self.call(node, scope)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from self.read(child, scope)

    def is_new(self, *key: str) -> bool:
        """Return whether a variable or function has not been read yet, and mark it as read."""
        path, name, kind = key
        is_new = (path, name, kind) not in self.seen
        self.seen.add((path, name, kind))
        return is_new

    def call(self, call: ast.Call, scope: Scope) -> Iterator[str]:
        """Yield the literal parts of the results of a function."""
        name = called_name(call)
        if name == "next":
            yield from self.read(call.args[0], scope)
        elif self.is_new(scope.path, name, "function"):
            for callee in BY_NAME.get(name, ()):
                if callee.path == scope.path or Path(callee.path).stem == owner(call):
                    for part in ast.walk(callee.function):
                        if isinstance(part, ast.Return | ast.Yield):
                            yield from self.read(part.value, callee)

    def variable(self, name: str, scope: Scope) -> Iterator[str]:
        """Yield the literal parts of the values of a variable, parameter or constant."""
        if not self.is_new(scope.path, scope.name, name):
            return
        if name in scope.parameters:
            for caller, call in callers(scope):
                yield from self.read(arguments(call, scope).get(name), caller)
        constants = [item for item in scope.module.body if name in assignment(item)[0]]
        if name.isupper():
            constants = constants or CONSTANTS[name]
        for node in (*ast.walk(scope.function), *constants):
            targets, value = assignment(node)
            if name in targets:
                yield from self.read(value, scope)


def assignment(node: ast.AST) -> tuple[set[str], ast.AST | None]:
    """Return the variables that a statement or a loop assigns, and their value."""
    targets: list[ast.expr] = []
    value: ast.AST | None = None
    match node:
        case ast.Assign():
            targets, value = node.targets, node.value
        case ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr():
            targets, value = [node.target], node.value
        case ast.For() | ast.comprehension():
            targets, value = [node.target], node.iter
    names = {
        part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
    }
    return names, value


def hint_parts(node: ast.AST | None, scope: Scope) -> tuple[str, ...]:
    """Return the literal parts of a hint."""
    return tuple(HintReader().read(node, scope))


def sites() -> Iterator[Site]:
    """Yield each call that builds a finding, once for each possible code."""
    for scope in SCOPES:
        if scope.path in COPIES:
            continue
        for call in calls(scope):
            name = called_name(call)
            place = f"{scope.path}:{call.lineno}"
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            if isinstance(named.get("hint"), ast.Attribute):
                continue  # The hint comes from an exception that the next branch covers.
            if name == "Finding":
                codes = codes_in(named.get("code"))
                hints = hint_parts(named.get("hint"), scope)
            elif name in EXCEPTIONS:
                codes = {EXCEPTIONS[name]}
                hint = named.get("hint") or call.args[-1]
                hints = hint_parts(hint, scope)
            else:
                codes = codes_in(ast.Tuple(elts=call.args))
                callees = [callee for callee in BY_NAME[name] if "hint" in callee.parameters]
                if not codes or not callees:
                    continue
                hint = arguments(call, callees[0]).get("hint")
                hints = hint_parts(hint, scope)
            for code in codes:
                yield Site(place=place, code=code, hints=hints)


SITES = tuple(sites())


def test_every_code_is_found_in_the_source() -> None:
    """The search finds at least one call for each code."""
    indirect = {
        FindingCode.SOURCE_MISSING, FindingCode.SOURCE_UNREADABLE, FindingCode.SOURCE_OVER_LIMIT,
        FindingCode.SOURCE_EMPTIED, FindingCode.INPUT_SKIPPED,
    }  # fmt: skip
    assert set(FindingCode) - {site.code for site in SITES} == indirect


def test_every_error_and_warning_has_a_next_step() -> None:
    """Only a notice can have no next step."""
    without = [
        f"{site.place} {site.code}"
        for site in SITES
        if not site.hints and site.code.severity != Severity.NOTICE
    ]
    assert without == []


@pytest.mark.parametrize("code", FindingCode, ids=str)
def test_the_runbook_describes_the_next_steps_of_a_code(code) -> None:
    """The section of a code contains each option, command and action of the hints."""
    section = RUNBOOK[code].lower()
    hints = [hint for site in SITES if site.code is code for hint in site.hints]
    steps = {
        *(option for hint in hints for option in OPTION.findall(hint)),
        *(command.lower() for hint in hints for command in COMMAND.findall(hint)),
    }
    verbs = {verb.lower() for hint in hints for verb in FIRST.findall(hint)}
    missing = [step for step in sorted(steps) if step not in section]
    missing += [verb for verb in sorted(verbs) if not re.search(rf"\b{verb}", section)]
    assert missing == []
