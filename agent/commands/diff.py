"""Compares two seccomp profiles, or a profile with the default profile of a container runtime.

The conditions in the profiles are resolved for one architecture, one kernel version and one
capability set. The command reads only the two files, and nothing else on the node.
"""

import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.backends.seccomp import baseline, decoding, difference, meaning, resolve, syntax
from agent.backends.seccomp.difference import Difference, Direction
from agent.backends.seccomp.document import Answer, Document
from agent.commands import profile_file
from agent.core.finding_codes import Severity
from agent.core.findings import Finding

BASELINES: Final = {
    "runtime-default": baseline.NAMES,
    "containerd": ("containerd",),
    "cri-o": ("cri-o",),
}
_HEADINGS: Final = {
    Direction.MORE_PERMISSIVE: "More permissive",
    Direction.MORE_RESTRICTIVE: "More restrictive",
    Direction.OTHER_ERROR: "Denied differently",
}


class NotAProfileError(ValueError):
    """Raised if a file does not contain a profile that can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The differences between two profiles."""

    differences: tuple[Difference, ...]

    @property
    def is_more_permissive(self) -> bool:
        """Whether the second profile allows a call that the first profile denies."""
        return any(
            difference.direction is Direction.MORE_PERMISSIVE for difference in self.differences
        )


def diff(
    first: str | Document,
    second: str,
    *,
    arch: str,
    kernel: str,
    capabilities: Collection[str] | None,
) -> Compared:
    """Compare two profiles. Raises OSError or NotAProfileError.

    Args:
        first: the path of a file, or a Document with the default profile of a runtime.
        second: the path of a file.
        arch: the machine in the form of `uname -m`; if it is empty, this machine.
        kernel: the kernel version; if it is empty, the version of the running kernel.
        capabilities: the capabilities of the pods, or None for the default capabilities of
            containers.
    """
    node = resolve.Node(
        machine=arch or platform.machine(),
        kernel=resolve.kernel(kernel or platform.release()) or (0, 0),
        capabilities=baseline.CAPABILITIES if capabilities is None else frozenset(capabilities),
    )
    before = first if isinstance(first, Document) else _read(first)
    meanings = [
        meaning.of(resolve.resolve(document, node).document, resolve.abis(node.machine))
        for document in (before, _read(second))
    ]
    return Compared(differences=tuple(difference.differences(*meanings)))


def _read(path: str) -> Document:
    with Path(path).open("rb") as file:
        content = file.read(decoding.MOST_BYTES + 1)
    profile = profile_file.profile(path, content)
    if isinstance(profile, Finding):
        raise NotAProfileError(f"{path}: {profile.message} {profile.hint}".rstrip())
    document, findings = syntax.read(profile)
    errors = [finding for finding in findings if finding.severity == Severity.ERROR]
    if document is None or errors:
        raise NotAProfileError(f"{path}: {errors[0].message} {errors[0].hint}".rstrip())
    return document


def with_baseline(
    name: str, path: str, *, arch: str, kernel: str, capabilities: Collection[str] | None
) -> dict[str, Compared]:
    """Compare a profile with the default profile of each runtime. The keys of the result are the
    names of the runtimes.
    """
    return {
        runtime: diff(
            baseline.document(runtime), path, arch=arch, kernel=kernel, capabilities=capabilities
        )
        for runtime in BASELINES[name]
    }


def table(comparisons: Mapping[str, Compared]) -> str:
    """Return the differences as text. The keys are the names of runtimes; if two files are
    compared, the only key is "".
    """
    return "\n".join(_section(*item) for item in comparisons.items())


def _section(runtime: str, compared: Compared) -> str:
    lines = [f"Compared with the default profile of {runtime}", ""] if runtime else []
    if not compared.differences:
        lines += ["The profiles have the same meaning.", ""]
    for direction, heading in _HEADINGS.items():
        rows = [item for item in compared.differences if item.direction == direction]
        if rows:
            lines += [f"{heading}:", *map(_row, rows), ""]
    return "\n".join(lines)


def _row(difference: Difference) -> str:
    abi = difference.abi.removeprefix("SCMP_ARCH_").lower()
    where = f" where {difference.arguments}" if difference.arguments else ""
    change = f"{_shown(difference.before)} -> {_shown(difference.after)}"
    return f"  {abi}  {difference.call}: {change}{where}"


def _shown(answer: Answer) -> str:
    action = answer.action.removeprefix("SCMP_ACT_")
    return f"{action}({answer.errno})" if answer.errno else action


def as_json(comparisons: Mapping[str, Compared]) -> str:
    """Return the differences as JSON. The keys are the names of runtimes; if two files are
    compared, the only key is "".
    """
    tree = [
        {"baseline": runtime, "differences": [_object(item) for item in compared.differences]}
        for runtime, compared in comparisons.items()
    ]
    return json.dumps({"comparisons": tree}, indent=1) + "\n"


def _object(difference: Difference) -> dict[str, str]:
    return {
        "architecture": difference.abi,
        "syscall": difference.call,
        "direction": str(difference.direction),
        "arguments": difference.arguments,
        "before": _shown(difference.before),
        "after": _shown(difference.after),
    }
