"""Resolves the conditions of a profile that depend on the node, and normalises its fields.

containerd ignores archMap, includes, excludes and the names of error numbers. Conditions on
architectures and kernel versions depend only on the node, so this module resolves them, and returns
one notice for each type of condition. Conditions on capabilities depend on the pod, and stay in the
profile unless the caller passes a capability set. The module `canonical` writes the resolved
profile, and `meaning` interprets it.
"""

import errno
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp.document import Answer, Document, Only, Rule, answer
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

# Maps the machine name of `uname -m` to the name in the runtime-spec, the name in Go, and the
# 32-bit ABI that the same kernel runs.
MACHINES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64", "SCMP_ARCH_ARM"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le", ""),
    "s390x": ("SCMP_ARCH_S390X", "s390x", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64", ""),
}

# The fields includes.arches and excludes.arches may contain these names: Go's GOARCH, the names of
# libseccomp, and further names from Docker's profile.
ARCHES: Final = frozenset(
    {
        *("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mips64n32"),
        *("mipsle", "mipsel", "mips3l64n32", "mipsel64", "mipsel64n32", "mips64p32", "mips64p32le"),
        *("parisc", "parisc64", "sparc64", "s390", "s390x", "x32", "x86"),
        *("ppc", "ppc64", "ppc64le", "riscv64"),
    }
)
_KERNEL: Final = re.compile(r"(\d{1,4})\.(\d{1,4})")

_PATCH: Final = 2  # The number of dots in a version with a patch level.

Kernel = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The properties of a node and a pod on which conditions in a profile depend."""

    machine: str  # The machine name in the form of `uname -m`.
    kernel: Kernel
    # The capabilities of a pod, or None if they are unknown.
    capabilities: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A profile without conditions on the node, and the notices about the changes."""

    document: Document
    notices: tuple[Finding, ...]
    depends_on_kernel: bool


def kernel(text: str) -> Kernel | None:
    """Return the kernel version in a text such as `6.1` or `6.1.0-44-amd64`, or None."""
    match = _KERNEL.match(text)
    return (int(match[1]), int(match[2])) if match else None


def minimum(text: str) -> Kernel | None:
    """Return the version in minKernel, or None if Docker would not accept the text."""
    match = _KERNEL.fullmatch(text.removesuffix(".0") if text.count(".") == _PATCH else text)
    return (int(match[1]), int(match[2])) if match else None


def errno_number(text: str) -> int | None:
    """Return the error number that CRI-O reads from a name such as `ENOSYS` or from digits such as
    `38`, or None for any other text.
    """
    if text.isascii() and text.isdecimal() and len(text) <= len("4095"):
        return int(text)
    number = getattr(errno, text, None) if re.fullmatch(r"E[A-Z0-9]+", text) else None
    return number if isinstance(number, int) else None


def abis(machine: str) -> tuple[str, ...]:
    """Return the ABIs that a kernel for this machine supports, with the native ABI first."""
    native, _, small = MACHINES[machine]
    x32 = ("SCMP_ARCH_X32",) if native == "SCMP_ARCH_X86_64" else ()
    return (native, *([small] if small else []), *x32)


def applies(rule: Rule, node: Node) -> bool:
    """Return whether a rule applies on the node, as Docker decides it."""
    go_name = MACHINES[node.machine][1]
    included, excluded = rule.includes, rule.excludes
    if included.arches and go_name not in included.arches:
        return False
    if go_name in excluded.arches:
        return False
    needed, limit = minimum(included.min_kernel), minimum(excluded.min_kernel)
    if needed is not None and node.kernel < needed:
        return False
    if limit is not None and node.kernel >= limit:
        return False
    return node.capabilities is None or rule.applies_with(node.capabilities)


def resolve(document: Document, node: Node) -> Resolved:
    """Resolve the document for the node, and return the new document with notices about the
    changes.
    """
    native = MACHINES[node.machine][0]
    architectures = document.architectures
    for architecture, subs in document.arch_map:
        if architecture == native:
            architectures = (architecture, *subs)
    default_errno_ret = document.default_errno_ret
    if document.default_errno:
        default_errno_ret = errno_number(document.default_errno)
    rules = [_plain(rule) for rule in document.rules if applies(rule, node)]
    if node.capabilities is not None:
        decisive = _first_ones(rules, answer(document.default_action, default_errno_ret))
        rules = [replace(rule, includes=Only(), excludes=Only()) for rule in decisive]
    resolved = replace(
        document,
        default_errno_ret=default_errno_ret,
        default_errno="",
        architectures=tuple(dict.fromkeys(architectures)),
        arch_map=(),
        has_arch_map=False,
        rules=tuple(rules),
    )
    return Resolved(
        document=resolved,
        notices=_notices(document, node),
        depends_on_kernel=bool(_by_kernel(document.rules)),
    )


