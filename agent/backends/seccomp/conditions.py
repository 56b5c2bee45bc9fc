"""Rejects conditions that libseccomp compiles incorrectly, although their meaning is clear.
libseccomp merges all rules for one system call into a decision tree, and compares a 64-bit argument
in two halves (_db_tree_add and _db_tree_prune in db.c). For some combinations of rules, libseccomp
loses a branch of this tree. This module rejects the combinations that tests/system/seccomp_filter
found in libseccomp 2.5.1 to 2.6.1. The module also warns about comparisons that a program can
bypass by setting higher bits. Two rules that never apply to the same pod are never part of the same
filter, so the module does not compare them.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from agent.backends.seccomp import multiplex, syscalls
from agent.backends.seccomp.document import Answer, Condition, Document, Rule
from agent.backends.seccomp.meaning import SHORT_ABIS
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

_WIDE: Final = 0xFFFFFFFF
_EQUALITIES: Final = frozenset({"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"})
_UPPER_BOUNDS: Final = frozenset({"SCMP_CMP_LT", "SCMP_CMP_LE"})
_OPPOSITES: Final = (
    {"SCMP_CMP_EQ", "SCMP_CMP_NE"},
    {"SCMP_CMP_GT", "SCMP_CMP_LE"},
    {"SCMP_CMP_GE", "SCMP_CMP_LT"},
)
_OPERATIONS: Final = "(2) and its operations"
_RANGES: Final = _UPPER_BOUNDS | {"SCMP_CMP_GT", "SCMP_CMP_GE"}


def findings(document: Document, native: str) -> Iterator[Finding]:
    """Return findings about conditions that libseccomp compiles incorrectly or that a program can
    bypass.

    Args:
        document: the profile.
        native: the node's architecture, which the filter handles in addition to the listed
            architectures.
    """
    trees = [(name, rules) for name, rules in _trees(document, native) if len(rules) > 1]
    for name, rules in trees:
        yield from _tangled(name, rules)
        yield from _distant_bounds(name, rules)
        yield from _complements(name, rules)
    short = sorted(SHORT_ABIS.intersection(document.architectures))
    if short:
        yield from _shared_comparisons(trees, short)
    for rule in document.rules:
        if short:
            yield from _too_wide(rule, short[0])
        yield from _high_bits(rule, document.default)


def _trees(document: Document, native: str) -> Iterator[tuple[str, Sequence[Rule]]]:
    """Return each system call with the rules that libseccomp merges into one tree."""
    conditional: dict[str, list[Rule]] = defaultdict(list)
    for rule in document.effective_rules:
        if rule.args:
            for name in rule.names:
                conditional[name].append(rule)
    yield from conditional.items()
    if not multiplex.ABIS.isdisjoint((*document.architectures, native)):
        for through in multiplex.OPERATIONS:
            if not multiplex.is_decided(document, through):
                yield f"{through}{_OPERATIONS}", multiplex.merged(document, through)


def _tangled(name: str, rules: Sequence[Rule]) -> Iterator[Finding]:
    """Reject a range or inequality before the last condition of a rule if libseccomp would merge
    the tree of this rule incorrectly with the tree of another rule.

    Both outcomes of a range or inequality can lead to the next condition, so the tree contains the
    same subtree twice. If another rule extends this subtree, libseccomp loses rules, or never
    finishes building the filter.
    """
    for position, rule in enumerate(rules):
        last = max(arg.index for arg in rule.args)
        forks = [arg for arg in rule.args if arg.op not in _EQUALITIES and arg.index != last]
        others = [*rules[:position], *rules[position + 1 :]] if forks else ()
        for other in others:
            if not rule.may_meet(other):
                continue
            fork = next((arg for arg in forks if _shares_subtree(rule, other, arg)), None)
            if fork is None:
                continue
            yield Finding(
                code=FindingCode.FAILS_OPEN,
                location=f"{rule.where}.args",
                message=f"This rule for {name[:60]} compares argument {fork.index} with {fork.op}, "
                f"and also argument {last}. {other.where} compares argument {fork.index} too. "
                "libseccomp confuses such rules, or never finishes building the filter.",
                hint="Use SCMP_CMP_EQ or SCMP_CMP_MASKED_EQ for all but the last argument of a "
                "rule, or use a single rule.",
            )
            return


def _shares_subtree(rule: Rule, other: Rule, fork: Condition) -> bool:
    """Return whether libseccomp may merge a duplicate subtree of one rule with a subtree of the
    other rule.

    The conditions for a merge were measured with pairs of rules in tests/system/seccomp_filter.
    """
    met = next((arg for arg in other.args if arg.index == fork.index), None)
    if met is None:
        return False
    before, other_before = (_before(item, fork.index) for item in (rule, other))
    if before != other_before:
        is_longer = before < other_before or other_before < before
        return is_longer and met.op not in _EQUALITIES and _share_later(rule, other, fork.index)
    if met.value >> 32 != fork.value >> 32 or _are_opposite(fork, met):
        # The rules use different comparisons, or need different results of the same comparison.
        return False
    return met.op not in _EQUALITIES or fork.op == "SCMP_CMP_NE"


def _before(rule: Rule, index: int) -> frozenset[Condition]:
    return frozenset(arg for arg in rule.args if arg.index < index)


def _share_later(rule: Rule, other: Rule, index: int) -> bool:
    """Return whether two rules compare an argument after the given argument with the same value.

    For a mask, the result is always True, because a mask may select the same bits.
    """
    return any(
        first.index == second.index > index
        and (first.value == second.value or "SCMP_CMP_MASKED_EQ" in (first.op, second.op))
        for first, second in itertools.product(rule.args, other.args)
    )


def _distant_bounds(name: str, rules: Sequence[Rule]) -> Iterator[Finding]:
    """Reject an upper bound in combination with another bound if the upper 32 bits of the bounds
    differ.

    The tree compares the upper halves of both bounds on the same level, and libseccomp drops the
    second comparison.
    """
    bounds = [
        (position, rule, arg)
        for position, rule in enumerate(rules)
        for arg in rule.args
        if arg.op in _RANGES
    ]
    pairs = itertools.combinations(bounds, 2)
    for (position, rule, first), (other_position, other, second) in pairs:
        if (
            position != other_position
            and rule.may_meet(other)
            and first.index == second.index
            and first.value >> 32 != second.value >> 32
            and not _UPPER_BOUNDS.isdisjoint((first.op, second.op))
        ):
            yield Finding(
                code=FindingCode.FAILS_OPEN,
                location=other.where,
                message=f"Two rules compare argument {first.index} of {name[:60]} with "
                f"{first.value} and {second.value}, and at least one value is an upper bound. If "
                "the upper 32 bits of such values differ, libseccomp applies only parts of the "
                "rules.",
                hint="Compare with values that have the same upper 32 bits, or use one rule.",
            )
            return


def _complements(name: str, rules: Sequence[Rule]) -> Iterator[Finding]:
    """Reject opposite comparisons in two rules if one rule has more conditions before its
    comparison.

    For example, the rules `a and x == v` and `x != v` are rejected. libseccomp treats the longer
    rule as a special case of the shorter one, and drops it. If the actions differ, libseccomp only
    drops the longer rule if it comes after the shorter one.
    """
    operators = {arg.op for rule in rules for arg in rule.args}
    if not any(pair <= operators for pair in _OPPOSITES):
        return
    for position, rule in enumerate(rules):
        for other in rules[position + 1 :]:
            if not rule.may_meet(other):
                continue
            for first, second in itertools.product(rule.args, other.args):
                if _are_opposite(first, second) and _is_dropped(rule, other, first.index):
                    yield Finding(
                        code=FindingCode.FAILS_OPEN,
                        location=f"{other.where}.args",
                        message=f"{rule.where} compares argument {first.index} of {name[:60]} with "
                        f"{first.op} {first.value}, and this rule has the opposite comparison. "
                        "libseccomp drops the rule that has more conditions.",
                        hint=_first_step(rule, other) + "SCMP_CMP_GE with the next "
                        "number for SCMP_CMP_GT, SCMP_CMP_LT for SCMP_CMP_LE, or "
                        "SCMP_CMP_MASKED_EQ with a mask of all bits for SCMP_CMP_EQ.",
                    )
                    return


def _first_step(rule: Rule, later: Rule) -> str:
    if rule.answer == later.answer:
        return "Use an equivalent comparison in either rule: "
    return f"Move this rule in front of {rule.where}, or use an equivalent comparison: "


def _shared_comparisons(
    trees: Sequence[tuple[str, Sequence[Rule]]], abis: Sequence[str]
) -> Iterator[Finding]:
    """Reject a comparison in the rules of two system calls if another argument may be loaded before
    it. libseccomp writes equal instructions of two calls only once. Several jumps then lead to the
    shared instructions. To decide whether the argument must be loaded again, libseccomp considers
    only one of these jumps (_gen_bpf_build_bpf in gen_bpf.c). If libseccomp considers the wrong
    jump, the call with more conditions on its path compares the wrong argument. On 64-bit ABIs, the
    filter always compares the lower half first.
    """
    for abi in abis:
        existing = [(name, rules) for name, rules in trees if _has_tree(abi, name)]
        if error := _shared_comparison(existing, abi):
            yield error
            return


def _has_tree(abi: str, name: str) -> bool:
    """Return whether the filter of an ABI contains the tree of a system call."""
    if name.endswith(_OPERATIONS):
        return abi in multiplex.ABIS
    return syscalls.may_exist(abi, name)


def _shared_comparison(trees: Sequence[tuple[str, Sequence[Rule]]], abi: str) -> Finding | None:
    different = {frozenset(map(_meaning, rules)): (name, rules) for name, rules in trees}
    for (name, rules), (other, other_rules) in itertools.permutations(different.values(), 2):
        left = {arg.index for rule in rules for arg in rule.args if _is_followed(arg, rule)}
        shared = _suffixes(rules) & _suffixes(other_rules)
        arguments = {suffix[0].index for suffix, _ in shared} & left
        if arguments:
            return Finding(
                code=FindingCode.FAILS_OPEN,
                location=rules[-1].where,
                message=f"{name[:60]} and {other[:60]} share a comparison of argument "
                f"{min(arguments)}, but not all of their rules. On {abi} libseccomp writes the "
                "comparison once, and may compare the wrong argument.",
                hint=f"Give both calls the same rules, or remove {abi} from the architectures.",
            )
    return None


def _meaning(rule: Rule) -> tuple[frozenset[Condition], Answer]:
    return frozenset(rule.args), rule.answer


def _suffixes(rules: Sequence[Rule]) -> set[tuple[tuple[Condition, ...], Answer]]:
    """Return for each rule the last conditions, in the order of their arguments.

    Two system calls share the instructions of a condition only if equal conditions follow.
    """
    suffixes = set()
    for rule in rules:
        ordered = tuple(sorted(rule.args, key=lambda arg: arg.index))
        suffixes |= {(ordered[first:], rule.answer) for first in range(len(ordered))}
    return suffixes


def _is_followed(condition: Condition, rule: Rule) -> bool:
    """Return whether the rule also compares a later argument."""
    return any(arg.index > condition.index for arg in rule.args)


def _are_opposite(first: Condition, second: Condition) -> bool:
    return (first.index, first.value) == (second.index, second.value) and {
        first.op,
        second.op,
    } in _OPPOSITES


def _is_dropped(rule: Rule, later: Rule, index: int) -> bool:
    """Return whether libseccomp drops the longer of two rules, because before an argument it has
    all conditions of the other rule and further conditions.
    """
    before, later_before = (
        {
            arg
            for arg in item.args
            if arg.index < index and (arg.op, arg.value) != ("SCMP_CMP_MASKED_EQ", 0)
        }
        for item in (rule, later)
    )
    return before < later_before or (rule.answer == later.answer and later_before < before)


def _too_wide(rule: Rule, abi: str) -> Iterator[Finding]:
    for number, arg in enumerate(rule.args):
        if max(arg.value, arg.value_two) > _WIDE:
            yield Finding(
                code=FindingCode.FAILS_OPEN,
                location=f"{rule.where}.args[{number}]",
                message=f"On {abi} arguments have 32 bits, and the comparison ignores the higher "
                "bits of this value.",
                hint=f"Remove {abi} from the architectures, or compare with 32 bits.",
            )


def _high_bits(rule: Rule, default: Answer) -> Iterator[Finding]:
    """Warn if a program can bypass a comparison by setting bits that the kernel ignores."""
    denies = rule.answer.strictness > default.strictness
    evaded = "SCMP_CMP_EQ" if denies else "SCMP_CMP_NE"
    for number, arg in enumerate(rule.args):
        if arg.op == evaded and arg.value <= _WIDE:
            yield Finding(
                code=FindingCode.CONDITION_SURPRISING,
                location=f"{rule.where}.args[{number}]",
                message="The filter compares 64 bits. If the kernel uses only an int, a program "
                "can bypass this condition by setting higher bits.",
                hint="SCMP_CMP_MASKED_EQ with mask 4294967295 compares the lower 32 bits.",
            )
