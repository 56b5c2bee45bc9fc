"""Generates profiles with patterns that libseccomp compiles incorrectly.

The generated profiles contain several rules for one call, comparisons around 2^32, calls that only
some architectures have, and calls that a 32-bit ABI reaches through socketcall(2) or ipc(2).
"""

import random
from typing import Any

from agent.backends.seccomp import syscalls

# All ABIs have these calls.
COMMON = ("personality", "socket", "clone", "ptrace", "ioctl", "setuid", "mount", "getpid", "prctl")
# i386 and many other 32-bit ABIs have these calls, but x86_64 lacks them.
OTHER_ABI = ("ipc", "socketcall", "chown32", "stat64", "umount", "waitpid", "fcntl64", "ugetrlimit")
# i386 provides these calls through socketcall(2) or ipc(2). Some of the calls have no number of
# their own.
MULTIPLEXED = (
    "semop",
    "semtimedop",
    "accept",
    "recv",
    "send",
    "shmat",
    "bind",
    "shmget",
    "connect",
)
# Only some ABIs have these calls.
SINGLE_ABI = (
    "arch_prctl",
    "set_thread_area",
    "vm86",
    "time",
    "breakpoint",
    "cacheflush",
    "renameat",
)
RECENT = ("clone3", "openat2", "futex_waitv", "landlock_create_ruleset")

OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_WIDE = 1 << 32
SMALL_VALUES = (0, 1, 2, 3, 8, 40, 0x7FFFFFFF, 0x80000000, _WIDE - 2, _WIDE - 1)
LARGE_VALUES = (
    *(_WIDE, _WIDE + 1, _WIDE + 2, 2 * _WIDE - 1, 2 * _WIDE, 3 * _WIDE + 5, 1 << 63),
    *((1 << 63) - 1, (1 << 64) - 2, (1 << 64) - 1),
)
DEFAULTS = (
    *("SCMP_ACT_ALLOW",) * 6,
    *("SCMP_ACT_ERRNO",) * 4,
    *("SCMP_ACT_LOG", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_TRACE"),
)
DENYING = ("SCMP_ACT_ERRNO", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP")
PERMITTING = ("SCMP_ACT_ALLOW", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
# s390x is missing in this list, because libseccomp on a little-endian machine mixes the byte orders
# in a filter for s390x.
MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}
# libseccomp has the same pseudo number for both calls, so filters for other architectures confuse
# these calls.
_SHARED_NUMBERS = {"switch_endian", "sys_debug_setcontext"}
ERROR_NUMBERS = (1, 22, 38)


def profile(draw: random.Random, machine: str = "x86_64") -> dict[str, Any]:
    """Return one profile. The agent rejects many of the generated profiles."""
    architectures = [item for item in MACHINES[machine] if draw.random() < 0.6]
    draw.shuffle(architectures)
    default = draw.choice(DEFAULTS)
    main_action = draw.choice(PERMITTING if default not in PERMITTING else DENYING)
    if main_action == default:
        main_action = "SCMP_ACT_LOG" if default in PERMITTING else "SCMP_ACT_ALLOW"
    long = not set(architectures) - {MACHINES[machine][0]}
    values = [*SMALL_VALUES, *(LARGE_VALUES if long else ())]
    values = draw.sample(values, draw.randint(2, 5))
    drawn = {
        "defaultAction": default,
        "architectures": architectures,
        "syscalls": _rules(draw, main_action, values),
    }
    if default in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and draw.random() < 0.2:
        drawn["defaultErrnoRet"] = draw.choice(ERROR_NUMBERS)
    return drawn


def _names(draw: random.Random) -> list[str]:
    pools = (COMMON, COMMON, COMMON, OTHER_ABI, OTHER_ABI, MULTIPLEXED, SINGLE_ABI, RECENT)
    return [draw.choice(draw.choice(pools)) for _ in range(draw.randint(1, 3))]


def _shared_rules(draw: random.Random, action: str, values: list[int]) -> list[dict[str, Any]]:
    """Return rules that list two system calls together, and additional rules for one or both of
    these calls.
    """
    first, second = draw.sample((*COMMON, "accept", "bind"), 2)
    groups = [[first, second]] * draw.randint(1, 3) + [[second]] * draw.randint(1, 2)
    groups += [[first]] * draw.randint(0, 1)
    draw.shuffle(groups)
    return [
        {"names": names, "action": action, "args": _conditions(draw, values[:2])}
        for names in groups
    ]


def _rules(draw: random.Random, main_action: str, values: list[int]) -> list[dict[str, Any]]:
    if draw.random() < 0.15:
        return _shared_rules(draw, main_action, values)
    is_single = draw.random() < 0.3  # several rules for one call
    topics = _names(draw)[: 1 if is_single else None]
    rules = []
    for _ in range(draw.randint(2, 5) if is_single else draw.randint(1, 5)):
        names = topics if is_single or draw.random() < 0.7 else _names(draw)
        rule: dict[str, Any] = {
            "names": sorted(set(draw.sample(names, draw.randint(1, min(2, len(names)))))),
            "action": main_action if draw.random() < 0.8 else draw.choice(DENYING + PERMITTING),
        }
        if is_single or draw.random() < 0.8:
            rule["args"] = _conditions(draw, values)
        if rule["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and draw.random() < 0.1:
            rule["errnoRet"] = draw.choice(ERROR_NUMBERS)
        rules.append(rule)
    chance = draw.random()
    if chance < 0.1:
        rules += _many(draw, main_action)
    elif chance < 0.11:
        names = draw.sample(sorted(syscalls.KNOWN - _SHARED_NUMBERS), draw.randint(100, 350))
        rules.insert(draw.randint(0, len(rules)), {"names": names, "action": main_action})
    return rules


def _conditions(draw: random.Random, values: list[int]) -> list[dict[str, Any]]:
    count = draw.choice((1, 1, 1, 1, 2, 2, 3))
    conditions = []
    indices = draw.sample(range(3), count) if draw.random() < 0.9 else [draw.randint(0, 5)]
    for index in indices:
        operator = draw.choice(OPERATORS)
        condition = {
            "index": index,
            "value": draw.choice(values),
            "op": f"SCMP_CMP_{operator}",
        }
        if operator == "MASKED_EQ":
            condition["valueTwo"] = draw.choice(values) & int(condition["value"])
        conditions.append(condition)
    return conditions


def _many(draw: random.Random, action: str) -> list[dict[str, Any]]:
    """Return so many rules that runc requests a binary tree from libseccomp."""
    names = (
        *("read", "write", "open", "close", "stat", "fstat", "lstat", "poll", "lseek", "mmap"),
        *("mprotect", "munmap", "brk", "pread64", "pwrite64", "readv", "writev", "access", "pipe"),
        *("select", "dup", "dup2", "pause", "nanosleep", "getitimer", "alarm", "setitimer"),
        *("sendfile", "fork", "vfork", "execve", "exit", "wait4", "kill", "uname", "fcntl"),
        *("flock", "fsync", "truncate", "getcwd", "chdir", "rename", "mkdir", "rmdir", "umask"),
    )
    return [
        {"names": [name], "action": action} for name in draw.sample(names, draw.randint(30, 40))
    ]
