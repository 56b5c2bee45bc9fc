"""Determines the result of a profile for a system call by evaluating the rules of the profile one
by one.

The reference shares no code with the agent or with libseccomp. The reference uses libseccomp only
to translate names into numbers.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tests.system.seccomp_filter.libraries import Library
from tests.system.seccomp_filter.runtimes import (
    ENOSYS,
    NUMBERED_ACTIONS,
    PERMISSIVE,
    PLAIN_ACTIONS,
    X32_BIT,
    Profile,
    Runtime,
    default_value,
    effective_rules,
    newest_calls,
)

BAD_ARCHITECTURE = PLAIN_ACTIONS["SCMP_ACT_KILL"]
_HIGHEST_NUMBER = 560
_ARM_PRIVATE = range(0x0F0001, 0x0F0007)
_SHORT_ARGUMENTS = ("SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_S390")
# The names of the operations of socketcall(2) and ipc(2) by number, from linux/net.h and
# linux/ipc.h.
_SOCKETCALL = dict(
    enumerate(
        (
            *("socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername"),
            *("socketpair", "send", "recv", "sendto", "recvfrom", "shutdown", "setsockopt"),
            *("getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"),
        ),
        start=1,
    )
)
_IPC = {
    1: "semop",
    2: "semget",
    3: "semctl",
    4: "semtimedop",
    11: "msgsnd",
    12: "msgrcv",
    13: "msgget",
    14: "msgctl",
    21: "shmat",
    22: "shmdt",
    23: "shmget",
    24: "shmctl",
}
MULTIPLEXED = {"socketcall": _SOCKETCALL, "ipc": _IPC}

# the action, the argument and the test
Rule = tuple[int, Sequence[tuple[int, Callable[[int], bool]]]]


@functools.cache
def numbers(library: Library, architecture: str) -> dict[int, str]:
    """Return the names of all system calls of an architecture, by number."""
    bit = X32_BIT if architecture == "SCMP_ARCH_X32" else 0
    token = library.token(architecture)
    result = {}
    candidates = [number | bit for number in range(_HIGHEST_NUMBER)]
    if architecture == "SCMP_ARCH_ARM":
        candidates += _ARM_PRIVATE
    for number in candidates:
        name = library.name(number, token)
        if name:
            result[number] = name
    return result


@functools.cache
def numbers_by_name(library: Library, architecture: str) -> dict[str, int]:
    """Return the numbers of all system calls of an architecture, by name."""
    return {name: number for number, name in numbers(library, architecture).items()}


def predicate(condition: Mapping[str, Any]) -> Callable[[int], bool]:
    """Return the test of a condition, as a function of the argument's value."""
    expected, masked = condition["value"], condition.get("valueTwo", 0)
    predicates: dict[str, Callable[[int], bool]] = {
        "SCMP_CMP_NE": lambda value: value != expected,
        "SCMP_CMP_LT": lambda value: value < expected,
        "SCMP_CMP_LE": lambda value: value <= expected,
        "SCMP_CMP_EQ": lambda value: value == expected,
        "SCMP_CMP_GE": lambda value: value >= expected,
        "SCMP_CMP_GT": lambda value: value > expected,
        "SCMP_CMP_MASKED_EQ": lambda value: value & expected == masked,
    }
    return predicates[condition["op"]]


class Reference:
    """The rules of a profile that apply on one type of node with one runtime and one libseccomp
    version. The libseccomp version determines the known names of system calls.
    """

    def __init__(
        self, library: Library, profile: Profile, runtime: Runtime, native: str = "SCMP_ARCH_X86_64"
    ) -> None:
        self.library = library
        self.default = default_value(profile)
        listed = tuple(profile.get("architectures") or ())
        self.architectures = (native, *(item for item in listed if item != native))
        self.newest: dict[str, int] = {}
        if runtime is not Runtime.CRUN and profile["defaultAction"] not in PERMISSIVE:
            for newest in newest_calls(library, profile, native, runtime).values():
                self.newest.update(newest)
        self.rules: dict[str, list[Rule]] = {}
        self.tables = {item: numbers(library, item) for item in self.architectures}
        for name, action, conditions in effective_rules(profile):
            if library.resolves(name) != -1:
                tests = [(item["index"], predicate(item)) for item in conditions]
                self.rules.setdefault(name, []).append((action, tests))

    def answers(self, architecture: str, number: int, arguments: Sequence[int]) -> Collection[int]:
        """Return the results that the rules permit on an architecture of the filter.

        If a call has an unconditional rule, this rule determines the result. A conditional rule
        applies if all of its conditions are true. The filter cannot read the arguments of an
        operation of socketcall(2) or ipc(2). If a conditional rule applies to such an operation,
        every result of the rule is permitted.
        """
        newest = self.newest.get(architecture)
        if newest is not None and number > newest:
            return (NUMBERED_ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS,)
        name = self.tables[architecture].get(number, "")
        rules = self.rules.get(name, ())
        operations = MULTIPLEXED.get(name)
        if operations and architecture in _MULTIPLEXING:
            operation = self.rules.get(operations.get(arguments[0] & 0xFFFFFFFF, ""), ())
            plain = [action for action, tests in operation if not tests]
            if plain and not rules:
                return plain[:1]
            permitted = {action for action, _ in operation}
            return permitted.union(self._decide(rules, architecture, arguments))
        return self._decide(rules, architecture, arguments)

    def _decide(
        self, rules: Sequence[Rule], architecture: str, arguments: Sequence[int]
    ) -> Collection[int]:
        if architecture in _SHORT_ARGUMENTS:
            arguments = [argument & 0xFFFFFFFF for argument in arguments]
        matching = []
        for action, tests in rules:
            if not tests:
                return (action,)
            if all(test(arguments[index]) for index, test in tests):
                matching.append(action)
        return matching or (self.default,)


_MULTIPLEXING = ("SCMP_ARCH_X86", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_S390X", "SCMP_ARCH_S390")
