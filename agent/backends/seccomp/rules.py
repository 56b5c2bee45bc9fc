"""What a well-formed profile may not say, and what deserves a warning.

Rule 1: nothing that any of containerd, CRI-O, cri-dockerd, runc and crun would run weaker than
it reads, hang on or crash on is accepted. Rule 2: what all of them refuse is refused here first.
Rule 3: every check looks at the whole profile; nothing stops at the first mistake.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agent.backends.seccomp import anchor, canonical, conditions, multiplex, syscalls
from agent.backends.seccomp.syntax import STRICTNESS, Document, Only, Rule, answer
from agent.core.findings import Finding

_LETS_THROUGH: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"})
_WITH_ERRNO: Final = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})
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
_FLAGS: Final = frozenset(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW"))
_CAPABILITY: Final = re.compile(r"CAP_[A-Z][A-Z_]*")
_MOST_ARGS: Final = 6
# BPF_MAXINSNS of linux/bpf_common.h, less what runc's own stub takes
_MOST_INSTRUCTIONS: Final = 4096 - 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator decided."""

    format: Literal["oci", "docker"] = "oci"
    allow_unknown_syscalls: bool = False
    machine: str = "x86_64"


_NEVER: Final = frozenset({("SCMP_CMP_LT", 0), ("SCMP_CMP_GT", 2**64 - 1)})


def written(document: Document, options: Options) -> Iterator[Finding]:
    """Look at the document as written, before anything is expanded away."""
    yield from _defaults(document, options)
    yield from _architectures(document, options)
    for rule in document.rules:
        yield from _action(rule)
        yield from _errno(rule, options)
        yield from _arguments(rule)
        yield from _only(rule.includes, f"{rule.where}.includes", options)
        yield from _only(rule.excludes, f"{rule.where}.excludes", options)
        yield from _names(rule, document.default_action, options)


def expanded(document: Document, options: Options) -> Iterator[Finding]:
    """Look at the document as it will be written for this machine.

    In one that is too large rules are not compared with each other: that takes the square of them.
    """
    large = tuple(_size(document))
    yield from large
    if not large:
        yield from _conflicts(document)
        yield from _overlaps(document)
        native = canonical.MACHINES[options.machine][0]
        yield from multiplex.findings(document, native)
        yield from anchor.findings(document, canonical.abis(options.machine))
        yield from conditions.findings(document, native)
    yield from _warnings(document, options)


# --- as written ----------------------------------------------------------------------------------


def _bad(where: str, what: str, hint: str = "") -> Finding:
    return Finding(code="bad_value", location=where, message=what, hint=hint)


def _known_action(action: str, where: str) -> Iterator[Finding]:
    if action == "SCMP_ACT_NOTIFY":
        what = "SCMP_ACT_NOTIFY needs a listener; without one containers do not start."
        yield Finding(code="notify_refused", location=where, message=what)
    elif action not in STRICTNESS:
        hint = syscalls.nearest(action.upper(), frozenset(STRICTNESS))
        yield _bad(where, f"{ascii(action)[:60]} is no seccomp action.", hint)


def _defaults(document: Document, options: Options) -> Iterator[Finding]:
    action = document.default_action
    if action:
        yield from _known_action(action, "defaultAction")
    if action in _HANGS:
        what = f"With {action} as default only one thread of runc dies: the start hangs for good."
        hint = "Use SCMP_ACT_KILL_PROCESS."
        yield Finding(code="runtime_hang", location="defaultAction", message=what, hint=hint)
    default = Rule(
        where="",
        names=(),
        action=action,
        errno_ret=document.default_errno_ret,
        errno=document.default_errno,
    )
    yield from _errno(default, options)
    if document.flags and options.format == "oci":
        what = "runc before 1.2 refuses every profile that has flags."
        yield Finding(code="not_portable", location="flags", message=what)
    for index, flag in enumerate(document.flags):
        if flag not in _FLAGS:
            hint = syscalls.nearest(flag, _FLAGS)
            yield _bad(f"flags[{index}]", f"{ascii(flag)[:60]} is no accepted flag.", hint)


