"""Which source an operator means by a `--source` text."""

import difflib
import os
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
class ConfigMapSpec:
    """Which ConfigMaps of which namespace: one by its name, or those that a selector selects."""

    namespace: str
    name: str = ""
    selector: str = ""

    @property
    def path(self) -> str:
        """Return the path of the namespace's ConfigMaps."""
        return f"/api/v1/namespaces/{quote(self.namespace)}/configmaps"

    @property
    def query(self) -> tuple[tuple[str, str], ...]:
        """Return what selects them."""
        if self.name:
            return (("fieldSelector", f"metadata.name={self.name}"),)
        return (("labelSelector", self.selector),) if self.selector else ()


def _wanted(text: str) -> ConfigMapSpec:
    """Read `configmap:NAMESPACE/NAME` or `configmaps:NAMESPACE[?SELECTOR]`. Raises ValueError."""
    scheme, _, rest = text.partition(":")
    if scheme == "configmap":
        namespace, slash, name = rest.partition("/")
        if not slash or not is_dns_label(namespace) or not is_dns_subdomain(name):
            raise ValueError(f'"{text}": write configmap:NAMESPACE/NAME')
        return ConfigMapSpec(namespace=namespace, name=name)
    namespace, _, chosen = rest.partition("?")
    if not is_dns_label(namespace):
        raise ValueError(f'"{text}": write configmaps:NAMESPACE?SELECTOR')
    try:
        selector.parse(chosen)
    except ValueError as error:
        raise ValueError(f'"{text}": {error}') from error
    return ConfigMapSpec(namespace=namespace, selector=chosen)


def open_source(text: str, domain: str = DOMAIN) -> ports.Source | ConfigMapSpec:
    """Return the source that a text names; for ConfigMaps of the API server which are wanted.

    A bare path is a manifest if it is a file, or names one by its ending; else a directory. What
    does not exist is a source that is missing when it is read. Raises ValueError, with the
    mistake, for a text that names no source. domain: of the ConfigMaps' annotations.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("configmap", "configmaps"):
        return _wanted(text)
    if colon and scheme in SCHEMES:
        if not rest:
            raise ValueError(f'"{text}": a path must follow "{scheme}:"')
        return DirectorySource(rest) if scheme == "dir" else _manifest(rest, domain)
    if not text:
        raise ValueError("a source must not be empty")
    # pathlib raises where nobody may look; there reading says why.
    if colon and "/" not in scheme and not os.path.exists(text):  # noqa: PTH110 - see above
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f'; did you mean "{near[0]}:{rest}"?' if near else ""
        raise ValueError(
            f'"{text}": there is no source "{scheme}:"; use configmap:NAMESPACE/NAME, '
            f"configmaps:NAMESPACE?SELECTOR, dir:PATH or manifest:FILE{hint}"
        )
    named = Path(text).suffix in (".yaml", ".yml")
    if os.path.isfile(text) or (named and not os.path.isdir(text)):  # noqa: PTH112, PTH113 - see above
        return _manifest(text, domain)
    return DirectorySource(text)


def _manifest(path: str, domain: str) -> ports.Source:
    from agent.sources.manifest import ManifestSource  # with it comes yaml

    return ManifestSource(path, domain)
