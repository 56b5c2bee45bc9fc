"""Conditions that libseccomp does not apply as they read.

Rule 1: what libseccomp 2.5.4 makes another filter of, or never finishes with, is refused; what the
kernel reads otherwise than a person does is a warning. Compared with filters of libseccomp itself,
evaluated call by call (tests/system/test_seccomp_conditions.py).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from agent.core.problems import Problem
from agent.kinds.seccomp.model import STRICTNESS, Document, Rule

_WIDE: Final = 0xFFFFFFFF
# ABIs whose arguments have 32 bits; seccomp_data has 64, and libseccomp cuts the comparison.
_SHORT: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "X32", "ARM", "MIPS", "MIPSEL", "MIPS64N32", "MIPSEL64N32", "PPC", "S390")
)
_COMBINED: Final = frozenset({"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"})


def problems(document: Document) -> Iterator[Problem]:
    """Return what is wrong with the conditions of a document as it will be written."""
    yield from _tangled(document)
    short = sorted(_SHORT.intersection(document.architectures))
    for rule in document.rules:
        if short:
            yield from _too_wide(rule, short[0])
        yield from _high_bits(rule, document.default_action)


def _tangled(document: Document) -> Iterator[Problem]:
    """Refuse several rules of one call that libseccomp's decision tree mixes up.

    With ranges or inequalities beside rules of several conditions it drops some of them, or loops
    for ever while the filter is built. Right were, in 1,500 profiles each and more: one condition a
    rule; equalities only; and one rule of several equalities beside others of one condition.
    """
    tied: dict[str, list[Rule]] = defaultdict(list)
    for rule in document.rules:
        if rule.args:
            for name in rule.names:
                tied[name].append(rule)
    for name, rules in tied.items():
        if len(rules) == 1:
            continue
        several = [rule for rule in rules if len(rule.args) > 1]
        doubtful = rules if len(several) > 1 else several
        if not several or all(arg.op in _COMBINED for rule in doubtful for arg in rule.args):
            continue
        yield Problem(
            code="fails_open",
            where=rules[-1].where,
            what=f"{name[:60]} has several rules, some with several conditions, and not all of "
            "them equalities: libseccomp mixes such rules up, or never ends building the filter.",
            hint="Use SCMP_CMP_EQ and SCMP_CMP_MASKED_EQ only, or one rule, or one condition each.",
        )


def _too_wide(rule: Rule, abi: str) -> Iterator[Problem]:
    for number, arg in enumerate(rule.args):
        if max(arg.value, arg.value_two) > _WIDE:
            yield Problem(
                code="fails_open",
                where=f"{rule.where}.args[{number}]",
                what=f"On {abi} arguments have 32 bits, and the comparison loses the bits above.",
                hint=f"Leave {abi} out of architectures, or compare with 32 bits.",
            )


def _high_bits(rule: Rule, default: str) -> Iterator[Problem]:
    """Warn where a program chooses whether a comparison holds by bits that the kernel ignores."""
    denies = STRICTNESS.get(rule.action, 0) > STRICTNESS.get(default, 0)
    evaded = "SCMP_CMP_EQ" if denies else "SCMP_CMP_NE"
    for number, arg in enumerate(rule.args):
        if arg.op == evaded and arg.value <= _WIDE:
            yield Problem(
                code="condition_surprising",
                where=f"{rule.where}.args[{number}]",
                what="All 64 bits are compared; where the kernel takes an int, a program gets "
                "around this by setting bits above the lower 32.",
                hint="SCMP_CMP_MASKED_EQ with mask 4294967295 compares the lower 32 bits.",
            )
