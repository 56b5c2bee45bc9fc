"""Defines how the profiles of each kind are recognised in sources and in pods.

A new profile kind needs a row in this table. The backends define all other differences between
kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.core.model import ProfileKind


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRules:
    """The file names and the fields of pods that belong to one profile kind."""

    extensions: tuple[str, ...]
    """The file name extensions of profiles."""

    first_characters: tuple[bytes, ...]
    """The first characters of profiles without a known extension. The tuple is empty for the kind
    of all other content.
    """

    pod_field: str
    """The field of a security context that references a profile."""

    annotations: tuple[str, ...]
    """The beginnings of annotations with which older API servers reference a profile."""

    has_path_names: bool
    """Whether the name of a profile is a path, which the kubelet normalizes."""


KIND_RULES: Final[Mapping[ProfileKind, KindRules]] = {
    "apparmor": KindRules(
        extensions=(".profile", ".apparmor", ".aa"),
        first_characters=(),
        pod_field="appArmorProfile",
        annotations=("container.apparmor.security.beta.kubernetes.io/",),
        has_path_names=False,
    ),
    "seccomp": KindRules(
        extensions=(".json",),
        first_characters=(b"{", b"["),
        pod_field="seccompProfile",
        annotations=(
            "container.seccomp.security.alpha.kubernetes.io/",
            "seccomp.security.alpha.kubernetes.io/pod",
        ),
        has_path_names=True,
    ),
}
