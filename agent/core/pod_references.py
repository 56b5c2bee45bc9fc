"""Finds the profiles that a pod references in its security contexts and annotations.

The search covers init containers, ephemeral containers and the annotations that older API servers
use (kubernetes, pkg/apis/core/annotation_key_constants.go). Pods that have succeeded or failed are
ignored.
"""

import posixpath
from collections.abc import Iterable, Mapping
from typing import Final

from agent.core.kind_rules import KIND_RULES
from agent.core.model import ProfileKind

ProfileReferences = frozenset[tuple[ProfileKind, str]]

_CONTAINERS: Final = ("containers", "initContainers", "ephemeralContainers")
_LOCALHOST: Final = "localhost/"
_ENDED: Final = ("Succeeded", "Failed")


def referenced_profiles(pod: Mapping[str, object]) -> ProfileReferences:
    """Return every profile under which a pod may start a container."""
    if _mapping(pod.get("status")).get("phase") in _ENDED:
        return frozenset()
    spec = _mapping(pod.get("spec"))
    contexts = [_mapping(spec.get("securityContext"))]
    for field in _CONTAINERS:
        containers = spec.get(field)
        for container in containers if isinstance(containers, list) else []:
            context = _mapping(container).get("securityContext")
            contexts.append(_mapping(context))
    return frozenset([*_fields(contexts), *_annotations(pod)])


def _fields(contexts: Iterable[Mapping[str, object]]) -> Iterable[tuple[ProfileKind, str]]:
    for context in contexts:
        for kind, rules in KIND_RULES.items():
            profile = _mapping(context.get(rules.pod_field))
            name = profile.get("localhostProfile")
            if profile.get("type") == "Localhost" and isinstance(name, str):
                yield kind, _runtime_name(kind, name)


def _annotations(pod: Mapping[str, object]) -> Iterable[tuple[ProfileKind, str]]:
    annotations = _mapping(_mapping(pod.get("metadata")).get("annotations"))
    for key, value in annotations.items():
        for kind, rules in KIND_RULES.items():
            if key.startswith(rules.annotations) and str(value).startswith(_LOCALHOST):
                yield kind, _runtime_name(kind, str(value).removeprefix(_LOCALHOST))


def _runtime_name(kind: ProfileKind, name: str) -> str:
    """Return the profile name that a container runtime uses. A path has the normalized form of the
    kubelet.

    Source: kubernetes, pkg/kubelet/kuberuntime/helpers.go (filepath.Join).
    """
    return posixpath.normpath(name) if KIND_RULES[kind].has_path_names else name


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
