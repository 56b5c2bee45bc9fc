"""Checks each value of a profile separately, before conditions on the node are resolved.

A value is rejected if containerd, CRI-O, cri-dockerd, runc or crun rejects it, hangs, crashes, or
enforces less than the profile states. The checks cover the whole profile, so that one run reports
all errors. The module `comparisons` compares rules with each other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from agent.backends.seccomp import releases, resolve, syntax, syscalls
from agent.backends.seccomp.document import (
    PERMISSIVE,
    STRICTNESS,
    WITH_ERRNO,
    Condition,
    Document,
    Only,
    Rule,
)
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

_NOTIFY: Final = "SCMP_ACT_NOTIFY"
_HANGS: Final = frozenset({"SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD"})
_OPS: Final = frozenset(
    f"SCMP_CMP_{op}" for op in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
)
_BIG_ENDIAN: Final = frozenset(
    f"SCMP_ARCH_{name}" for name in ("MIPS", "MIPS64", "MIPS64N32", "PPC", "PPC64", "S390", "S390X")
)
_LITTLE_ENDIAN: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in (
        *("X86", "X86_64", "X32", "ARM", "AARCH64", "MIPSEL", "MIPSEL64", "MIPSEL64N32"),
        "PPC64LE",
    )
)
_NEWER_ARCHITECTURES: Final = frozenset({"SCMP_ARCH_RISCV64", "SCMP_ARCH_LOONGARCH64"})
_FLAGS: Final = frozenset(releases.RUNC_FLAGS)
_OF_NOTIFY: Final = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
_CAPABILITY: Final = re.compile(r"CAP_[A-Z][A-Z_]*")
_MOST_ARGS: Final = 6
_NEVER: Final = frozenset({("SCMP_CMP_LT", 0), ("SCMP_CMP_GT", 2**64 - 1)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options and the properties of the node that affect a check."""

    format: Literal["oci", "docker"] = "oci"
    allow_unknown_syscalls: bool = False
    machine: str = "x86_64"
    kernel: resolve.Kernel = (0, 0)  # The node ignores rules for newer kernels.
    # The capabilities of the pods, or None if they are unknown.
    capabilities: frozenset[str] | None = None
    floor: releases.RuntimeFloor = releases.LOWEST  # The oldest releases on the nodes.

    @property
    def node(self) -> resolve.Node:
        """The properties of the node on which conditions in a profile depend."""
        return resolve.Node(
            machine=self.machine, kernel=self.kernel, capabilities=self.capabilities
        )


def findings(document: Document, options: Options) -> Iterator[Finding]:
    """Return the errors and warnings about single values of a document."""
    yield from _notify(document)
    yield from _defaults(document)
    yield from _flags(document, options)
    yield from _architectures(document, options)
    for rule in document.rules:
        if rule.action:
            yield from _known_action(rule.action, f"{rule.where}.action")
        yield from _errno(rule)
        yield from _arguments(rule)
        yield from _only(rule.includes, f"{rule.where}.includes")
        yield from _only(rule.excludes, f"{rule.where}.excludes")
    yield from _names(document, options)
    if options.format == "oci" and options.capabilities is None:
        yield from _capabilities(document)


def _bad(where: str, message: str, hint: str) -> Finding:
    return Finding(code=FindingCode.BAD_VALUE, location=where, message=message, hint=hint)


def _known_action(action: str, where: str) -> Iterator[Finding]:
    if action not in STRICTNESS and action != _NOTIFY:
        hint = syscalls.nearest(action.upper(), frozenset(STRICTNESS))
        message = f"{ascii(action)[:60]} is not a seccomp action."
        yield _bad(where, message, hint or "Use SCMP_ACT_ERRNO or SCMP_ACT_ALLOW, for example.")


