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

from collections.abc import Iterator
from typing import Final

from agent.core.problems import Problem
from agent.kinds.seccomp.model import STRICTNESS, Condition, Document, Rule, answer

ABIS: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "MIPS", "MIPSEL")
)
SOCKETCALL: Final = frozenset(
    (
        *("accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt"),
        *("listen", "recv", "recvfrom", "recvmmsg", "recvmsg", "send", "sendmmsg", "sendmsg"),
        *("sendto", "setsockopt", "shutdown", "socket", "socketpair"),
    )
)
IPC: Final = frozenset(
    (
        *("msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop"),
        *("shmat", "shmctl", "shmdt", "shmget"),
    )
)
NAMES: Final = SOCKETCALL | IPC


def problems(document: Document, native: str) -> Iterator[Problem]:
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
    for through, names in (("socketcall", SOCKETCALL), ("ipc", IPC)):
        yield from _contradictions(document, through, names, abis[0])


def _walked_around(rule: Rule, plain: dict[str, Rule], abi: str) -> Iterator[Problem]:
    for through, names in (("socketcall", SOCKETCALL), ("ipc", IPC)):
        found = next((name for name in rule.names if name in names), None)
        own = plain.get(through)
        if found is None:
            continue
        if own is None:
            yield Problem(
                code="fails_open",
                where=f"{rule.where}.args",
                what=f"On {abi} the condition on {found} does not hold for calls through "
                f"{through}(2): libseccomp lets all of them through.",
                hint=f"Leave {abi} out of architectures, or give {through} a rule of its own.",
            )
        elif STRICTNESS.get(own.action, 0) <= STRICTNESS.get(rule.action, 0):
            yield Problem(
                code="condition_surprising",
                where=f"{rule.where}.args",
                what=f"On {abi} the condition on {found} does not hold for calls through "
                f"{through}(2), which {own.where} lets through.",
                hint=f"Leave {abi} out of architectures, or deny {through}.",
            )


def _reached_otherwise(
    rule: Rule, plain: dict[str, Rule], abi: str, default: int
) -> Iterator[Problem]:
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
        yield Problem(
            code="condition_surprising",
            where=rule.where,
            what=f"On {abi} a program reaches {found} through {through}(2) in spite of this rule: "
            f"libseccomp {what}.",
            hint=f"Leave {abi} out of architectures, or deny {through} too.",
        )


def _contradictions(
    document: Document, through: str, names: frozenset[str], abi: str
) -> Iterator[Problem]:
    """Reject rules of one operation that libseccomp does not put into one filter."""
    default = answer(document.default_action, document.default_errno_ret)
    earlier: dict[str, list[Rule]] = {}
    for rule in document.rules:
        if answer(rule.action, rule.errno_ret) == default:
            continue  # runtimes leave such a rule out
        if through in rule.names and not rule.args and not rule.depends_on_capabilities:
            return  # it covers every operation; libseccomp drops what follows
        for name in names.intersection(rule.names):
            other = next((one for one in earlier.get(name, ()) if _contradict(one, rule)), None)
            if other is not None:
                yield Problem(
                    code="bad_value",
                    where=rule.where,
                    what=f"On {abi} this rule for {name} contradicts {other.where}: calls through "
                    f"{through}(2) are compared without the first argument, and two actions are "
                    "left for the same call. libseccomp rejects that; no container would start.",
                    hint=f"Leave {abi} out of architectures, or use one action for {name}.",
                )
                return
            earlier.setdefault(name, []).append(rule)


def _contradict(earlier: Rule, later: Rule) -> bool:
    """Return whether libseccomp rejects the later rule because of the earlier one."""
    if answer(earlier.action, earlier.errno_ret) == answer(later.action, later.errno_ret):
        return False
    if (earlier.includes, earlier.excludes) != (later.includes, later.excludes):
        return False  # no pod has both
    first, second = _remaining(earlier), _remaining(later)
    if not first and second:
        return False  # libseccomp drops the later, longer rule
    return not any(
        wanted is not None and second.get(index) not in (None, wanted)
        for index, wanted in first.items()
    )


def _remaining(rule: Rule) -> dict[int, int | None]:
    """Return the arguments that are still compared, with the value where only one is right."""
    return {arg.index: _only_value(arg) for arg in rule.args if arg.index != 0}


def _only_value(condition: Condition) -> int | None:
    return condition.value if condition.op == "SCMP_CMP_EQ" else None
