"""Parses the text of a `--source` option, which describes a directory, a manifest, or ConfigMaps.

No profile is read while a text is parsed. `local_source` returns the source for a directory or a
manifest. app.py builds the sources for ConfigMaps, because they need a client.
"""

import difflib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from agent.core import ports, selector
from agent.core.dns_names import is_dns_label, is_dns_subdomain
from agent.core.labels import DOMAIN
from agent.sources.directory import DirectorySource

SCHEMES: Final = ("dir", "manifest", "configmap", "configmaps")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySpec:
    """A directory on this machine."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSpec:
    """A YAML file on this machine that contains ConfigMaps."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapSpec:
    """ConfigMaps in one namespace, selected by a single name or by a label selector."""

    namespace: str
    name: str = ""
    """The name of a single ConfigMap; empty for a selector."""
    selector: str = ""
    """The label selector; empty for all ConfigMaps in the namespace."""

    @property
    def path(self) -> str:
        """The path of the namespace's ConfigMaps in the API."""
        return f"/api/v1/namespaces/{quote(self.namespace)}/configmaps"

    @property
    def query(self) -> tuple[tuple[str, str], ...]:
        """The field selector or the label selector of the list request."""
        if self.name:
            return (("fieldSelector", f"metadata.name={self.name}"),)
        return (("labelSelector", self.selector),) if self.selector else ()


LocalSpec = DirectorySpec | ManifestSpec
SourceSpec = LocalSpec | ConfigMapSpec


def parse_source(text: str) -> SourceSpec:
    """Return the source that a text describes. Raises ValueError for an invalid text.

    A text without a scheme describes a manifest if it is the path of a file, or if it has the
    extension of a YAML file. Any other text without a scheme describes a directory. The path does
    not have to exist when the text is parsed. A source whose path does not exist when it is read
    counts as missing.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("configmap", "configmaps"):
        return _parse_config_maps(text)
    if colon and scheme in SCHEMES:
        if not rest:
            raise ValueError(f'"{text}": a path must follow "{scheme}:"')
        return DirectorySpec(path=rest) if scheme == "dir" else ManifestSpec(path=rest)
    if not text:
        raise ValueError("a source must not be empty")
    # pathlib raises an error for a directory that this process may not read. A later read reports
    # the reason.
    if colon and "/" not in scheme and not os.path.exists(text):
        similar = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f'; did you mean "{similar[0]}:{rest}"?' if similar else ""
        raise ValueError(
            f'"{text}": there is no source "{scheme}:"; use configmap:NAMESPACE/NAME, '
            f"configmaps:NAMESPACE?SELECTOR, dir:PATH or manifest:FILE{hint}"
        )
    is_yaml = Path(text).suffix in (".yaml", ".yml")
    if os.path.isfile(text) or (is_yaml and not os.path.isdir(text)):
        return ManifestSpec(path=text)
    return DirectorySpec(path=text)


def _parse_config_maps(text: str) -> ConfigMapSpec:
    """Parse `configmap:NAMESPACE/NAME` or `configmaps:NAMESPACE[?SELECTOR]`. Raises ValueError."""
    scheme, _, rest = text.partition(":")
    if scheme == "configmap":
        namespace, slash, name = rest.partition("/")
        if not slash or not is_dns_label(namespace) or not is_dns_subdomain(name):
            raise ValueError(f'"{text}": the form is configmap:NAMESPACE/NAME')
        return ConfigMapSpec(namespace=namespace, name=name)
    namespace, _, selected = rest.partition("?")
    if not is_dns_label(namespace):
        raise ValueError(f'"{text}": the form is configmaps:NAMESPACE?SELECTOR')
    try:
        selector.parse(selected)
    except ValueError as error:
        raise ValueError(f'"{text}": {error}') from error
    return ConfigMapSpec(namespace=namespace, selector=selected)


def local_source(spec: LocalSpec, domain: str = DOMAIN) -> ports.Source:
    """Return the source for a directory or a manifest.

    Args:
        spec: the parsed text.
        domain: the domain of the annotations of ConfigMaps.
    """
    match spec:
        case DirectorySpec():
            return DirectorySource(spec.path, clock_ns=time.time_ns)
        case ManifestSpec():
            # This import is late, because the module imports yaml, which needs memory.
            from agent.sources.manifest import ManifestSource

            return ManifestSource(spec.path, domain)