def _notify(document: Document) -> Iterator[Finding]:
    """Reject SCMP_ACT_NOTIFY, with one error for all of its uses in the profile."""
    places = ["defaultAction"] if document.default_action == _NOTIFY else []
    places += [f"{rule.where}.action" for rule in document.rules if rule.action == _NOTIFY]
    if places:
        yield Finding(
            code=FindingCode.NOTIFY_REFUSED,
            location=places[0],
            message=f"{_NOTIFY} needs a listener on the node at every start of a container, and "
            "this agent does not install or supervise listeners.",
            hint="Replace the action by SCMP_ACT_ERRNO to deny the calls, or by SCMP_ACT_LOG to "
            "log them, and remove listenerPath, listenerMetadata and flags. Otherwise install "
            "the profile with the tool that runs the listener.",
        )


def _defaults(document: Document) -> Iterator[Finding]:
    action = document.default_action
    if action:
        yield from _known_action(action, "defaultAction")
    if action in _HANGS:
        message = f"With {action} as default, only one thread of runc ends, and the start hangs."
        hint = "Use SCMP_ACT_KILL_PROCESS."
        yield Finding(
            code=FindingCode.RUNTIME_HANG, location="defaultAction", message=message, hint=hint
        )
    default = Rule(
        where="",
        names=(),
        action=action,
        errno_ret=document.default_errno_ret,
        errno=document.default_errno,
    )
    yield from _errno(default)


def _flags(document: Document, options: Options) -> Iterator[Finding]:
    has_notify = any(rule.action == _NOTIFY for rule in document.rules)
    flags = [flag for flag in document.flags if not (has_notify and flag == _OF_NOTIFY)]
    newest = max((releases.RUNC_FLAGS.get(flag, (0,)) for flag in flags), default=(0,))
    if options.format == "oci" and options.floor.runc < newest:
        release = releases.shown(newest)
        yield Finding(
            code=FindingCode.NOT_PORTABLE,
            location="flags",
            message=f"runc before {release} rejects every profile that has flags.",
            hint="Remove flags. If no node has an older runc, pass "
            f"--runtime-floor runc={release}.",
        )
        return
    for index, flag in enumerate(document.flags):
        if flag in flags and flag not in _FLAGS:
            hint = syscalls.nearest(flag, _FLAGS) or "Remove the flag."
            yield _bad(f"flags[{index}]", f"{ascii(flag)[:60]} is not an accepted flag.", hint)


def _architectures(document: Document, options: Options) -> Iterator[Finding]:
    known = _BIG_ENDIAN | _LITTLE_ENDIAN
    if options.machine == "riscv64":
        # Releases of runc before 2023 do not know this architecture.
        known |= {"SCMP_ARCH_RISCV64"}
    if document.architectures and document.has_arch_map:
        message = "The profile has both architectures and archMap, which CRI-O rejects."
        yield _bad("archMap", message, "Remove architectures or archMap.")
    unknown = False
    for index, name in enumerate(document.architectures):
        if name not in known:
            unknown = True
            message = f"{ascii(name)[:60]} is not an architecture that every runtime knows."
            hint = syscalls.nearest(name, known) or "Remove it."
            yield _bad(f"architectures[{index}]", message, hint)
    for index, (name, subs) in enumerate(document.arch_map):
        for architecture in (name, *subs):
            if architecture not in known | _NEWER_ARCHITECTURES:
                message = f"{ascii(architecture)[:60]} is not a known architecture."
                hint = syscalls.nearest(architecture, known) or "Remove the entry."
                yield _bad(f"archMap[{index}]", message, hint)
    native = resolve.MACHINES[options.machine][0]
    listed = frozenset((*document.architectures, native))
    if not unknown and listed & _BIG_ENDIAN and listed - _BIG_ENDIAN:
        yield _bad(
            "architectures",
            "The list mixes byte orders, which libseccomp rejects. A filter is for one node, and "
            f"this node's architecture is {native}.",
            "Replace architectures by archMap, with one entry for each native architecture; the "
            "agent uses the entry of its node.",
        )


