"""The documents of a YAML text, parsed within bounds.

Rule 1: whatever the text is, the answer is its documents or NotYaml; nothing else is raised, and
the interpreter does not die (libyaml's composer recurses in C: nesting is counted before it runs).
Rule 2: what aliases and merge keys expand to counts as if it were written out.
"""

import os
import stat
from collections.abc import Hashable
from typing import Final

import yaml

from agent.doors import signature

BYTES: Final = 64 << 20
NODES: Final = 200_000
DEPTH: Final = 100

_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What PyYAML's constructors raise beside YAMLError: a date of month 13 is a ValueError,
# `!!int ""` an IndexError, `!!bool foo` a KeyError, `!!timestamp foo` an AttributeError.
_RAISED: Final = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class NotYaml(ValueError):  # noqa: N818 - the text is at fault; the name says what it is
    """Why a text cannot be read as YAML."""


class _Loader(_Base):  # type: ignore[misc, valid-type] # the C loader where PyYAML has it
    """A safe loader that refuses duplicate keys: the last one would win in silence."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, object]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # construct_mapping resolves it
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable) or key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate or unusable key {key!r}", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(content: bytes) -> list[object]:
    """Return every document of the text; raise NotYaml where it is none, or too much."""
    try:
        text = content.decode("utf-8")
        _measure(text)
        return list(yaml.load_all(text, _Loader))
    except NotYaml:
        raise
    except _RAISED as error:
        raise NotYaml(" ".join(str(error).split()) or type(error).__name__) from error


def _measure(text: str) -> None:  # noqa: C901, PLR0912 - one case for each kind of event
    """Raise NotYaml for a text that nests too deep or is too large with its aliases expanded."""
    nodes = size = 0
    open_: list[tuple[str | None, int, int]] = []  # anchor, nodes and size before it
    whole: dict[str, tuple[int, int]] = {}  # what an anchor's node expands to
    for event in yaml.parse(text, _Loader):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in whole:
                    raise NotYaml(f"the alias *{event.anchor} names nothing, or what it is part of")
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
            raise NotYaml(f"it nests more than {DEPTH} levels deep")
        if nodes > NODES or size > BYTES:
            raise NotYaml(f"it expands to more than {NODES} nodes or {BYTES} characters")


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
        if signature.of(os.fstat(fd)) != signature.of(status):
            raise OSError(0, "it changed while it was read")
    finally:
        os.close(fd)
    return content
