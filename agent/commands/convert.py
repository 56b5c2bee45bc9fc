"""Converts a seccomp profile of any runtime into a form that all runtimes read the same way.

The input is a profile of Docker, Podman or CRI-O, a SeccompProfile resource (JSON or YAML), or
the config.json of an OCI runtime. Conditions are resolved for one architecture, one kernel version
and one capability set. The command reads only the input file, and does not change the node.
"""

import json
import platform
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from agent.backends.seccomp import fields, inspection, releases, resolve, syntax, wrapped
from agent.core.finding_codes import FindingCode, Severity
from agent.core.findings import Finding
from agent.sources import yaml_documents

_YAML = (".yaml", ".yml")
_UINT64_DIGITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The result of a conversion."""

    text: str  # the converted profile, or empty after an error
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """Whether the file could not be converted."""
        return any(finding.severity == Severity.ERROR for finding in self.findings)


def convert(
    path: str,
    *,
    arch: str,
    kernel: str,
    capabilities: Collection[str] | None,
    floor: str = "",
) -> Converted:
    """Convert the file at a path. Raises OSError.

    Args:
        path: the path of the file; the extension .yaml or .yml marks a YAML file.
        arch: the machine in the form of `uname -m`; if it is empty, this machine.
        kernel: the kernel version; if it is empty, the version of the running kernel.
        capabilities: the capabilities of the pods, or None if they are unknown.
        floor: the value of --runtime-floor.
    """
    with Path(path).open("rb") as file:
        content = file.read(yaml_documents.BYTES + 1)
    profile = _profile(path, content)
    if isinstance(profile, Finding):
        return Converted(text="", findings=(profile,))
    options = fields.Options(
        machine=arch or platform.machine(),
        kernel=resolve.kernel(kernel or platform.release()) or (0, 0),
        capabilities=None if capabilities is None else frozenset(capabilities),
        floor=releases.parse(floor),
    )
    checked = inspection.check(profile, options)
    findings = checked.findings
    if capabilities is None and any(
        finding.code == FindingCode.NOT_PORTABLE for finding in findings
    ):
        findings = tuple(_with_names(profile, finding) for finding in findings)
    return Converted(text=checked.body.decode(), findings=findings)


def _profile(path: str, content: bytes) -> bytes | Finding:
    """Return the JSON of the profile in a file, or the reason why the file contains no profile."""
    if path.endswith(_YAML):
        return _from_yaml(content)
    decoded = syntax.decode(content)
    if isinstance(decoded, Finding):
        return decoded
    wrapper = wrapped.find(decoded[0])
    if wrapper is None:
        return content  # The text may contain duplicate keys, which `syntax` reports.
    return _unwrapped(wrapper)


def _unwrapped(wrapper: wrapped.Wrapper) -> bytes | Finding:
    if wrapper.where:
        return json.dumps(wrapper.profile).encode()
    message = f"This is {wrapper.description}, which contains no seccomp profile."
    hint = "Pass a profile, a SeccompProfile resource or the config.json of a container."
    return Finding(code=FindingCode.NOT_A_PROFILE, location="profile", message=message, hint=hint)


def _from_yaml(content: bytes) -> bytes | Finding:
    try:
        documents = [_plain(item) for item in yaml_documents.parse(content) if item is not None]
    except yaml_documents.InvalidYamlError as error:
        message = f"This is not YAML: {' '.join(str(error).split())[:200]}."
        hint = "Correct the YAML."
        return Finding(
            code=FindingCode.NOT_A_PROFILE, location="profile", message=message, hint=hint
        )
    if len(documents) != 1:
        message = f"The file contains {len(documents)} YAML documents instead of a single document."
        hint = "Write the SeccompProfile resource to a file of its own."
        return Finding(
            code=FindingCode.NOT_A_PROFILE, location="profile", message=message, hint=hint
        )
    wrapper = wrapped.find(documents[0])
    return json.dumps(documents[0]).encode() if wrapper is None else _unwrapped(wrapper)


def _plain(value: object) -> object:
    """Return a YAML value with its numbers converted as in JSON."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case yaml_documents.NotAString(text=text):
            is_number = text.isascii() and text.isdecimal() and len(text) <= _UINT64_DIGITS
            return int(text) if is_number else text
        case _:
            return value


def _with_names(profile: bytes, finding: Finding) -> Finding:
    """Return the finding about capabilities, with the capabilities that this profile depends on."""
    document, _ = syntax.read(profile)
    if finding.code != FindingCode.NOT_PORTABLE or document is None:
        return finding
    names = sorted(
        {name for rule in document.rules for name in (*rule.includes.caps, *rule.excludes.caps)}
    )
    if not names:
        return finding
    hint = (
        "State the capabilities of the pods with --caps, for example --caps CAP_CHOWN,CAP_SETUID, "
        f"or --caps '' for none. The profile depends on {', '.join(names)}."
    )
    return replace(finding, hint=hint)