def _architectures(document: Document, options: Options) -> Iterator[Finding]:
    known = _BIG_ENDIAN | _LITTLE_ENDIAN
    if options.machine == "riscv64":
        known |= {"SCMP_ARCH_RISCV64"}  # only runc of 2023 and later knows it
    if document.architectures and document.has_arch_map:
        what = "The profile has both architectures and archMap; CRI-O refuses that."
        yield _bad("archMap", what, "Keep architectures.")
    for index, name in enumerate(document.architectures):
        if name not in known:
            hint = syscalls.nearest(name, known)
            where = f"architectures[{index}]"
            yield _bad(where, f"{ascii(name)[:60]} is no architecture every runtime knows.", hint)
    for index, (name, subs) in enumerate(document.arch_map):
        for one in (name, *subs):
            if one not in known | {"SCMP_ARCH_RISCV64", "SCMP_ARCH_LOONGARCH64"}:
                yield _bad(f"archMap[{index}]", f"{ascii(one)[:60]} is no known architecture.")
    native = canonical.MACHINES[options.machine][0]
    given = frozenset((*document.architectures, native))
    if given & _BIG_ENDIAN and given - _BIG_ENDIAN:
        what = f"The list mixes byte orders (the node's own is {native}); libseccomp refuses that."
        yield _bad("architectures", what)


def _action(rule: Rule) -> Iterator[Finding]:
    where = f"{rule.where}.action"
    if not rule.action:
        yield _bad(where, "A rule needs an action.")
    else:
        yield from _known_action(rule.action, where)


def _errno(rule: Rule, options: Options) -> Iterator[Finding]:
    number, name = ("errnoRet", "errno") if rule.where else ("defaultErrnoRet", "defaultErrno")
    prefix = f"{rule.where}." if rule.where else ""
    value = rule.errno_ret
    if rule.errno:
        parsed = canonical.errno_number(rule.errno)
        if options.format == "oci":
            what = f"Only CRI-O reads {name}; others answer EPERM."
            hint = f"Use {number}."
            yield Finding(code="not_portable", location=f"{prefix}{name}", message=what, hint=hint)
        elif parsed is None or parsed > 4095:  # noqa: PLR2004 - MAX_ERRNO
            yield _bad(f"{prefix}{name}", f"{ascii(rule.errno)[:60]} is no error number.")
        elif value not in (None, parsed):
            yield _bad(f"{prefix}{name}", f"{name} and {number} disagree.")
        value = parsed if value is None else value
    if value is None:
        return
    if rule.action and rule.action not in _WITH_ERRNO:
        what = f"{number} has no meaning with {rule.action[:40]}; crun refuses it."
        yield _bad(f"{prefix}{number}", what)
    elif value == 0 and rule.action == "SCMP_ACT_ERRNO":
        what = "Error number 0 makes the call do nothing and report success."
        yield Finding(code="condition_surprising", location=f"{prefix}{number}", message=what)


def _arguments(rule: Rule) -> Iterator[Finding]:
    where = f"{rule.where}.args"
    if len(rule.args) > _MOST_ARGS:
        yield _bad(where, "A system call has at most 6 arguments; runc and crun read more apart.")
    seen = set()
    for number, arg in enumerate(rule.args):
        if arg.index in seen:
            what = "Two conditions on one argument are alternatives to runc, not both needed."
            hint = "Make one rule of each, or use SCMP_CMP_MASKED_EQ."
            yield Finding(
                code="fails_open", location=f"{where}[{number}].index", message=what, hint=hint
            )
        seen.add(arg.index)
        if arg.op and arg.op not in _OPS:
            hint = syscalls.nearest(arg.op.upper(), _OPS)
            yield _bad(f"{where}[{number}].op", f"{ascii(arg.op)[:60]} is no operator.", hint)
        if arg.value_two and arg.op in _OPS and arg.op != "SCMP_CMP_MASKED_EQ":
            what = "valueTwo counts with SCMP_CMP_MASKED_EQ only."
            yield Finding(
                code="condition_surprising", location=f"{where}[{number}].valueTwo", message=what
            )
        if (arg.op, arg.value) in _NEVER:
            what = f"{arg.op} {arg.value} never holds: the rule does nothing."
            place = f"{where}[{number}].value"
            yield Finding(code="fails_open", location=place, message=what)
        if arg.op == "SCMP_CMP_MASKED_EQ" and arg.value_two & ~arg.value:
            what = "The comparison is never true: valueTwo has bits that the mask value lacks."
            yield Finding(code="fails_open", location=f"{where}[{number}].valueTwo", message=what)


