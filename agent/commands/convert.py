"""Converts a seccomp profile for any container runtime into a form that all runtimes read in the
same way.

The input is a profile for Docker, Podman or CRI-O, a SeccompProfile resource (JSON or YAML), or the
config.json of an OCI runtime. Conditions are resolved for one architecture, one kernel version and
one capability set. The command reads only the input file, and does not change the node.
"""

import platform
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from agent.backends.seccomp import fields, inspection, releases, resolve, syntax
from agent.commands import profile_file
from agent.core.finding_codes import FindingCode, Severity
from agent.core.findings import Finding
from agent.sources import yaml_documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The result of a conversion."""

    text: str  # The converted profile; empty if the file could not be converted.
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
    """Convert the profile in the file at a path. Raises OSError.

    Args:
        path: the path of the file; the extension .yaml or .yml marks a YAML file.
        arch: the machine in the form of `uname -m`; if it is empty, this machine.
        kernel: the kernel version; if it is empty, the version of the running kernel.
        capabilities: the capabilities of the pods, or None if they are unknown.
        floor: the value of --runtime-floor.
    """
    with Path(path).open("rb") as file:
        content = file.read(yaml_documents.BYTES + 1)
    profile = profile_file.profile(path, content)
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


def _with_names(profile: bytes, finding: Finding) -> Finding:
    """Return the finding about conditions on capabilities, which names the capabilities in this
    profile.
    """
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
