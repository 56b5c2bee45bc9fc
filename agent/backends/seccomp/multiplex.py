"""Checks rules for system calls that programs of some ABIs can also make through socketcall(2) and
ipc(2).

A filter cannot read the arguments of a multiplexed call, because they are in memory. libseccomp
therefore also adds each rule for an operation to the multiplexing call, with the number of the
operation as the first argument (abi_rule_add in syscalls.c). In the added rule, libseccomp drops a
condition on the original first argument. Without the dropped condition, a rule that denies calls
denies more calls than its author intended, and a rule that allows calls allows the whole operation.
Conditions on other arguments compare arguments of the multiplexing call, which the operation does
not have.

libseccomp may therefore allow an operation that the profile denies. `closed` adds a rule that
denies the multiplexing call if only 32-bit programs can use the call. Every other profile with this
problem is rejected. The module also rejects profiles whose rules libseccomp cannot combine in one
filter. If a profile itself allows the multiplexing call, the result is only a warning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp import regions
from agent.backends.seccomp.document import Answer, Condition, Document, Rule
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

ABIS: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "MIPS", "MIPSEL")
)
# The numbers of the operations come from linux/net.h and linux/ipc.h.
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


_ENOSYS: Final = 38
_EPERM: Final = 1


def closed(document: Document, native: str) -> tuple[Document, tuple[Finding, ...]]:
    """Deny each multiplexing call through which a program could bypass a condition, and return
    notices.

    The document is unchanged if a rule contains the multiplexing call, because the author decided
    about the call. The document is also unchanged if the node's own ABI has multiplexing calls,
    because the C library of native programs may need these calls.
    """
    abis = sorted(ABIS.intersection(document.architectures))
    if not abis or native in ABIS or document.default.action != "SCMP_ACT_ERRNO":
        return document, ()
    notices = []
    errno = _EPERM if document.default.errno == _ENOSYS else _ENOSYS
    for through, operations in OPERATIONS.items():
        evaded = sorted(
            name
            for rule in document.rules
            if rule.args and rule.answer.strictness < document.default.strictness
            for name in operations.keys() & set(rule.names)
        )
        if not evaded or any(through in rule.names for rule in document.rules):
            continue
        rule = Rule(
            where="syscalls",
            names=(through,),
            action="SCMP_ACT_ERRNO",
            errno_ret=errno,
        )
        # The added rule comes first, so that libseccomp merges no other rule into the multiplexing
        # call.
        document = replace(document, rules=(rule, *document.rules))
        message = (
            f"A rule was added that denies {through}(2) with error number {errno}. On {abis[0]} "
            f"libseccomp drops the condition on {evaded[0]} for calls through {through}(2), and "
            "would allow all of them."
        )
        hint = (
            f"If 32-bit programs need {through}(2), add a rule that allows it, and accept that "
            "such programs can bypass the condition."
        )
        notices.append(
            Finding(code=FindingCode.RULE_ADDED, location="syscalls", message=message, hint=hint)
        )
    return document, tuple(notices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Through:
    """A multiplexing call on one ABI, and the rule of the profile for this call."""

    name: str
    abi: str
    default: Answer
    # The rule without conditions for the call, or None if the default action applies.
    rule: Rule | None

    @property
    def answer(self) -> Answer:
        """The response of the profile to the multiplexing call."""
        return self.default if self.rule is None else self.rule.answer

    def operation(self, rule: Rule) -> str | None:
        """Return the first operation of the multiplexing call that a rule names."""
        return next((name for name in rule.names if name in OPERATIONS[self.name]), None)


def findings(document: Document, native: str) -> Iterator[Finding]:
    """Return findings about conditions that have no effect on system calls through socketcall(2) or
    ipc(2).

    Args:
        document: the profile.
        native: the node's architecture, which the filter handles in addition to the listed
            architectures.
    """
    abis = sorted(ABIS.intersection((*document.architectures, native)))
    if not abis:
        return
    for name in OPERATIONS:
        own = [
            rule
            for rule in document.effective_rules
            if not rule.args and not rule.depends_on_capabilities and name in rule.names
        ]
        through = _Through(
            name=name, abi=abis[0], default=document.default, rule=own[0] if own else None
        )
        for rule in document.rules:
            difference = rule.answer.strictness - document.default.strictness
            if rule.args and difference < 0:
                yield from _opened(rule, through)
            elif difference > 0:
                yield from _still_reached(rule, through)
        yield from _contradictions(document, through)


def _opened(rule: Rule, through: _Through) -> Iterator[Finding]:
    """Report a rule that allows a call under a condition that libseccomp drops."""
    operation = through.operation(rule)
    if operation is None:
        return
    if through.rule is None:
        yield Finding(
            code=FindingCode.FAILS_OPEN,
            location=f"{rule.where}.args",
            message=f"On {through.abi} the condition on {operation} does not hold for calls "
            f"through {through.name}(2): libseccomp allows all of them.",
            hint=f"Deny {through.name} in a rule without conditions, with SCMP_ACT_ERRNO and an "
            f"errnoRet that differs from the default's, or remove {through.abi} from the "
            "architectures.",
        )
    elif through.answer.strictness <= rule.answer.strictness:
        yield Finding(
            code=FindingCode.CONDITION_SURPRISING,
            location=f"{rule.where}.args",
            message=f"On {through.abi} the condition on {operation} does not hold for calls "
            f"through {through.name}(2), which {through.rule.where} allows.",
            hint=f"Remove {through.abi} from the architectures, or deny {through.name}.",
        )


def _still_reached(rule: Rule, through: _Through) -> Iterator[Finding]:
    """Warn about a denied system call that programs can reach through the multiplexing call."""
    operation = through.operation(rule)
    if operation is None or through.answer.strictness >= rule.answer.strictness:
        return
    if any(arg.index > 0 for arg in rule.args):
        reason = (
            f"compares the arguments of {through.name}(2) instead of the arguments of {operation}"
        )
    elif through.name == "ipc":
        reason = "compares the whole first argument, whose upper 16 bits the kernel ignores"
    else:
        return
    yield Finding(
        code=FindingCode.CONDITION_SURPRISING,
        location=rule.where,
        message=f"On {through.abi} a program reaches {operation} through {through.name}(2) in "
        f"spite of this rule: libseccomp {reason}.",
        hint=f"Remove {through.abi} from the architectures, or deny {through.name} too.",
    )


def merged(document: Document, through: str) -> list[Rule]:
    """Return the conditional rules that libseccomp applies to a multiplexing call."""
    operations = OPERATIONS[through]
    rules = []
    for rule in document.effective_rules:
        for name in rule.names:
            if name in operations:
                operation = Condition(
                    index=0, op="SCMP_CMP_EQ", value=operations[name], value_two=0
                )
                others = (arg for arg in rule.args if arg.index != 0)
                rules.append(replace(rule, args=(operation, *others)))
            elif name == through and rule.args:
                rules.append(rule)
            elif name == through and not rule.depends_on_capabilities:
                # This rule covers every operation, and libseccomp drops all later rules.
                return rules
    return rules


def is_decided(document: Document, through: str) -> bool:
    """Return whether a rule without conditions applies to every operation of a multiplexing
    call.
    """
    return any(
        through in rule.names and not rule.args and not rule.depends_on_capabilities
        for rule in document.effective_rules
    )


def _contradictions(document: Document, through: _Through) -> Iterator[Finding]:
    """Reject rules that libseccomp cannot combine in one filter."""
    rules = merged(document, through.name)
    if len({rule.answer for rule in rules}) == 1:
        return
    for position, rule in enumerate(rules):
        other = next((r for r in rules[:position] if _contradict(r, rule)), None)
        if other is not None:
            yield Finding(
                code=FindingCode.BAD_VALUE,
                location=rule.where,
                message=f"On {through.abi} this rule contradicts {other.where}: libseccomp "
                f"compares calls through {through.name}(2) without their first argument, and "
                "would need two actions for one call. No container would start.",
                hint=f"Remove {through.abi} from the architectures, or use one action in both "
                "rules.",
            )
            return


def _contradict(earlier: Rule, later: Rule) -> bool:
    """Return whether libseccomp rejects the later rule because of the earlier rule."""
    if earlier.answer == later.answer or not earlier.may_meet(later):
        return False
    if set(earlier.args) < set(later.args):
        return False  # libseccomp drops the later rule, which has more conditions.
    return regions.can_hold_together(_equalities(earlier), _equalities(later))


def _equalities(rule: Rule) -> list[Condition]:
    return [arg for arg in rule.args if arg.op == "SCMP_CMP_EQ"]