def _first_ones(rules: Collection[Rule], default: Answer) -> list[Rule]:
    """Return the rules without the system calls for which an earlier rule has priority.

    Every runtime applies the first rule without conditions of a system call. For example, a rule of
    Podman's default profile allows a system call for all pods, and a later rule denies the call for
    some pods.
    """
    decided: dict[str, Rule] = {}
    remaining = []
    for rule in rules:
        if rule.args or rule.answer == default:
            remaining.append(rule)
            continue
        names = []
        for name in rule.names:
            first = decided.setdefault(name, rule)
            depends = first.depends_on_capabilities or rule.depends_on_capabilities
            if first.answer == rule.answer or not depends:
                names.append(name)
        if names:
            remaining.append(replace(rule, names=tuple(names)))
    return remaining


def _plain(rule: Rule) -> Rule:
    """Return a copy of the rule without conditions on the node and without comparisons that are
    always true.

    If the mask of the only condition in a rule is 0, libseccomp treats the rule as a rule without
    conditions.
    """
    always = ("SCMP_CMP_MASKED_EQ", 0, 0)
    return replace(
        rule,
        args=tuple(arg for arg in rule.args if (arg.op, arg.value, arg.value_two) != always),
        includes=Only(caps=rule.includes.caps),
        excludes=Only(caps=rule.excludes.caps),
        errno_ret=errno_number(rule.errno) if rule.errno else rule.errno_ret,
        errno="",
    )


def _by_kernel(rules: Collection[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.includes.min_kernel or rule.excludes.min_kernel]


def _notices(document: Document, node: Node) -> tuple[Finding, ...]:
    by_arch = ["archMap"] if document.has_arch_map else []
    by_arch += [
        rule.where for rule in document.rules if rule.includes.arches or rule.excludes.arches
    ]
    by_errno = ["defaultErrno"] if document.default_errno else []
    by_errno += [f"{rule.where}.errno" for rule in document.rules if rule.errno]
    notices = []
    if by_arch:
        message = f"{_count(by_arch, 'condition')} on the architecture resolved for {node.machine}."
        notices.append(
            Finding(code=FindingCode.EXPANDED_FOR_ARCH, location=by_arch[0], message=message)
        )
    if by_kernel := _by_kernel(document.rules):
        version = ".".join(map(str, node.kernel))
        omitted = [rule for rule in by_kernel if not applies(rule, node)]
        message = (
            f"{_count(by_kernel, 'condition')} on the kernel resolved for Linux {version}; "
            f"{_count(omitted, 'of these rules does', 'of these rules do')} not apply "
            "there. containerd and CRI-O ignore minKernel."
        )
        notices.append(
            Finding(
                code=FindingCode.EXPANDED_FOR_KERNEL, location=by_kernel[0].where, message=message
            )
        )
    if by_errno:
        message = (
            f"{_count(by_errno, 'name')} of error numbers rewritten as errnoRet or "
            "defaultErrnoRet, because only CRI-O reads names."
        )
        notices.append(
            Finding(code=FindingCode.ERRNO_REWRITTEN, location=by_errno[0], message=message)
        )
    if node.capabilities is not None and any(r.depends_on_capabilities for r in document.rules):
        conditional = [rule for rule in document.rules if rule.depends_on_capabilities]
        omitted = [rule for rule in conditional if not rule.applies_with(node.capabilities)]
        names = ", ".join(sorted(node.capabilities)) or "no capability"
        message = (
            f"{_count(conditional, 'condition')} on capabilities resolved for {names}; "
            f"{_count(omitted, 'rule was', 'rules were')} omitted."
        )
        notices.append(
            Finding(
                code=FindingCode.EXPANDED_FOR_CAPS, location=conditional[0].where, message=message
            )
        )
    return tuple(notices)


def _count(items: Collection[object], word: str, plural: str = "") -> str:
    return f"{len(items)} {word if len(items) == 1 else plural or f'{word}s'}"
