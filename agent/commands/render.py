"""Creates ConfigMaps from a directory of profiles, and expands the include rules of profile texts.

A ConfigMap key cannot contain `/`. Therefore, each sub-directory gets its own ConfigMaps, whose
annotation seccomp-prefix contains its path. The result for an unchanged directory is always the
same text.
"""

import base64
import difflib
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from agent.commands.inline import Inlined, Inliner
from agent.core.findings import Finding
from agent.core.model import Emptied, Missing, Read, SourceKey, Unreadable
from agent.sources import limits
from agent.sources.directory import DirectorySource

# A ConfigMap, including its metadata, is limited to 1 MiB, like a request to etcd.
LIMIT = 1_000_000
# The DaemonSet in manifests/base selects ConfigMaps by the label profile-loader.io/profiles. Tools
# that set common labels do not overwrite this label. Version 0.1.0 of the manifests selects
# ConfigMaps by the recommended label.
LABELS = {"app.kubernetes.io/component": "profiles", "profile-loader.io/profiles": "true"}
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The result of rendering a directory."""

    text: str
    """The ConfigMaps as YAML documents, or the text of one profile."""
    mistakes: tuple[str, ...]
    """The messages about the files that are not part of the text."""
    read: bool = True
    """Whether the directory or file could be read."""


def inline(path: str, include: Sequence[str]) -> Rendered:
    """Return the text of one profile without include rules.

    Args:
        path: the file of the profile.
        include: the directories whose files replace the include rules.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(limits.KEY_BYTES + 1)
    except OSError as error:
        return Rendered(text="", mistakes=(f"{path}: {error.strerror}",), read=False)
    if len(content) > limits.KEY_BYTES:
        return Rendered(text="", mistakes=(f"{path}: {limits.too_large(path).message}",))
    # With this extension, every text is of the kind AppArmor.
    name = f"{PurePosixPath(path).name}.profile"
    key = SourceKey(profile_set="", key=path, name=name, content=content)
    inlined = Inliner(include).inline(key)
    if not isinstance(inlined, Inlined):
        return Rendered(text="", mistakes=_mistakes(path, inlined))
    return Rendered(text=inlined.source_key.content.decode("utf-8"), mistakes=())


def render(
    directory: str, name: str, namespace: str, domain: str, include: Sequence[str] = ()
) -> Rendered:
    """Render every profile in a directory and its sub-directories.

    Args:
        directory: the path of the directory.
        name: the name of the first ConfigMap. The names of further
            ConfigMaps end with a number.
        namespace: the namespace of the ConfigMaps.
        domain: the domain of the annotations.
        include: the directories whose files replace the include rules; empty to keep the rules.
    """
    (snapshot,) = DirectorySource(directory, clock_ns=time.time_ns).read()
    match snapshot:
        case Read():
            pass
        case Emptied():
            message = f"{directory}: the directory contains no profile"
            return Rendered(text="", mistakes=(message,))
        case Missing() | Unreadable():
            reason = snapshot.reason
            message = reason if reason.startswith(directory) else f"{directory}: {reason}"
            return Rendered(text="", mistakes=(message,), read=False)
    mistakes = [f'"{key}": {finding.message}' for key, finding in snapshot.rejected_keys]
    keys_by_prefix: dict[str, list[SourceKey]] = defaultdict(list)
    source_keys = list(snapshot.source_keys)
    if include:
        source_keys = _inlined(source_keys, include, mistakes)
    for key in source_keys:
        path = PurePosixPath(key.key)
        if not _KEY.fullmatch(path.name):
            mistakes.append(
                f'"{key.key}": a ConfigMap cannot have this name as a key. Use only letters, '
                'digits, "-", "_" and "."'
            )
        else:
            keys_by_prefix["" if str(path.parent) == "." else f"{path.parent}/"].append(key)
    maps: list[dict[str, object]] = []
    for prefix, keys in sorted(keys_by_prefix.items()):
        for part in _split(keys):
            number = f"-{len(maps) + 1}" if maps else ""
            maps.append(_config_map(f"{name}{number}", namespace, domain, prefix, part))
    text = yaml.dump_all(maps, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return Rendered(text=text, mistakes=tuple(mistakes))


def differences(path: str, text: str) -> list[str]:
    """Return the lines of a unified diff from a file to a text; empty if both are equal.

    Raises OSError.
    """
    content = Path(path).read_bytes()
    if content == text.encode():
        return []
    lines = (content.decode("utf-8", "backslashreplace").split("\n"), text.split("\n"))
    diff = difflib.unified_diff(*lines, fromfile=path, tofile="output of render", lineterm="")
    return list(diff) or [f"{path} contains bytes that are not valid UTF-8"]


def _inlined(
    keys: Sequence[SourceKey], include: Sequence[str], mistakes: list[str]
) -> list[SourceKey]:
    """Return the keys whose include rules could be expanded, and add a message for each other
    key.
    """
    inliner = Inliner(include)
    inlined_keys: list[SourceKey] = []
    for key in keys:
        inlined = inliner.inline(key)
        if isinstance(inlined, Inlined):
            inlined_keys.append(inlined.source_key)
        else:
            mistakes += _mistakes(key.key, inlined)
    return inlined_keys


def _mistakes(key: str, findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(
        f'"{key}": {finding.location}: {finding.message} {finding.hint}' for finding in findings
    )


def _split(keys: list[SourceKey]) -> list[list[SourceKey]]:
    """Divide keys into consecutive parts, each of which fits into one ConfigMap."""
    parts: list[list[SourceKey]] = []
    size = LIMIT
    for key in keys:
        # The size that the content has as base64.
        key_size = len(key.content) * 4 // 3 + len(key.key) + 16
        if size + key_size > LIMIT:
            parts.append([])
            size = 0
        parts[-1].append(key)
        size += key_size
    return parts


def _config_map(
    name: str, namespace: str, domain: str, prefix: str, keys: list[SourceKey]
) -> dict[str, object]:
    metadata: dict[str, object] = {"name": name, "namespace": namespace, "labels": dict(LABELS)}
    if prefix:
        metadata["annotations"] = {f"{domain}/seccomp-prefix": prefix}
    data: dict[str, str] = {}
    binary: dict[str, str] = {}
    for key in keys:
        file_name = PurePosixPath(key.key).name
        text = _text(key.content)
        if text is None:
            binary[file_name] = base64.b64encode(key.content).decode("ascii")
        else:
            data[file_name] = text
    config_map: dict[str, object] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    if data:
        config_map["data"] = data
    if binary:
        config_map["binaryData"] = binary
    return config_map


def _text(content: bytes) -> str | None:
    """Return the content as text, or None if YAML cannot represent the text unchanged."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\n\t" for char in text) else None


class _Dumper(yaml.SafeDumper):
    """A YAML writer that writes texts with several lines as blocks."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)