def _errno(rule: Rule) -> Iterator[Finding]:
    number, name = ("errnoRet", "errno") if rule.where else ("defaultErrnoRet", "defaultErrno")
    prefix = f"{rule.where}." if rule.where else ""
    value = rule.errno_ret
    if rule.errno:
        parsed = resolve.errno_number(rule.errno)
        if parsed is None or parsed > syntax.MOST_ERRNO:
            message = f"{ascii(rule.errno)[:60]} is not an error number that Linux has."
            yield _bad(f"{prefix}{name}", message, f"Use {number} with a number.")
        elif value not in (None, parsed):
            message = f"{name} is {parsed}, and {number} is {value}."
            yield _bad(f"{prefix}{name}", message, f"Remove {name}, or make both equal.")
        value = parsed if value is None else value
    if value is None:
        return
    if rule.action in STRICTNESS and rule.action not in WITH_ERRNO:
        field = number if rule.errno_ret is not None else name
        message = f"{field} has no meaning with {rule.action}, and crun rejects it."
        yield _bad(f"{prefix}{field}", message, f"Remove {field}.")
    elif value == 0 and rule.action == "SCMP_ACT_ERRNO":
        message = "With error number 0 the kernel skips the call and reports success."
        hint = f"Remove {number} for EPERM, or use 38 for ENOSYS."
        yield Finding(
            code=FindingCode.CONDITION_SURPRISING,
            location=f"{prefix}{number}",
            message=message,
            hint=hint,
        )


def _arguments(rule: Rule) -> Iterator[Finding]:
    where = f"{rule.where}.args"
    if len(rule.args) > _MOST_ARGS:
        message = "A system call has at most 6 arguments; runc and crun read more differently."
        yield _bad(where, message, "Use at most one condition for each argument.")
        return
    indices = set()
    for number, arg in enumerate(rule.args):
        place = f"{where}[{number}]"
        if arg.index in indices:
            message = (
                "runc applies the rule if either of two conditions on an argument holds; crun "
            )
            message += "needs both."
            hint = "Write a rule for each condition if either is enough, or use SCMP_CMP_MASKED_EQ."
            yield Finding(
                code=FindingCode.FAILS_OPEN, location=f"{place}.index", message=message, hint=hint
            )
        indices.add(arg.index)
        yield from _operator(arg, place)


def _operator(arg: Condition, place: str) -> Iterator[Finding]:
    if arg.op and arg.op not in _OPS:
        hint = syscalls.nearest(arg.op.upper(), _OPS) or "Use SCMP_CMP_EQ, for example."
        yield _bad(f"{place}.op", f"{ascii(arg.op)[:60]} is not an operator.", hint)
        return
    if arg.value_two and arg.op in _OPS and arg.op != "SCMP_CMP_MASKED_EQ":
        message = f"{arg.op} ignores valueTwo; only SCMP_CMP_MASKED_EQ uses it."
        yield Finding(
            code=FindingCode.CONDITION_SURPRISING,
            location=f"{place}.valueTwo",
            message=message,
            hint="Remove valueTwo.",
        )
    if (arg.op, arg.value) in _NEVER:
        message = f"{arg.op} {arg.value} never holds, so the rule has no effect."
        hint = "Correct the value, or remove the rule."
        yield Finding(
            code=FindingCode.FAILS_OPEN, location=f"{place}.value", message=message, hint=hint
        )
    if arg.op == "SCMP_CMP_MASKED_EQ" and arg.value_two & ~arg.value:
        message = "The comparison never holds: valueTwo has bits that the mask in value lacks."
        hint = f"The mask would have to be {arg.value | arg.value_two} or larger."
        yield Finding(
            code=FindingCode.FAILS_OPEN, location=f"{place}.valueTwo", message=message, hint=hint
        )


