"""Conditions that a multiplexed system call walks around.

On some ABIs sockets and System V IPC are also reached through one call, socketcall(2) or ipc(2),
whose arguments lie in memory where no filter can look. There libseccomp 2.5.4 gives that whole
operation the rule's action and drops the condition (arch-x86.c and its likes; its pseudo filter
code shows it). A rule that denies only denies more; a rule that lets through opens the whole
operation.

Rule: what the text itself allows is a warning, what only libseccomp opens is refused.
"""

from collections.abc import Iterator
from typing import Final

from agent.core.problems import Problem
from agent.kinds.seccomp.model import STRICTNESS, Document, Rule

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
