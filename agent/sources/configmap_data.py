"""Parses the content of one ConfigMap: its keys and its annotations for the agent.

If a ConfigMap is malformed, it is unreadable as a whole, because its keys may still be desired. If
a key has an invalid name, only that key is rejected. Keys that are not profiles are left out.
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
    """Raised if a ConfigMap is malformed. The text of the error is the reason."""


class TooManyKeysError(MalformedError):
    """Raised if a ConfigMap has more keys than a profile set may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapData:
    """A well-formed ConfigMap."""

    name: str
    namespace: str
    source_keys: tuple[SourceKey, ...]
    rejected: tuple[tuple[str, Finding], ...]
    """The keys that were rejected before their content was read, with the reasons."""
    skipped: tuple[str, ...] = ()
    """The keys whose names are not valid profile names."""
    allow_empty: bool
    node_selector: selector.Selector
    """Selects the nodes on which the ConfigMap provides profiles. An empty selector matches all
    nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Annotations:
    prefix: str
    allow_empty: bool
    node_selector: selector.Selector


def parse(
    document: Mapping[str, object], *, profile_set: str, domain: str, qualified: bool
) -> ConfigMapData:
    """Return the content of a ConfigMap. Raises MalformedError and TooManyKeysError.

    Args:
        document: the object.
        profile_set: the profile set of the keys.
        domain: the domain of the annotations.
        qualified: whether the profile set contains several ConfigMaps; the ID of each key then
            begins with the namespace and the name.
    """
    metadata = _mapping(document, "metadata")
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise MalformedError("a ConfigMap has no metadata.name")
    full_name = f"{namespace}/{name}"
    annotations = _annotations(metadata, full_name, domain)
    source_keys: list[SourceKey] = []
    rejected: list[tuple[str, Finding]] = []
    skipped: list[str] = []
    for key, value in _keys(document, full_name):
        if classify.classify(key, value) is None:
            skipped.append(key)
            continue
        if len(source_keys) + len(rejected) == limits.SET_KEYS:
            raise TooManyKeysError(f"it has more than {limits.SET_KEYS} keys")
        key_id = f"{full_name}/{key}" if qualified else key
        refusal = _refusal(key, key_id, value)
        if refusal is not None:
            rejected.append(refusal)
        else:
            source_keys.append(
                SourceKey(
                    profile_set=profile_set,
                    key=key_id,
                    content=value,
                    prefix=annotations.prefix,
                    name=key if qualified else "",
                )
            )
    return ConfigMapData(
        name=name,
        namespace=namespace,
        source_keys=tuple(source_keys),
        rejected=tuple(rejected),
        skipped=tuple(skipped),
        allow_empty=annotations.allow_empty,
        node_selector=annotations.node_selector,
    )


def _refusal(key: str, key_id: str, value: bytes) -> tuple[str, Finding] | None:
    """Return the printable ID of a key that cannot be a profile, and the reason."""
    if not _KEY.fullmatch(key) or key.startswith(".."):
        shown = ascii(key_id)[1:-1]
        return shown, limits.unsafe(shown, "is not a ConfigMap key")
    if len(value) > limits.KEY_BYTES:
        return key_id, limits.too_large(key_id)
    return None


def _annotations(metadata: Mapping[str, object], full_name: str, domain: str) -> _Annotations:
    """Return the values of the annotations for the agent. Raises MalformedError."""
    annotations = _mapping(metadata, "annotations")
    prefix = annotations.get(f"{domain}/seccomp-prefix", "")
    allow_empty = annotations.get(f"{domain}/allow-empty", "false")
    nodes = annotations.get(f"{domain}/node-selector", "")
    if (
        not isinstance(prefix, str)
        or not isinstance(nodes, str)
        or allow_empty not in ("true", "false")
    ):
        raise MalformedError(f"ConfigMap {full_name} has an annotation with an invalid value")
    try:
        node_selector = selector.parse(nodes)
    except ValueError as error:
        raise MalformedError(f"ConfigMap {full_name}, annotation node-selector: {error}") from error
    return _Annotations(
        prefix=prefix, allow_empty=allow_empty == "true", node_selector=node_selector
    )


def _keys(document: Mapping[str, object], full_name: str) -> Iterable[tuple[str, bytes]]:
    """Yield the keys of data and binaryData with their content. Raises MalformedError."""
    data, binary = _mapping(document, "data"), _mapping(document, "binaryData")
    duplicates = data.keys() & binary.keys()
    if duplicates:
        raise MalformedError(
            f"ConfigMap {full_name} has {min(duplicates)!r} in data and in binaryData"
        )
    for key in sorted([*data, *binary]):
        value = data[key] if key in data else binary[key]
        if not isinstance(value, str):
            raise MalformedError(f"ConfigMap {full_name}: the value of {key!r} is not a string")
        if key in data:
            yield key, value.encode("utf-8", "surrogatepass")
            continue
        try:
            yield key, base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedError(
                f"ConfigMap {full_name}: binaryData {key!r} is not base64"
            ) from error


def _mapping(document: Mapping[str, object], field: str) -> dict[str, object]:
    """Return a field that contains a mapping. A missing field or null counts as an empty mapping.
    Raises MalformedError.
    """
    value = document.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MalformedError(f"the field {field} of a ConfigMap is not a mapping with string keys")
    return value
