"""Tests of the size limits for modules, functions and classes."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import agent

Node = TypeVar("Node", bound=ast.AST)
ROOT = Path(agent.__file__).parent
MODULES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in MODULES.items()}
ALLOWED_EXCEPTIONS = {
    "A002",  # A parameter that has the name of an option.
    "ARG002",  # A parameter that belongs to a protocol.
    "BLE001",  # An error of a library or of a thread must not end the agent.
    "S603",  # commands.py is the only module that starts processes.
    "SIM115",  # Standard streams stay open.
    "SLF001",  # A library has no public access.
}

SEVERAL_CAUSES = {
    "BAD_VALUE",
    "CONDITION_SURPRISING",
    "FAILS_OPEN",
    "FILTER_TOO_LARGE",
    "INCLUDE_REFUSED",
    "IN_USE",
    "LEDGER_DAMAGED",
    "NAME_CONFLICT",
    "NODE_UNREACHABLE",
    "NOTIFY_REFUSED",
    "NOT_A_PROFILE",
    "NOT_PORTABLE",
    "PARSER_KILLED",
    "RULE_ADDED",
    "RULE_NOT_ENFORCED",
    "RUNTIME_CRASH",
    "START_IMPOSSIBLE",
    "USE_UNKNOWN",
}
"""The codes of findings with several causes, each of which has its own message."""


def nodes(type_: type[Node]) -> list[tuple[str, Node]]:
    """Return each syntax node of this type with the name of its module."""
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


class Parameter(NamedTuple):
    """A parameter with a default, or a field of a dataclass with a default."""

    place: str
    callable: str
    name: str
    position: int | None
    """None if only a keyword can pass the parameter."""

    is_field: bool = False
    """Whether `dataclasses.replace` can pass the parameter."""


def called_name(node: ast.expr) -> str:
    """Return the last part of the name of a function, a method or a class."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def calls() -> dict[str, list[ast.Call]]:
    """Return all calls in agent/ by the name of the function or class, without its module."""
    aliases = {
        alias.asname: alias.name
        for _, node in nodes(ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    result: dict[str, list[ast.Call]] = defaultdict(list)
    for _, call in nodes(ast.Call):
        name = called_name(call.func)
        result[aliases.get(name, name)].append(call)
        if name == "partial":
            rest = ast.Call(func=call.args[0], args=call.args[1:], keywords=call.keywords)
            result[called_name(call.args[0])].append(rest)
    return result


def passes(call: ast.Call, parameter: Parameter) -> bool:
    """Return whether a call passes a parameter. Unpacked arguments count as all parameters."""
    if any(keyword.arg in (parameter.name, None) for keyword in call.keywords):
        return True
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return True
    return parameter.position is not None and len(call.args) > parameter.position


def optional_parameters(name: str, tree: ast.AST, class_: str = "") -> Iterator[Parameter]:
    """Return the parameters with a default of all functions, methods and dataclasses."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield from parameters_of(name, node, class_)
        if isinstance(node, ast.ClassDef):
            yield from fields_of(name, node)
        inner = node.name if isinstance(node, ast.ClassDef) else ""
        yield from optional_parameters(name, node, inner)


def parameters_of(name: str, function: ast.FunctionDef, class_: str) -> Iterator[Parameter]:
    """Return the parameters with a default of a function or method."""
    callable_ = class_ if function.name == "__init__" else function.name
    place = f"{name}: {class_}.{function.name}"
    positional = [*function.args.posonlyargs, *function.args.args]
    required = len(positional) - len(function.args.defaults)
    for position, argument in enumerate(positional):
        if position >= required:
            # The first parameter of a method is the object.
            yield Parameter(place, callable_, argument.arg, position - bool(class_))
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is not None:
            yield Parameter(place, callable_, argument.arg, None)


def fields_of(name: str, class_: ast.ClassDef) -> Iterator[Parameter]:
    """Return the fields with a default of a dataclass, without fields that contain its state."""
    decorators = [ast.unparse(decorator) for decorator in class_.decorator_list]
    if not any(decorator.startswith("dataclass") for decorator in decorators):
        return
    is_frozen = any("frozen=True" in decorator for decorator in decorators)
    fields = [node for node in class_.body if isinstance(node, ast.AnnAssign)]
    for position, node in enumerate(fields):
        field = ast.unparse(node.target)
        is_state = not is_frozen and (field in ASSIGNED or "default_factory" in ast.unparse(node))
        if node.value is not None and not is_state:
            yield Parameter(f"{name}: {class_.name}", class_.name, field, position, is_field=True)


ASSIGNED = {node.attr for _, node in nodes(ast.Attribute) if isinstance(node.ctx, ast.Store)}
"""The names of the attributes that agent/ assigns after the creation of an object."""


def test_no_parameter_has_a_default_that_only_tests_replace() -> None:
    """Each parameter with a default is passed by at least one call in agent/. Functions with the
    same name count as one function.
    """
    by_name = calls()
    unused = [
        f"{parameter.place}({parameter.name})"
        for name, tree in TREES.items()
        for parameter in optional_parameters(name, tree)
        if not any(
            passes(call, parameter)
            for called in (parameter.callable, *(["replace"] if parameter.is_field else []))
            for call in by_name[called]
        )
    ]
    assert unused == []


def test_is_compares_only_with_constants_and_members_of_enumerations() -> None:
    """No decision depends on the identity of an object. Constants and enumeration members have
    names in upper case.
    """
    comparisons = [
        f"{name}: {ast.unparse(node)}"
        for name, node in nodes(ast.Compare)
        for operator, right in zip(node.ops, node.comparators, strict=True)
        if isinstance(operator, ast.Is | ast.IsNot)
        and not isinstance(right, ast.Constant)
        and not called_name(right).isupper()
    ]
    identities = [name for name, node in nodes(ast.Call) if called_name(node.func) == "id"]
    assert comparisons + identities == []


def built_codes(tree: ast.AST) -> Iterator[str]:
    """Return the finding codes that the functions of a module use, without comparisons."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Compare | ast.pattern):
            continue
        if isinstance(node, ast.Attribute) and called_name(node.value) == "FindingCode":
            yield node.attr
        yield from built_codes(node)


def test_each_finding_has_one_builder() -> None:
    """Only codes with several causes are used in more than one place."""
    counts = Counter(
        code for _, function in nodes(ast.FunctionDef) for code in built_codes(function)
    )
    assert {code for code, count in counts.items() if count > 1} == SEVERAL_CAUSES


def test_modules_have_at_most_400_lines() -> None:
    """Modules have at most 400 lines, because a longer module has several responsibilities."""
    lengths = {name: len(text.splitlines()) for name, text in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_functions_have_at_most_50_lines() -> None:
    """Functions have at most 50 lines, including the signature and the docstring."""
    lengths = {
        f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, node in nodes(ast.FunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 50} == {}


def test_classes_have_at_most_10_attributes() -> None:
    """Classes have at most 10 attributes, except for classes that only represent a value."""
    counts = {f"{name}: {node.name}": len(attributes(node)) for name, node in nodes(ast.ClassDef)}
    assert {name: count for name, count in counts.items() if count > 10} == {}


def test_no_linter_exception_hides_a_limit_of_structure() -> None:
    """No exception of the linter hides a limit, except that a constructor with keywords may have
    more than five parameters.
    """
    exceptions = {
        f"{name}: {line.strip()}"
        for name, text in MODULES.items()
        for line in text.splitlines()
        for code in re.findall(r"# noqa: (.*?)(?: - |$)", line)
        if code not in ALLOWED_EXCEPTIONS and not re.match(r"\s+def __init__\(  # noqa", line)
    }
    assert exceptions == set()


def test_constructors_with_many_parameters_take_keywords() -> None:
    """A constructor with more than five parameters has at most two positional parameters."""
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
