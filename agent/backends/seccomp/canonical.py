"""The portable form of a profile: expanded for one architecture, and always the same bytes.

Rule 1: only what every runtime understands is left (runtime-spec's LinuxSeccomp); under format
docker also includes.caps and excludes.caps, which CRI-O reads against the bounding set.
Rule 2: rules keep their order: the first unconditional rule for a call wins.
Rule 3: the form is a fixed point: reading it again and writing it gives the same bytes.
"""

import errno
import json
from dataclasses import replace
from typing import Final

from agent.backends.seccomp import anchor
from agent.backends.seccomp.syntax import Document, Only, Rule
from agent.core.findings import Finding

# uname -m -> (runtime-spec's name, Go's name, the 32-bit ABI that the same kernel runs)
MACHINES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64", "SCMP_ARCH_ARM"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le", ""),
    "s390x": ("SCMP_ARCH_S390X", "s390x", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64", ""),
}

# What includes.arches and excludes.arches may name: Go's GOARCH, and what Docker's profile adds.
ARCHES: Final = frozenset(
    {
        *("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mips64n32"),
        *("mipsle", "ppc", "ppc64", "ppc64le", "riscv64", "s390", "s390x", "x32", "x86"),
    }
)

# A call that the rule of a profile without rules can name: it has the same number (449)
# everywhere, and a high one, since runc answers ENOSYS for calls newer than the newest one named.
FILLER: Final = "futex_waitv"


def abis(machine: str) -> tuple[str, ...]:
    """Return the ABIs that a kernel of this machine runs, the native one first."""
    native, _, small = MACHINES[machine]
    x32 = ("SCMP_ARCH_X32",) if native == "SCMP_ARCH_X86_64" else ()
    return (native, *([small] if small else []), *x32)


def errno_number(text: str) -> int | None:
    """Return the number of `ENOSYS` or `38`, as CRI-O reads errno; None if it is neither."""
    if text.isascii() and text.isdecimal() and len(text) <= 4:  # noqa: PLR2004 - digits of 4095
        return int(text)
    for number, name in errno.errorcode.items():
        if name == text:
            return number
    return None


def _applies(rule: Rule, go_name: str) -> bool:
    if rule.includes.arches and go_name not in rule.includes.arches:
        return False
    return go_name not in rule.excludes.arches


def _expanded(rule: Rule) -> Rule:
    """Return the rule without what depends on the machine, and without conditions that always hold.

    libseccomp takes a rule whose only condition has an empty mask for one without conditions.
    """
    always = ("SCMP_CMP_MASKED_EQ", 0, 0)
    return replace(
        rule,
        args=tuple(arg for arg in rule.args if (arg.op, arg.value, arg.value_two) != always),
        includes=Only(caps=rule.includes.caps),
        excludes=Only(caps=rule.excludes.caps),
        errno_ret=rule.errno_ret if not rule.errno else errno_number(rule.errno),
        errno="",
    )


def expand(document: Document, machine: str) -> tuple[Document, tuple[Finding, ...]]:
    """Return the document as this machine means it, with notices of what was done."""
    native, go_name, _ = MACHINES[machine]
    done: list[str] = []
    architectures = document.architectures
    if document.has_arch_map:
        done.append("archMap")
        for architecture, subs in document.arch_map:
            if architecture == native:
                architectures = (architecture, *subs)
    done += [rule.where for rule in document.rules if rule.includes.arches or rule.excludes.arches]
    rules = [_expanded(rule) for rule in document.rules if _applies(rule, go_name)]
    remarks = []
    if done:
        what = f"What depends on the architecture was expanded for {machine} ({len(done)} places)."
        remarks.append(Finding(code="expanded_for_arch", location=done[0], message=what))
    default_errno_ret = document.default_errno_ret
    if document.default_errno:
        default_errno_ret = errno_number(document.default_errno)
    if not rules:
        what = (
            "The profile has no rule, and cri-dockerd ignores such a profile: a rule that equals "
            f"its default was added for {FILLER}."
        )
        remarks.append(Finding(code="rule_added", location="syscalls", message=what))
        rules = [
            Rule(
                where="syscalls[0]",
                names=(FILLER,),
                action=document.default_action,
                errno_ret=default_errno_ret,
            )
        ]
    expanded, added = anchor.anchored(
        replace(
            document,
            default_errno_ret=default_errno_ret,
            default_errno="",
            architectures=tuple(dict.fromkeys(architectures)),
            arch_map=(),
            has_arch_map=False,
            rules=tuple(rules),
        ),
        abis(machine),
    )
    return expanded, (*remarks, *added)


def encode(document: Document) -> bytes:
    """Return the canonical JSON of an expanded document."""
    tree: dict[str, object] = {"defaultAction": document.default_action}
    if document.default_errno_ret is not None:
        tree["defaultErrnoRet"] = document.default_errno_ret
    if document.architectures:
        tree["architectures"] = list(document.architectures)
    if document.flags:
        tree["flags"] = list(document.flags)
    tree["syscalls"] = [_rule(rule) for rule in document.rules]
    return json.dumps(tree, indent=1).encode() + b"\n"


def _rule(rule: Rule) -> dict[str, object]:
    tree: dict[str, object] = {"names": list(rule.names), "action": rule.action}
    if rule.errno_ret is not None:
        tree["errnoRet"] = rule.errno_ret
    if rule.args:
        tree["args"] = [
            {"index": arg.index, "value": arg.value, "op": arg.op}
            | ({"valueTwo": arg.value_two} if arg.value_two else {})
            for arg in rule.args
        ]
    for key, only in (("includes", rule.includes), ("excludes", rule.excludes)):
        if only.caps:
            tree[key] = {"caps": list(only.caps)}
    return tree
