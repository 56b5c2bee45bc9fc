"""Recognises files that contain a seccomp profile in another format, and extracts the profile.

A SeccompProfile resource of the Security Profiles Operator contains the profile in `spec`, and the
config.json of an OCI runtime contains it in `linux.seccomp`. A runtime would read such a file as a
profile without a default action, and would run the container unconfined.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.backends.seccomp.document import FIELDS
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

Json = object
# This pattern matches the first line of a Kubernetes resource or of a profile in YAML.
_YAML: Final = re.compile(
    r"(?:[ \t]*(?:#[^\n]*|---[^\n]*)?\r?\n)*+(?:apiVersion|kind|metadata|defaultAction):[ \t]"
)
PairsHook = Callable[[list[tuple[str, Json]]], dict[str, Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A known file format that can contain a seccomp profile."""

    description: str
    where: str  # The path of the profile in the file, or empty if the file has no profile.
    profile: Json = None
    base: str = ""  # The profile that a SeccompProfile resource extends.


# The fields that a SeccompProfile resource has in addition to those of a profile.
_OF_RESOURCE: Final = frozenset({"baseProfileName", "disabled"})
_FIELDS: Final = frozenset(field.casefold() for field in FIELDS)


def find(tree: Json) -> Wrapper | None:
    """Return the known format of a file, or None for a plain profile and for unknown JSON."""
    if not isinstance(tree, dict) or "defaultAction" in tree:
        return None
    if isinstance(tree.get("kind"), str) and isinstance(tree.get("apiVersion"), str):
        return _resource(tree)
    linux = tree.get("linux")
    if isinstance(tree.get("ociVersion"), str):
        seccomp = linux.get("seccomp") if isinstance(linux, dict) else None
        where = "linux.seccomp" if isinstance(seccomp, dict) else ""
        return Wrapper(
            description="the config.json of an OCI runtime", where=where, profile=seccomp
        )
    if isinstance(tree.get("hook"), dict):
        return Wrapper(description="the description of an OCI hook", where="")
    if tree and _FIELDS.isdisjoint(key.casefold() for key in tree):
        return Wrapper(description="a JSON object of an unknown format", where="")
    return None


def _resource(tree: Mapping[str, Json]) -> Wrapper:
    """Return the format of a Kubernetes resource."""
    kind, spec = tree["kind"], tree.get("spec")
    if kind == "SeccompProfile" and isinstance(spec, dict):
        return Wrapper(
            description="a SeccompProfile resource",
            where="spec",
            profile={key: value for key, value in spec.items() if key not in _OF_RESOURCE},
            base=str(spec.get("baseProfileName") or ""),
        )
    return Wrapper(
        description=f"a Kubernetes resource of the kind {ascii(kind)[1:-1][:40]}", where=""
    )


def is_yaml(text: str) -> bool:
    """Return whether a text begins like a Kubernetes resource or a profile in YAML."""
    return _YAML.match(text) is not None


def yaml_hint(text: str) -> str:
    """Return a hint for a text that is YAML; empty for any other text."""
    if not is_yaml(text):
        return ""
    return "The text looks like YAML. Run `profile-loader convert FILE` to get the profile in JSON."


def finding(tree: Json) -> Finding | None:
    """Return the finding for a file in a known format other than a plain profile, or None for other
    files.
    """
    wrapper = find(tree)
    if wrapper is None:
        return None
    if wrapper.where:
        message = (
            f"This is {wrapper.description}; the seccomp profile inside it is at "
            f"{wrapper.where}. A runtime would run the container unconfined."
        )
        hint = "Run `profile-loader convert FILE` to get the profile."
    else:
        message = f"This is {wrapper.description}, and not a seccomp profile."
        hint = "Move it to a file or key that is not read as a profile."
    return Finding(
        code=FindingCode.NOT_A_PROFILE,
        location=wrapper.where or "profile",
        message=message,
        hint=hint,
    )
