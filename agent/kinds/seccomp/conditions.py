"""Conditions that libseccomp does not apply as they read.

libseccomp merges all rules of one call into a decision tree, and compares a 64-bit argument in two
halves (db.c: _db_tree_add, _db_tree_prune). Some combinations of rules lose a branch in there. This
module rejects those that tests/system/seccomp_filter found, for every libseccomp from 2.5.1 to
2.6.1, and warns of comparisons that the kernel reads otherwise than a person does.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from agent.core.problems import Problem
from agent.kinds.seccomp.model import STRICTNESS, Condition, Document, Rule, answer

_WIDE: Final = 0xFFFFFFFF
# ABIs whose arguments have 32 bits; seccomp_data has 64, and libseccomp cuts the comparison.
_SHORT: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "X32", "ARM", "MIPS", "MIPSEL", "MIPS64N32", "MIPSEL64N32", "PPC", "S390")
)
_EQUALITIES: Final = frozenset({"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"})
_UPPER_BOUNDS: Final = frozenset({"SCMP_CMP_LT", "SCMP_CMP_LE"})
_RANGES: Final = _UPPER_BOUNDS | {"SCMP_CMP_GT", "SCMP_CMP_GE"}


def problems(document: Document) -> Iterator[Problem]:
    """Return what is wrong with the conditions of a document as it will be written."""
    default = answer(document.default_action, document.default_errno_ret)
    conditional: dict[str, list[Rule]] = defaultdict(list)
    for rule in document.rules:
        if rule.args and answer(rule.action, rule.errno_ret) != default:
            for name in rule.names:
                conditional[name].append(rule)
    for name, rules in conditional.items():
        if len(rules) > 1:
            yield from _tangled(name, rules)
            yield from _distant_bounds(name, rules)
            yield from _complements(name, rules)
    short = sorted(_SHORT.intersection(document.architectures))
    for rule in document.rules:
        if short:
            yield from _too_wide(rule, short[0])
        yield from _high_bits(rule, document.default_action)


def _tangled(name: str, rules: Sequence[Rule]) -> Iterator[Problem]:
    """Reject ranges or inequalities in several rules, some of which have several conditions.

    libseccomp drops some of them, or never finishes building the filter.
    """
    several = [rule for rule in rules if len(rule.args) > 1]
    doubtful = rules if len(several) > 1 else several
    if all(arg.op in _EQUALITIES for rule in doubtful for arg in rule.args):
        return
    yield Problem(
        code="fails_open",
        where=rules[-1].where,
        what=f"{name[:60]} has several rules, some with several conditions, and not all of "
        "them equalities: libseccomp mixes such rules up, or never ends building the filter.",
        hint="Use SCMP_CMP_EQ and SCMP_CMP_MASKED_EQ only, or one rule, or one condition each.",
    )


def _distant_bounds(name: str, rules: Sequence[Rule]) -> Iterator[Problem]:
    """Reject an upper bound together with a bound that has other upper 32 bits.

    The comparisons of the upper halves end up in one level of the tree, where the one of the
    upper bound hides the other.
    """
    for first, second, index in _pairs_of_conditions(rules, _RANGES, _RANGES):
        if not _UPPER_BOUNDS.isdisjoint((first.op, second.op)) and (
            first.value >> 32 != second.value >> 32
        ):
            yield Problem(
                code="fails_open",
                where=rules[-1].where,
                what=f"Two rules compare argument {index} of {name[:60]} with {first.value} and "
                f"{second.value}, one of them from above: where the upper 32 bits of such values "
                "differ, libseccomp applies only parts of the rules.",
                hint="Compare with values that have the same upper 32 bits, or use one rule.",
            )
            return


def _complements(name: str, rules: Sequence[Rule]) -> Iterator[Problem]:
    """Reject `a and x == v` beside `x != v` with the same action.

    libseccomp takes the longer rule for a special case of the other one, and drops it.
    """
    several = [rule for rule in rules if len(rule.args) > 1]
    single = [rule for rule in rules if len(rule.args) == 1 and rule.args[0].op == "SCMP_CMP_NE"]
    for rule in several:
        for other in single:
            excluded = other.args[0]
            redundant = any(
                (arg.index, arg.op, arg.value) == (excluded.index, "SCMP_CMP_EQ", excluded.value)
                for arg in rule.args
            )
            same = answer(rule.action, rule.errno_ret) == answer(other.action, other.errno_ret)
            if redundant and same:
                yield Problem(
                    code="fails_open",
                    where=f"{rule.where}.args",
                    what=f"{other.where} has the same action for every other value of argument "
                    f"{excluded.index} of {name[:60]}: libseccomp drops this rule then.",
                    hint=f"Remove the condition on argument {excluded.index} here; "
                    "the two rules mean the same without it.",
                )


def _pairs_of_conditions(
    rules: Sequence[Rule], first_operators: frozenset[str], second_operators: frozenset[str]
) -> Iterator[tuple[Condition, Condition, int]]:
    """Return pairs of conditions of two different rules on the same argument, and its index."""
    for position, rule in enumerate(rules):
        for other in rules[position + 1 :]:
            for first in rule.args:
                for second in other.args:
                    if (
                        first.index == second.index
                        and first.op in first_operators
                        and second.op in second_operators
                    ):
                        yield first, second, first.index


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
