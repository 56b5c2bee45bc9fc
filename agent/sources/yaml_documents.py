"""The documents of a YAML text, parsed within limits.

The result consists of strings, lists, mappings with string keys, booleans and None. Numbers and
dates are not converted: PyYAML needs minutes for some short texts (base-60 integers, integer keys
of one hash value). The result is the documents or InvalidYamlError; nothing else is raised, and the
interpreter does not crash (libyaml's composer recurses in C, so the nesting depth is
checked before it runs). What aliases and merge keys expand to counts as if it were written out.
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
    """The reason why a text cannot be read as YAML."""


@dataclass(frozen=True, slots=True)
class NotAString:
    """A number or a date, which YAML does not quote, as the text that was written."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Loader(_Base):  # type: ignore[misc, valid-type] # the C loader where PyYAML has it
    """A loader of few types. It rejects duplicate keys: the last one would win in silence."""

    yaml_constructors: ClassVar[dict[str | None, Callable[..., object]]] = {}
    yaml_multi_constructors: ClassVar[dict[str, Callable[..., object]]] = {}


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Hashable, object]:
    if not isinstance(node, yaml.MappingNode):
        raise _rejected(node, "a value is not of the type of its tag")
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag == f"{_TAG}merge":  # construct_mapping resolves it
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
        raise _rejected(node, "a value is not of the type of its tag")
    return str(node.value)


def _boolean(loader: yaml.SafeLoader, node: yaml.Node) -> bool:
    value = yaml.SafeLoader.bool_values.get(_text(loader, node).lower())
    if value is None:
        raise _rejected(node, "a value is not of the type of its tag")
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
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidYamlError(" ".join(str(error).split()) or type(error).__name__) from error


def _measure(text: str) -> None:  # noqa: C901, PLR0912 - one case for each kind of event
    """Raise InvalidYamlError if a text nests too deep or is too large once aliases expand."""
    nodes = size = 0
    open_: list[tuple[str | None, int, int]] = []  # anchor, nodes and size before it
    whole: dict[str, tuple[int, int]] = {}  # what an anchor's node expands to
    for event in yaml.parse(text, _Loader):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in whole:
                    raise InvalidYamlError(
                        f"the alias *{event.anchor} names nothing, or what it is part of"
                    )
                more, larger = whole[event.anchor]
                nodes, size = nodes + more, size + larger
            case yaml.ScalarEvent():
                nodes, size = nodes + 1, size + len(event.value)
                if event.anchor:
                    whole[event.anchor] = (1, len(event.value))
            case yaml.CollectionStartEvent():
                if event.anchor:
                    whole.pop(event.anchor, None)  # not to be named before its end
                open_.append((event.anchor, nodes, size))
                nodes += 1
            case yaml.CollectionEndEvent():
                anchor, before, smaller = open_.pop()
                if anchor:
                    whole[anchor] = (nodes - before, size - smaller)
            case yaml.DocumentStartEvent():
                whole.clear()
            case _:
                pass
        if len(open_) > DEPTH:
            raise InvalidYamlError(f"it nests more than {DEPTH} levels deep")
        if nodes > NODES or size > BYTES:
            raise InvalidYamlError(f"it expands to more than {NODES} nodes or {BYTES} characters")


def read(path: str) -> bytes:
    """Return the content of a regular file, within the limit. Raises OSError."""
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