def _only(only: Only, where: str) -> Iterator[Finding]:
    for index, name in enumerate(only.arches):
        if name not in resolve.ARCHES:
            hint = syscalls.nearest(name, resolve.ARCHES) or "Use a name such as amd64 or arm64."
            message = f"{ascii(name)[:60]} is not an architecture as Go names it."
            yield _bad(f"{where}.arches[{index}]", message, hint)
    if only.min_kernel and resolve.minimum(only.min_kernel) is None:
        message = f"{ascii(only.min_kernel)[:60]} is not a kernel version."
        yield _bad(f"{where}.minKernel", message, "Use two numbers, for example 4.8.")
    for index, name in enumerate(only.caps):
        if not _CAPABILITY.fullmatch(name):
            message = f"{ascii(name)[:60]} is not a capability."
            yield _bad(f"{where}.caps[{index}]", message, "Use a name such as CAP_SYS_ADMIN.")


def _capabilities(document: Document) -> Iterator[Finding]:
    """Reject all conditions on capabilities with one error, which contains the command that
    resolves them.
    """
    rules = [rule for rule in document.rules if rule.depends_on_capabilities]
    if not rules:
        return
    side = "includes" if rules[0].includes.caps else "excludes"
    count = "1 rule depends" if len(rules) == 1 else f"{len(rules)} rules depend"
    yield Finding(
        code=FindingCode.NOT_PORTABLE,
        location=f"{rules[0].where}.{side}.caps",
        message=f"{count} on the pod's capabilities. containerd ignores that, and applies such a "
        "rule to every container.",
        hint="Run `profile-loader convert FILE --caps CAP_A,CAP_B` with the capabilities of the "
        "pods that use the profile, and install its output. On nodes that run only CRI-O, "
        "--seccomp-format docker accepts the profile as is.",
    )


def _names(document: Document, options: Options) -> Iterator[Finding]:
    """Report names of system calls that a node may not know; a single finding contains all
    warnings.
    """
    may_open = document.default_action in PERMISSIVE and not options.allow_unknown_syscalls
    ignored: dict[str, str] = {}
    for rule in document.rules:
        where = f"{rule.where}.names"
        for name in rule.names:
            if syscalls.known(name, options.floor):
                continue
            if may_open and name not in syscalls.INERT:
                yield _unknown_name(name, where, options.floor)
            else:
                ignored.setdefault(name, where)
    if ignored:
        names = sorted(ignored)
        newer = [name for name in names if releases.since(name)]
        hint = "Correct the names, or remove them."
        if newer:
            newest = max(newer, key=lambda name: releases.INTRODUCED[name].libseccomp)
            hint = (
                f"{releases.since(newest)} If no node has an older libseccomp, pass "
                f"{releases.floor_hint(newest)}."
            )
        yield Finding(
            code=FindingCode.SYSCALL_IGNORED,
            location=next(iter(ignored.values())),
            message=f"libseccomp {releases.shown(options.floor.libseccomp)} does not know "
            f"{syscalls.listed(names)}, and runtimes with it ignore these names.",
            hint=hint,
        )


def _unknown_name(name: str, where: str, floor: releases.RuntimeFloor) -> Finding:
    """Return the error about a name that a node may not know, if the default action allows system
    calls.
    """
    message = (
        f"libseccomp {releases.shown(floor.libseccomp)} does not know {name[:60]}, and the call "
        "would stay allowed."
    )
    if fact := releases.since(name):
        hint = (
            f"{fact} If no node has an older libseccomp, state a newer floor: "
            f"{releases.floor_hint(name)}. Otherwise, this call is denied on all nodes only if the "
            "default action denies it."
        )
    elif syscalls.exists(name):
        hint = (
            "Linux has the call only on architectures that the agent does not support. Remove it."
        )
    else:
        hint = syscalls.nearest(name, syscalls.KNOWN)
        hint = hint or "Correct the name, or remove it; --allow-unknown-syscalls accepts it."
    return Finding(code=FindingCode.UNKNOWN_SYSCALL, location=where, message=message, hint=hint)
