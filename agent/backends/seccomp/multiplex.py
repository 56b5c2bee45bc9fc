"""Conditions that a multiplexed system call walks around.

On some ABIs sockets and System V IPC are also reached through one call, socketcall(2) or ipc(2),
whose arguments lie in memory where no filter can look. There libseccomp adds each rule for an
operation to the rules of that call too, with the number of the operation in place of the first
argument (abi_rule_add in syscalls.c). A condition on the first argument is dropped: a rule that
denies only denies more, and a rule that lets through opens the whole operation. Other conditions
then compare arguments that the operation does not have.

What the text itself allows is a warning. What only libseccomp opens is rejected, and so are rules
whose rest, without the first argument, contradict each other: libseccomp does not build those.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from agent.backends.seccomp.syntax import STRICTNESS, Condition, Document, Rule, answer
from agent.core.findings import Finding

ABIS: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "MIPS", "MIPSEL")
)
# The number that stands for each operation (linux/net.h, linux/ipc.h).
OPERATIONS: Final[Mapping[str, Mapping[str, int]]] = {
    "socketcall": {
        name: number
        for number, name in enumerate(
            (
                *("socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername"),
                *("socketpair", "send", "recv", "sendto", "recvfrom", "shutdown", "setsockopt"),
                *("getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"),
            ),
            start=1,
        )
    },
    "ipc": {
        **dict(zip(("semop", "semget", "semctl", "semtimedop"), range(1, 5), strict=True)),
        **dict(zip(("msgsnd", "msgrcv", "msgget", "msgctl"), range(11, 15), strict=True)),
        **dict(zip(("shmat", "shmdt", "shmget", "shmctl"), range(21, 25), strict=True)),
    },
}
SOCKETCALL: Final = frozenset(OPERATIONS["socketcall"])
IPC: Final = frozenset(OPERATIONS["ipc"])
NAMES: Final = SOCKETCALL | IPC


def findings(document: Document, native: str) -> Iterator[Finding]:
    """Return what a document's conditions do not hold for.

    native: the node's own architecture, which counts beside those listed.
    """
    abis = sorted(ABIS.intersection((*document.architectures, native)))
    if not abis:
        return
    default = STRICTNESS.get(document.default_action, 0)
    plain = {
        name: rule
        for rule in document.rules
        if not rule.args and rule.action != document.default_action
        for name in rule.names
    }
    for rule in document.rules:
        if rule.args and STRICTNESS.get(rule.action, 0) < default:
            yield from _walked_around(rule, plain, abis[0])
        elif STRICTNESS.get(rule.action, 0) > default:
            yield from _reached_otherwise(rule, plain, abis[0], default)
    for through in OPERATIONS:
        yield from _contradictions(document, through, abis[0])


def _walked_around(rule: Rule, plain: dict[str, Rule], abi: str) -> Iterator[Finding]:
    for through, names in (("socketcall", SOCKETCALL), ("ipc", IPC)):
        found = next((name for name in rule.names if name in names), None)
        own = plain.get(through)
        if found is None:
            continue
        if own is None:
            yield Finding(
                code="fails_open",
                location=f"{rule.where}.args",
                message=f"On {abi} the condition on {found} does not hold for calls through "
                f"{through}(2): libseccomp lets all of them through.",
                hint=f"Leave {abi} out of architectures, or give {through} a rule of its own.",
            )
        elif STRICTNESS.get(own.action, 0) <= STRICTNESS.get(rule.action, 0):
            yield Finding(
                code="condition_surprising",
                location=f"{rule.where}.args",
                message=f"On {abi} the condition on {found} does not hold for calls through "
                f"{through}(2), which {own.where} lets through.",
                hint=f"Leave {abi} out of architectures, or deny {through}.",
            )


def _reached_otherwise(
    rule: Rule, plain: dict[str, Rule], abi: str, default: int
) -> Iterator[Finding]:
    """Warn of denied operations that the multiplexed call reaches, which the text lets through."""
    compares = any(arg.index > 0 for arg in rule.args)
    for through, names in (("socketcall", SOCKETCALL), ("ipc", IPC)):
        found = next((name for name in rule.names if name in names), None)
        own = plain.get(through)
        strictness = default if own is None else STRICTNESS.get(own.action, 0)
        if found is None or strictness >= STRICTNESS.get(rule.action, 0):
            continue
        if compares:
            what = f"compares the arguments of {through}(2) instead of those of {found}"
        elif names is IPC:
            what = "compares the whole first argument, whose upper 16 bits the kernel ignores"
        else:
            continue
        yield Finding(
            code="condition_surprising",
            location=rule.where,
            message=f"On {abi} a program reaches {found} through {through}(2) in spite of this "
            "rule: "
            f"libseccomp {what}.",
            hint=f"Leave {abi} out of architectures, or deny {through} too.",
        )


def merged(document: Document, through: str) -> list[Rule]:
    """Return the rules with conditions that libseccomp has for a multiplexed call."""
    default = answer(document.default_action, document.default_errno_ret)
    operations = OPERATIONS[through]
    found = []
    for rule in document.rules:
        if answer(rule.action, rule.errno_ret) == default:
            continue  # runtimes leave such a rule out
        for name in rule.names:
            if name in operations:
                operation = Condition(
                    index=0, op="SCMP_CMP_EQ", value=operations[name], value_two=0
                )
                others = (arg for arg in rule.args if arg.index != 0)
                found.append(replace(rule, args=(operation, *others)))
            elif name == through and rule.args:
                found.append(rule)
            elif name == through and not rule.depends_on_capabilities:
                return found  # it covers every operation; libseccomp drops what follows
    return found


def _contradictions(document: Document, through: str, abi: str) -> Iterator[Finding]:
    """Reject rules that libseccomp does not put into one filter."""
    rules = merged(document, through)
    for position, rule in enumerate(rules):
        other = next((one for one in rules[:position] if _contradict(one, rule)), None)
        if other is not None:
            yield Finding(
                code="bad_value",
                location=rule.where,
                message=f"On {abi} this rule contradicts {other.where}: calls through {through}(2) "
                "are compared without the first argument, and two actions are left for the same "
                "call. libseccomp rejects that; no container would start.",
                hint=f"Leave {abi} out of architectures, or use one action in both rules.",
            )
            return


def _contradict(earlier: Rule, later: Rule) -> bool:
    """Return whether libseccomp rejects the later rule because of the earlier one."""
    if answer(earlier.action, earlier.errno_ret) == answer(later.action, later.errno_ret):
        return False
    if not earlier.may_meet(later):
        return False
    if set(earlier.args) < set(later.args):
        return False  # libseccomp drops the later, longer rule
    first, second = _only_values(earlier), _only_values(later)
    return not any(second.get(index, wanted) != wanted for index, wanted in first.items())


def _only_values(rule: Rule) -> dict[int, int]:
    """Return the value of each argument for which a single value is right."""
    return {arg.index: arg.value for arg in rule.args if arg.op == "SCMP_CMP_EQ"}
