"""What one ConfigMap says: its keys as blobs, and the annotations that belong to the agent.

Rule 1: a ConfigMap that is not well-formed is unreadable as a whole, since its keys may still be
desired; one odd key is refused alone. Rule 2: keys that are no profiles are passed over.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.core import classify, selector
from agent.core.findings import Finding
from agent.core.model import SourceKey
from agent.sources import limits

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")  # kubernetes: IsConfigMapKey


class MalformedError(ValueError):
    """What is wrong with a ConfigMap."""


class TooManyKeysError(MalformedError):
    """A ConfigMap has more keys than a profile set may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A well-formed ConfigMap. node_selector: which nodes it is for; empty: for all."""

    name: str
    namespace: str
    source_keys: tuple[SourceKey, ...]
    refused: tuple[tuple[str, Finding], ...]
    allow_empty: bool
    node_selector: selector.Selector


def content(
    document: Mapping[str, object], *, origin: str, domain: str, qualified: bool
) -> Content:
    """Return what a ConfigMap says. Raises MalformedError and TooManyKeysError.

    qualified: the set holds several ConfigMaps, so that namespace and name belong to each key.
    """
    metadata = _strings(document, "metadata")
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise MalformedError("a ConfigMap has no metadata.name")
    where = f"{namespace}/{name}"
    annotations = _strings(metadata, "annotations")
    prefix = annotations.get(f"{domain}/seccomp-prefix", "")
    allow = annotations.get(f"{domain}/allow-empty", "false")
    nodes = annotations.get(f"{domain}/node-selector", "")
    if not isinstance(prefix, str) or not isinstance(nodes, str) or allow not in ("true", "false"):
        raise MalformedError(f"ConfigMap {where} has an annotation of a wrong value")
    try:
        chosen = selector.parse(nodes)
    except ValueError as error:
        raise MalformedError(f"ConfigMap {where}, annotation node-selector: {error}") from error
    blobs: list[SourceKey] = []
    refused: list[tuple[str, Finding]] = []
    for key, value in _keys(document, where):
        if classify.classify(key, value) is None:
            continue
        if len(blobs) + len(refused) == limits.SET_KEYS:
            raise TooManyKeysError(f"it has more than {limits.SET_KEYS} keys")
        id_ = f"{where}/{key}" if qualified else key
        if not _KEY.fullmatch(key) or key.startswith(".."):
            shown = ascii(id_)[1:-1]
            refused.append((shown, limits.unsafe(shown, "is not a ConfigMap key")))
        elif len(value) > limits.KEY_BYTES:
            refused.append((id_, limits.too_large(id_)))
        else:
            own = key if qualified else ""
            blobs.append(
                SourceKey(profile_set=origin, key=id_, content=value, prefix=prefix, name=own)
            )
    return Content(
        name=name,
        namespace=namespace,
        source_keys=tuple(blobs),
        refused=tuple(refused),
        allow_empty=allow == "true",
        node_selector=chosen,
    )


def _keys(document: Mapping[str, object], where: str) -> Iterable[tuple[str, bytes]]:
    data, binary = _strings(document, "data"), _strings(document, "binaryData")
    both = data.keys() & binary.keys()
    if both:
        raise MalformedError(f"ConfigMap {where} has {min(both)!r} in data and in binaryData")
    for key in sorted([*data, *binary]):
        value = data[key] if key in data else binary[key]
        if not isinstance(value, str):
            raise MalformedError(f"ConfigMap {where}: the value of {key!r} is no string")
        if key in data:
            yield key, value.encode("utf-8", "surrogatepass")
            continue
        try:
            yield key, base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedError(f"ConfigMap {where}: binaryData {key!r} is not base64") from error


def _strings(document: Mapping[str, object], field: str) -> dict[str, object]:
    """Return a field that maps strings to anything; absent and null are empty."""
    value = document.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MalformedError(f"{field} of a ConfigMap is no mapping of strings")
    return value
