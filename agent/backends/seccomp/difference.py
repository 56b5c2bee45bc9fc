"""Finds exactly the system calls for which two profiles return different results.

Each profile divides the arguments of a system call into cases, and each case has one result. Two
cases with different results form a difference if some arguments belong to both cases.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.backends.seccomp import regions
from agent.backends.seccomp.document import Answer, Condition
from agent.backends.seccomp.meaning import CallMeaning, Meaning

_SIGNS = {
    "SCMP_CMP_EQ": "==",
    "SCMP_CMP_NE": "!=",
    "SCMP_CMP_LT": "<",
    "SCMP_CMP_LE": "<=",
    "SCMP_CMP_GT": ">",
    "SCMP_CMP_GE": ">=",
}


class Direction(enum.StrEnum):
    """The direction of a difference between two profiles."""

    MORE_PERMISSIVE = "more-permissive"
    MORE_RESTRICTIVE = "more-restrictive"
    OTHER_ERROR = "other-error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A set of arguments of one system call for which two profiles return different results."""

    abi: str
    call: str
    conditions: tuple[Condition, ...]
    """The conditions on the arguments. An empty tuple stands for all arguments that belong to no
    other case.
    """
    before: Answer
    after: Answer

    @property
    def direction(self) -> Direction:
        """The direction of the change from the first result to the second result."""
        if self.after.strictness < self.before.strictness:
            return Direction.MORE_PERMISSIVE
        if self.after.strictness > self.before.strictness:
            return Direction.MORE_RESTRICTIVE
        return Direction.OTHER_ERROR

    @property
    def arguments(self) -> str:
        """The conditions on the arguments, as text."""
        return " and ".join(map(_shown, self.conditions))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """The result for arguments that meet the conditions and belong to no other case."""

    conditions: tuple[Condition, ...]
    others: Sequence[tuple[Condition, ...]]
    answer: Answer


def differences(first: Meaning, second: Meaning) -> Iterator[Difference]:
    """Return the cases for which the two profiles return different results.

    An ABI that only one filter handles is reported as a single difference, because the other filter
    makes the kernel kill each thread that uses this ABI.
    """
    killed = Answer(action="SCMP_ACT_KILL_THREAD")
    for abi in dict.fromkeys((*first.abis, *second.abis)):
        if abi not in first.abis or abi not in second.abis:
            is_new = abi in second.abis
            default = (second if is_new else first).document.default
            before, after = (killed, default) if is_new else (default, killed)
            yield Difference(abi=abi, call="*", conditions=(), before=before, after=after)
            continue
        for call in sorted(first.calls(abi) | second.calls(abi)):
            yield from _of_call(abi, call, first.call(abi, call), second.call(abi, call))


def _of_call(abi: str, call: str, first: CallMeaning, second: CallMeaning) -> Iterator[Difference]:
    for before in _cases(first):
        for after in _cases(second):
            if before.answer != after.answer and regions.outside(
                (*before.conditions, *after.conditions),
                [*before.others, *after.others],
                first.largest,
            ):
                yield Difference(
                    abi=abi,
                    call=call,
                    conditions=tuple(dict.fromkeys((*before.conditions, *after.conditions))),
                    before=before.answer,
                    after=after.answer,
                )


def _cases(call: CallMeaning) -> Iterator[_Case]:
    for rule in call.cases:
        yield _Case(conditions=rule.args, others=(), answer=rule.answer)
    yield _Case(conditions=(), others=[rule.args for rule in call.cases], answer=call.otherwise)


def _shown(condition: Condition) -> str:
    name = f"arg{condition.index}"
    if condition.op == "SCMP_CMP_MASKED_EQ":
        return f"{name} & {condition.value:#x} == {condition.value_two:#x}"
    return f"{name} {_SIGNS.get(condition.op, condition.op)} {condition.value}"
