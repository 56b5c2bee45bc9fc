"""Translates a profile into a filter as a container runtime does.

The steps follow the sources of runc 1.1.5 and 1.5.1 (libcontainer/seccomp with its patchbpf, and
libseccomp-golang) and of crun 1.8.1 and 1.20 (src/libcrun/seccomp.c). A profile is the JSON object
at linux.seccomp in config.json.
"""

import ctypes
import enum
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tests.system.seccomp_filter.libraries import Library

Profile = Mapping[str, Any]
# the code, the jump offsets for true and for false, and the operand
Instruction = tuple[int, int, int, int]

EPERM, ENOSYS = 1, 38
# the operators in the order of enum scmp_compare, which starts at 1
OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
PLAIN_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
NUMBERED_ACTIONS = {"SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000}
PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
# The kernel's numbers for architectures (AUDIT_ARCH_* in linux/audit.h).
KERNEL_NUMBERS = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
}
X32_BIT = 1 << 30
_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE of seccomp.h
_BINARY_TREE = 2
# For a profile with more calls, runc 1.2 and later versions request a binary tree.
_MOST_LINEAR_CALLS = 32

# constants of classic BPF from linux/bpf_common.h
LOAD, AND, RETURN, JUMP = 0x20, 0x54, 0x06, 0x05
IF_EQUAL, IF_GREATER, IF_GREATER_EQUAL, IF_SET = 0x15, 0x25, 0x35, 0x45


class Runtime(enum.Enum):
    """The versions of a runtime that build the same filter."""

    CRUN = "crun"
    RUNC_1_1 = "runc 1.1"
    RUNC_1_2 = "runc since 1.2"


class BuildError(Exception):
    """libseccomp rejects the profile, so no container can start under the profile."""


