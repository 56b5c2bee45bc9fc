"""Parses the documents of a YAML text within limits.

The result consists only of strings, lists, mappings with string keys, booleans and None. The module
does not convert numbers and dates, because PyYAML needs minutes for some short texts (base-60
integers, keys with equal hashes). The module either returns documents or raises InvalidYamlError.
The composer of libyaml is recursive C code, so the module checks the nesting depth before the
composer runs. Each use of an alias or a merge key counts against the limits with its whole content.
"""

import os
import stat
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, Final

import yaml

from agent.host import stat_signature

BYTES: Final = 64 << 20
NODES: Final = 200_000
DEPTH: Final = 100

_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"


class InvalidYamlError(ValueError):
    """Raised if a text is not valid YAML, or exceeds the limits. The text of the error is the
    reason.
    """


@dataclass(frozen=True, slots=True)
class NotAString:
    """A string that represents a number or a date without quotes."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Loader(_Base):  # type: ignore[misc, valid-type] # the C loader where PyYAML has it
    """A YAML loader that supports only a few types.

    Duplicate keys are rejected, because only the last value would have an effect.
    """

    yaml_constructors: ClassVar[dict[str | None, Callable[..., object]]] = {}
    yaml_multi_constructors: ClassVar[dict[str, Callable[..., object]]] = {}


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Hashable, object]:
    if not isinstance(node, yaml.MappingNode):
        raise _rejected(node, "a value does not match its tag")
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag == f"{_TAG}merge":  # The method construct_mapping resolves merge keys.
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}value"):
            shown = f" {key.value[:100]!r}" if isinstance(key, yaml.ScalarNode) else ""
            raise _rejected(key, f"the key{shown} is not a string; quote it")
        if key.value in seen:
            raise _rejected(key, f"the key {key.value[:100]!r} occurs twice")
        seen.add(key.value)
    constructed: dict[Hashable, object] = loader.construct_mapping(node)
    if not all(isinstance(key, str) for key in constructed):
        raise _rejected(node, "a merged key is not a string; quote it")
    return constructed


def _not_a_string(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    return NotAString(_text(loader, node))


def _text(_: yaml.SafeLoader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _rejected(node, "a value does not match its tag")
    return str(node.value)


def _boolean(loader: yaml.SafeLoader, node: yaml.Node) -> bool:
    value = yaml.SafeLoader.bool_values.get(_text(loader, node).lower())
    if value is None:
        raise _rejected(node, "a value does not match its tag")
    return value


def _nothing(_loader: yaml.SafeLoader, _node: yaml.Node) -> None:
    return None


def _unknown(_: yaml.SafeLoader, node: yaml.Node) -> None:
    raise _rejected(node, f"the tag {node.tag[:100]!r} is not supported")


def _rejected(node: yaml.Node, reason: str) -> InvalidYamlError:
    return InvalidYamlError(f"line {node.start_mark.line + 1}: {reason}")


for _names, _constructor in (
    (("str", "value"), _text),
    (("int", "float", "timestamp"), _not_a_string),
    (("bool",), _boolean),
    (("null",), _nothing),
    (("seq",), yaml.SafeLoader.construct_yaml_seq),
    (("map",), _mapping),
):
    for _name in _names:
        _Loader.add_constructor(f"{_TAG}{_name}", _constructor)
_Loader.add_constructor(None, _unknown)


def parse(content: bytes) -> list[object]:
    """Return every document of the text. Raises InvalidYamlError."""
    try:
        text = content.decode("utf-8")
        _measure(text)
        return list(yaml.load_all(text, _Loader))
    except InvalidYamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise InvalidYamlError(_syntax_error(error)) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidYamlError(" ".join(str(error).split()) or type(error).__name__) from error


def _syntax_error(error: yaml.MarkedYAMLError) -> str:
    """Return the location and the cause of a syntax error, on one line."""
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    reason = ", ".join(filter(None, (error.context, error.problem))) or type(error).__name__
    return f"{place}{reason}"


def _measure(text: str) -> None:
    """Raise InvalidYamlError if a text is nested too deeply or expands to too much content."""
    measure = _Measure()
    for event in yaml.parse(text, _Loader):
        measure.add(event)


class _Measure:
    """Counts the nodes and characters of a YAML text after its aliases are expanded."""

    def __init__(self) -> None:
        self._nodes = 0
        self._size = 0
        self._open: list[tuple[str | None, int, int]] = []
        """For each open collection, its anchor, and the number of nodes and the size before the
        collection."""
        self._anchors: dict[str, tuple[int, int]] = {}
        """For each complete anchor, the number of nodes and the size to which an alias of it
        expands."""

    def add(self, event: yaml.Event) -> None:
        """Count one event of the parser. Raises InvalidYamlError."""
        match event:
            case yaml.AliasEvent():
                self._add_alias(str(event.anchor))
            case yaml.ScalarEvent():
                self._nodes += 1
                self._size += len(event.value)
                if event.anchor:
                    self._anchors[event.anchor] = (1, len(event.value))
            case yaml.CollectionStartEvent():
                self._begin_collection(event.anchor)
            case yaml.CollectionEndEvent():
                anchor, nodes, size = self._open.pop()
                if anchor:
                    self._anchors[anchor] = (self._nodes - nodes, self._size - size)
            case yaml.DocumentStartEvent():
                self._anchors.clear()
            case _:
                pass
        if len(self._open) > DEPTH:
            raise InvalidYamlError(f"it nests more than {DEPTH} levels deep")
        if self._nodes > NODES or self._size > BYTES:
            raise InvalidYamlError(f"it expands to more than {NODES} nodes or {BYTES} characters")

    def _add_alias(self, anchor: str) -> None:
        if anchor not in self._anchors:
            raise InvalidYamlError(
                f"the alias *{anchor} has no anchor, or is part of its own anchor"
            )
        nodes, size = self._anchors[anchor]
        self._nodes += nodes
        self._size += size

    def _begin_collection(self, anchor: str | None) -> None:
        if anchor:
            # An alias inside the collection to which it refers is not valid.
            self._anchors.pop(anchor, None)
        self._open.append((anchor, self._nodes, self._size))
        self._nodes += 1


def read(path: str) -> bytes:
    """Return the content of a regular file that is within the size limit. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        if status.st_size > BYTES:
            raise OSError(0, f"larger than {BYTES} bytes")
        with open(fd, "rb", closefd=False) as stream:
            content = stream.read(BYTES + 1)
        if stat_signature.of(os.fstat(fd)) != stat_signature.of(status):
            raise OSError(0, "it changed while it was read")
    finally:
        os.close(fd)
    return content