def _only(only: Only, where: str, options: Options) -> Iterator[Finding]:
    for index, name in enumerate(only.arches):
        if name not in canonical.ARCHES:
            hint = syscalls.nearest(name, canonical.ARCHES)
            place = f"{where}.arches[{index}]"
            yield _bad(place, f"{ascii(name)[:60]} is no architecture of Go.", hint)
    if only.min_kernel:
        what = "containerd and CRI-O ignore minKernel and apply the rule on every kernel."
        code = "not_portable" if options.format == "oci" else "fails_open"
        yield Finding(code=code, location=f"{where}.minKernel", message=what)
    if only.caps and options.format == "oci":
        what = (
            "containerd ignores caps and applies the rule to every container; they depend on the "
            "pod, so they cannot be expanded here."
        )
        hint = "Remove the rule, or keep it without caps; on CRI-O use --seccomp-format docker."
        yield Finding(code="not_portable", location=f"{where}.caps", message=what, hint=hint)
    for index, name in enumerate(only.caps):
        if not _CAPABILITY.fullmatch(name):
            yield _bad(f"{where}.caps[{index}]", f"{ascii(name)[:60]} is no capability.")


def _names(rule: Rule, default: str, options: Options) -> Iterator[Finding]:
    for name in rule.names:
        if syscalls.known(name):
            continue
        where = f"{rule.where}.names"
        if default in _LETS_THROUGH and not (
            options.allow_unknown_syscalls or name in syscalls.INERT
        ):
            yield Finding(
                code="unknown_syscall",
                location=where,
                message=f"libseccomp 2.5.4 does not know {name[:60]}; the call would go through.",
                hint=syscalls.nearest(name, syscalls.KNOWN),
            )
        else:
            what = f"libseccomp 2.5.4 does not know {name[:60]}; runtimes skip it."
            yield Finding(code="syscall_ignored", location=where, message=what)


# --- as it will be written -----------------------------------------------------------------------


def _conflicts(document: Document) -> Iterator[Finding]:
    """One unconditional meaning per call; libseccomp drops conditions beside such a rule.

    Two unconditional rules may differ if one depends on capabilities, as in Podman's default: the
    first one wins in every runtime.
    """
    default = answer(document.default_action, document.default_errno_ret)
    plain: dict[str, list[Rule]] = {}
    for rule in document.rules:
        for name in () if rule.args else rule.names:
            earlier = plain.setdefault(name, [])
            first = next((one for one in earlier if not one.depends_on_capabilities), rule)
            if not rule.depends_on_capabilities and _disagree(first, rule):
                what = f"{name[:60]} has another action in {first.where}: the first one wins."
                yield _bad(f"{rule.where}.names", what, "Keep one of the two rules.")
            earlier.append(rule)
    for rule in document.rules:
        for name in rule.names if rule.args else ():
            for other in plain.get(name, ()):
                if answer(other.action, other.errno_ret) == default or not _disagree(other, rule):
                    continue
                what = (
                    f"{other.where} decides {name[:60]} without a condition, so this rule does not."
                )
                stricter = STRICTNESS.get(rule.action, 9) > STRICTNESS.get(other.action, 9)
                code = "fails_open" if stricter else "condition_surprising"
                yield Finding(code=code, location=rule.where, message=what)
                break


def _disagree(one: Rule, two: Rule) -> bool:
    """Return whether two rules have different actions, and some pod has both rules."""
    different = answer(one.action, one.errno_ret) != answer(two.action, two.errno_ret)
    return different and one.may_meet(two)


def _overlaps(document: Document) -> Iterator[Finding]:
    """Conditions of one call that may hold at once must agree on the action.

    Which of two matching rules decides is libseccomp's choice, and it lets the milder one win
    (tried with runc and crun: ERRNO beside LOG lets the call through).
    """
    tied: dict[str, list[Rule]] = {}
    for rule in document.rules:
        for name in rule.names if rule.args else ():
            for other in tied.setdefault(name, []):
                if _disagree(other, rule) and not _disjoint(other, rule):
                    what = (
                        f"Its condition on {name[:60]} may hold together with that of "
                        f"{other.where}, which has another action; the milder one may win."
                    )
                    hint = "Make the conditions exclude each other: SCMP_CMP_EQ, other values."
                    yield Finding(code="fails_open", location=rule.where, message=what, hint=hint)
            tied[name].append(rule)