class _Comparison(ctypes.Structure):
    """The struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def action_value(action: str, errno: int | None) -> int:
    """Return the number that the kernel uses for an action."""
    if action in PLAIN_ACTIONS:
        return PLAIN_ACTIONS[action]
    return NUMBERED_ACTIONS[action] | (EPERM if errno is None else errno) & 0xFFFF


def default_value(profile: Profile) -> int:
    """Return the number that the kernel uses for the default action of the profile."""
    return action_value(profile["defaultAction"], profile.get("defaultErrnoRet"))


def effective_rules(profile: Profile) -> Iterator[tuple[str, int, Sequence[Mapping[str, Any]]]]:
    """Return the name, the action and the conditions of each rule that the runtime passes to
    libseccomp.

    The result has one entry for each name, in the order of the profile. Rules that equal the
    default action are omitted. Two conditions on the same argument become two rules.
    """
    default = default_value(profile)
    for rule in profile["syscalls"]:
        action = action_value(rule["action"], rule.get("errnoRet"))
        if action == default:
            continue
        conditions = rule.get("args") or []
        indices = [item["index"] for item in conditions]
        split = len(set(indices)) < len(indices)
        for name in rule["names"]:
            if split:
                yield from ((name, action, [item]) for item in conditions)
            else:
                yield name, action, conditions


def for_pod(profile: Profile, capabilities: Collection[str]) -> Profile:
    """Convert a profile in docker format as CRI-O does for a pod with certain capabilities."""
    rules = []
    for rule in profile["syscalls"]:
        included = rule.get("includes", {}).get("caps", [])
        excluded = rule.get("excludes", {}).get("caps", [])
        if set(included) <= set(capabilities) and set(excluded).isdisjoint(capabilities):
            kept = {key: value for key, value in rule.items() if key not in _CONDITIONAL_KEYS}
            rules.append(kept)
    return {**profile, "syscalls": rules}


_CONDITIONAL_KEYS = ("includes", "excludes")


def build(
    library: Library, profile: Profile, runtime: Runtime, native: str = "SCMP_ARCH_X86_64"
) -> tuple[Instruction, ...]:
    """Return the filter that the runtime installs on a node with the given native architecture."""
    program = export(library, profile, native, binary_tree=wants_tree(profile, runtime))
    return (*enosys_stub(library, profile, native, runtime), *program)


def wants_tree(profile: Profile, runtime: Runtime) -> bool:
    """Return whether the runtime requests a binary tree of the calls from libseccomp."""
    count = sum(len(rule["names"]) for rule in profile["syscalls"])
    return runtime is Runtime.RUNC_1_2 and count > _MOST_LINEAR_CALLS


def export(
    library: Library, profile: Profile, native: str, *, binary_tree: bool
) -> tuple[Instruction, ...]:
    """Return the program that libseccomp builds for a profile."""
    handle = library.handle
    context = handle.seccomp_init(default_value(profile))
    if not context:
        raise BuildError("seccomp_init")
    try:
        _architectures(library, context, profile, native)
        if binary_tree:
            _check(handle.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE), "optimize")
        for name, action, conditions in effective_rules(profile):
            number = library.resolves(name)
            if number == -1:
                continue  # Every runtime skips an unknown name.
            count = len(conditions)
            array = (_Comparison * max(1, count))(*map(_comparison, conditions))
            _check(handle.seccomp_rule_add_array(context, action, number, count, array), name)
        descriptor = os.memfd_create("filter")
        try:
            _check(handle.seccomp_export_bpf(context, descriptor), "export")
            size = os.lseek(descriptor, 0, os.SEEK_END)
            return tuple(struct.iter_unpack("<HBBI", os.pread(descriptor, size, 0)))
        finally:
            os.close(descriptor)
    finally:
        handle.seccomp_release(context)


def _architectures(library: Library, context: int, profile: Profile, native: str) -> None:
    """Add the architectures to the filter, in the order that a node with the given native
    architecture uses.
    """
    handle = library.handle
    machine = handle.seccomp_arch_native()
    first = library.token(native)
    if first != machine:
        _check(handle.seccomp_arch_remove(context, machine), "remove the machine's architecture")
        _check(handle.seccomp_arch_add(context, first), native)
    for architecture in profile.get("architectures") or []:
        token = library.token(architecture)
        if token == 0:
            raise BuildError(f"{architecture} is unknown")
        code = handle.seccomp_arch_add(context, token)
        if code != -17:  # EEXIST means that the architecture was already added.
            _check(code, architecture)


def _comparison(condition: Mapping[str, Any]) -> _Comparison:
    operator = OPERATORS.index(condition["op"].removeprefix("SCMP_CMP_")) + 1
    return _Comparison(
        condition["index"], operator, condition["value"], condition.get("valueTwo", 0)
    )


def _check(code: int, what: str) -> None:
    if code != 0:
        raise BuildError(f"{what}: {code}")


# --- runc's stub ---------------------------------------------------------------------------------


def newest_calls(
    library: Library, profile: Profile, native: str, runtime: Runtime
) -> dict[int, dict[str, int]]:
    """Return the largest call number in the profile for each architecture.

    Rules that equal the default action also count. runc 1.1 considers only the listed
    architectures.
    """
    architectures = list(profile.get("architectures") or [])
    if runtime is Runtime.RUNC_1_2 and native not in architectures:
        architectures.append(native)
    result: dict[int, dict[str, int]] = {}
    for architecture in architectures:
        by_architecture = result.setdefault(KERNEL_NUMBERS[architecture], {})
        largest = max(
            (
                library.number(name, architecture)
                for rule in profile["syscalls"]
                for name in rule["names"]
            ),
            default=0,
        )
        if largest > 0:
            by_architecture[architecture] = largest
    return result


def enosys_stub(
    library: Library, profile: Profile, native: str, runtime: Runtime
) -> tuple[Instruction, ...]:
    """Return the instructions that runc adds in front of libseccomp's program. The runtime crun
    adds no instructions.

    The instructions return ENOSYS for calls that are newer than all calls in the profile. The
    program of runc has a different layout, with jumps to shared instructions, but the same results.
    """
    if runtime is Runtime.CRUN or profile["defaultAction"] in PERMISSIVE:
        return ()
    refuse = (RETURN, 0, 0, NUMBERED_ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS)
    stub: list[Instruction] = []
    newest = newest_calls(library, profile, native, runtime)
    for kernel_number, by_architecture in newest.items():
        section: list[Instruction] = [(LOAD, 0, 0, 0)]
        for architecture, largest in by_architecture.items():
            if kernel_number != KERNEL_NUMBERS["SCMP_ARCH_X86_64"]:
                if architecture in ("SCMP_ARCH_S390", "SCMP_ARCH_S390X"):
                    section += [(IF_EQUAL, 0, 1, 0), refuse]
                section += [(IF_GREATER, 0, 1, largest), refuse]
            elif architecture == "SCMP_ARCH_X32":
                section += [(IF_SET, 0, 2, X32_BIT), (IF_GREATER, 0, 1, largest), refuse]
            else:
                section += [(IF_SET, 2, 0, X32_BIT), (IF_GREATER, 0, 1, largest), refuse]
        stub += [(LOAD, 0, 0, 4), (IF_EQUAL, 0, len(section), kernel_number), *section]
    return tuple(stub)
