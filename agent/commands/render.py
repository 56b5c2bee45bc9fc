"""Print ConfigMaps made from a directory: one or more for each sub-directory.

A ConfigMap key cannot hold `/`, so the profiles of a sub-directory get a ConfigMap of their own
with the path as its seccomp-prefix annotation. Rule 1: the same directory gives the same bytes.
"""

import base64
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from agent.core.model import Emptied, Read, SourceKey
from agent.sources.directory import DirectorySource

LIMIT = 1_000_000  # below the 1 MiB of a ConfigMap (and of etcd's request), its metadata included
# What the DaemonSet of manifests/base selects by.
LABELS = {"app.kubernetes.io/component": "profiles"}
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """YAML documents, what could not be rendered and why, and whether the directory was read."""

    text: str
    mistakes: tuple[str, ...]
    read: bool = True


def render(directory: str, name: str, namespace: str, domain: str) -> Rendered:
    """Render every profile below a directory."""
    (snapshot,) = DirectorySource(directory).read()
    if not isinstance(snapshot, Read):
        why = getattr(snapshot, "why", "it holds no profile")
        read = isinstance(snapshot, Emptied)
        told = why if why.startswith(directory) else f"{directory}: {why}"
        return Rendered(text="", mistakes=(told,), read=read)
    mistakes = [f'"{key}": {finding.message}' for key, finding in snapshot.refused]
    folders: dict[str, list[SourceKey]] = defaultdict(list)
    for blob in snapshot.source_keys:
        path = PurePosixPath(blob.key)
        if not _KEY.fullmatch(path.name):
            mistakes.append(f'"{blob.key}": its name cannot be a ConfigMap key; rename the file')
        else:
            folders["" if str(path.parent) == "." else f"{path.parent}/"].append(blob)
    maps: list[dict[str, object]] = []
    for prefix, blobs in sorted(folders.items()):
        for part in _split(blobs):
            number = f"-{len(maps) + 1}" if maps else ""
            maps.append(_config_map(f"{name}{number}", namespace, domain, prefix, part))
    text = yaml.dump_all(maps, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return Rendered(text=text, mistakes=tuple(mistakes))


def _split(blobs: list[SourceKey]) -> list[list[SourceKey]]:
    """Put blobs into as few parts, in their order, as the limit allows."""
    parts: list[list[SourceKey]] = []
    size = LIMIT
    for blob in blobs:
        more = len(blob.content) * 4 // 3 + len(blob.key) + 16
        if size + more > LIMIT:
            parts.append([])
            size = 0
        parts[-1].append(blob)
        size += more
    return parts


def _config_map(
    name: str, namespace: str, domain: str, prefix: str, blobs: list[SourceKey]
) -> dict[str, object]:
    metadata: dict[str, object] = {"name": name, "namespace": namespace, "labels": dict(LABELS)}
    if prefix:
        metadata["annotations"] = {f"{domain}/seccomp-prefix": prefix}
    data: dict[str, str] = {}
    binary: dict[str, str] = {}
    for blob in blobs:
        key = PurePosixPath(blob.key).name
        text = _text(blob.content)
        if text is None:
            binary[key] = base64.b64encode(blob.content).decode("ascii")
        else:
            data[key] = text
    made: dict[str, object] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    if data:
        made["data"] = data
    if binary:
        made["binaryData"] = binary
    return made


def _text(content: bytes) -> str | None:
    """Return content as text that YAML carries unchanged, or None."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if all(one.isprintable() or one in "\n\t" for one in text) else None


class _Dumper(yaml.SafeDumper):
    """Writes several lines as a block, as people do."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)
