"""Provides profiles from the ConfigMaps in a YAML file (fields `data` and `binaryData`).

The whole file is one profile set. The profiles of a ConfigMap that is removed from the file are
removed from the node. If the file is missing or malformed, no profile is removed. Kubernetes
objects of other kinds are left out. If a ConfigMap is malformed, the whole file is unreadable,
because its keys may still be desired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.core import left_out
from agent.core.findings import Finding
from agent.core.labels import DOMAIN
from agent.core.left_out import LeftOut
from agent.core.model import Emptied, Missing, Snapshot, SourceKey, Unreadable
from agent.core.vocabulary import LeftOutReason
from agent.sources import configmap_data, limits, yaml_documents
from agent.sources.configmap_data import MalformedError


@dataclass(slots=True)
class _Collected:
    """The keys of the ConfigMaps that have been read so far."""

    source_keys: list[SourceKey] = field(default_factory=list)
    rejected: list[tuple[str, Finding]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    """The keys whose names are not valid profile names."""
    resources: list[str] = field(default_factory=list)
    """The resources that are not ConfigMaps."""
    allow_empty: bool = False


class ManifestSource:
    """The ConfigMaps in one file on this machine. Implements agent.core.ports.Source."""

    def __init__(self, path: str, domain: str = DOMAIN) -> None:
        self.path = path
        self.profile_set = f"manifest {Path(path).absolute()}"
        self.domain = domain
        """The domain of the annotations."""
        self.watched_path = Path(path).absolute()

    def explain_absence(self, _profile_set: str, /) -> Snapshot | None:
        """Return None, because `read` always returns the only profile set of this source."""
        return None

    def invalidate(self) -> None:
        """Do nothing, because each read processes the whole file."""

    def read(self) -> tuple[Snapshot, ...]:
        """Read the file once."""
        try:
            content = yaml_documents.read(self.path)
        except FileNotFoundError:
            return (Missing(profile_set=self.profile_set, reason=f"{self.path} does not exist"),)
        except OSError as error:
            return (self._unreadable(str(error.strerror)),)
        collected = _Collected()
        try:
            for document in yaml_documents.parse(content):
                self._collect(document, collected)
        except (yaml_documents.InvalidYamlError, MalformedError) as error:
            return (self._unreadable(" ".join(str(error).split())[:300]),)
        snapshot = limits.snapshot(
            self.profile_set,
            collected.source_keys,
            collected.rejected,
            allow_empty=collected.allow_empty,
        )
        if isinstance(snapshot, Emptied) and not collected.names:
            snapshot = replace(snapshot, reason="it contains no ConfigMap")
        by_name = limits.skipped_by_name(collected.skipped)
        resources = _skipped_resources(collected.resources)
        return (limits.with_left_out(snapshot, (*by_name, *resources)),)

    def _unreadable(self, reason: str) -> Unreadable:
        return Unreadable(profile_set=self.profile_set, reason=f"{self.path}: {reason}")

    def _collect(self, document: object, collected: _Collected) -> None:
        """Add the keys of one object. Raises MalformedError."""
        if document is None:
            return
        if not isinstance(document, dict):
            raise MalformedError("a document is not a Kubernetes object")
        if document.get("kind") in ("List", "ConfigMapList"):
            items = document.get("items")
            if not isinstance(items, list):
                raise MalformedError("a List has no items")
            for item in items:
                self._collect(item, collected)
            return
        if document.get("kind") != "ConfigMap":
            collected.resources.append(_described(document))
            return
        if document.get("apiVersion") != "v1":
            raise MalformedError("a ConfigMap has an apiVersion other than v1")
        config_map = configmap_data.parse(
            document, profile_set=self.profile_set, domain=self.domain, qualified=True
        )
        name = f"{config_map.namespace}/{config_map.name}"
        if name in collected.names:
            raise MalformedError(f"the ConfigMap {name} occurs twice")
        collected.names.add(name)
        collected.source_keys += config_map.source_keys
        collected.rejected += config_map.rejected
        collected.skipped += (f"{name}/{key}" for key in config_map.skipped)
        collected.allow_empty = collected.allow_empty or config_map.allow_empty


def _described(document: Mapping[object, object]) -> str:
    """Return the kind, the namespace and the name of a resource."""
    metadata = document.get("metadata")
    fields = metadata if isinstance(metadata, dict) else {}
    path = "/".join(str(fields[field]) for field in ("namespace", "name") if fields.get(field))
    return " ".join(filter(None, (str(document.get("kind") or "document without a kind"), path)))


def _skipped_resources(resources: Sequence[str]) -> tuple[LeftOut, ...]:
    hint = "Only profiles in the fields data and binaryData of a ConfigMap are installed."
    if any(resource.startswith("SeccompProfile") for resource in resources):
        hint = (
            "The seccomp profile of a SeccompProfile is in its spec: run `profile-loader convert "
            "FILE`, and install the output from a directory or a ConfigMap."
        )
    return left_out.of(LeftOutReason.RESOURCE, resources, hint)