def _disjoint(one: Rule, two: Rule) -> bool:
    """Return whether two rules demand different values of the same argument.

    Rules that depend on capabilities may also do so with SCMP_CMP_NE, as Podman's default does.
    """
    first, second = _demands(one), _demands(two)
    if any(index in second and second[index] != value for index, value in first.items()):
        return True
    return (
        one.depends_on_capabilities
        and two.depends_on_capabilities
        and (_excludes(two, first) or _excludes(one, second))
    )


def _excludes(rule: Rule, demands: Mapping[int, int]) -> bool:
    """Return whether a rule excludes a value that another one demands."""
    return any(arg.op == "SCMP_CMP_NE" and demands.get(arg.index) == arg.value for arg in rule.args)


def _demands(rule: Rule) -> dict[int, int]:
    """Return the value that a rule demands of an argument, where that is beyond doubt."""
    indices = [arg.index for arg in rule.args]
    return {
        arg.index: arg.value
        for arg in rule.args
        if arg.op == "SCMP_CMP_EQ" and indices.count(arg.index) == 1
    }


def _size(document: Document) -> Iterator[Finding]:
    """Refuse what may exceed the kernel's limit, by an upper bound: libseccomp takes seconds."""
    each = sum(
        len(rule.names) * (3 + 6 * len(rule.args) if rule.args else 2) for rule in document.rules
    )
    bound = max(1, len(document.architectures)) * (each + 16)
    if bound > _MOST_INSTRUCTIONS:
        what = f"The filter may need {bound} instructions; the kernel takes 4096 with runc's own."
        hint = "Use fewer conditions or fewer architectures."
        yield Finding(code="filter_too_large", location="syscalls", message=what, hint=hint)


def _newer_variants(document: Document) -> Iterator[Finding]:
    """Warn of calls that stay allowed although an older variant is denied without a condition."""
    named = {name for rule in document.rules for name in rule.names}
    denied = {
        name
        for rule in document.rules
        if rule.action not in _LETS_THROUGH and not rule.args and not rule.depends_on_capabilities
        for name in rule.names
    }
    for newer, (release, older) in syscalls.NEWER_VARIANTS.items():
        if newer in named or not older & denied:
            continue
        what = (
            f"{' and '.join(sorted(older & denied))} is denied, but {newer} (Linux {release}) does "
            "the same and stays allowed."
        )
        hint = (
            "Name it in the same rule."
            if syscalls.known(newer)
            else "libseccomp 2.5.4 does not know it, so only a deny default denies it on all nodes."
        )
        yield Finding(code="newer_call_allowed", location="syscalls", message=what, hint=hint)


def _warnings(document: Document, options: Options) -> Iterator[Finding]:
    default = document.default_action
    allowed = {
        name for rule in document.rules if rule.action in _LETS_THROUGH for name in rule.names
    }
    if default in ("SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        what = f"{default} as default denies nothing by itself."
        yield Finding(code="not_enforcing", location="defaultAction", message=what)
    if default in _LETS_THROUGH:
        denied = {n for r in document.rules if r.action not in _LETS_THROUGH for n in r.names}
        left = len(syscalls.DANGEROUS - denied)
        what = f"The default lets {left} of the 50 calls through that Docker documents as blocked."
        yield Finding(code="dangerous_syscalls", location="defaultAction", message=what)
        yield from _newer_variants(document)
    else:
        if missing := [name for name in ("execve", "exit_group") if name not in allowed]:
            verb = "is" if len(missing) == 1 else "are"
            what = f"{' and '.join(missing)} {verb} not allowed: no container can start with this."
            yield Finding(code="start_impossible", location="syscalls", message=what)
        if found := sorted(syscalls.DANGEROUS & allowed):
            what = f"Allowed, though Docker documents them as blocked: {', '.join(found)}."
            yield Finding(code="dangerous_syscalls", location="syscalls", message=what)
    small = canonical.MACHINES[options.machine][2]
    if small and small not in document.architectures:
        what = f"{small} is not listed: the kernel kills 32-bit programs, whatever the default."
        yield Finding(code="abi_missing", location="architectures", message=what)
