"""Compares the rules of a profile with each other, and limits the size of the filter.

Two rules contradict each other if they return different results for the same arguments. The module
`regions` decides whether there are arguments that match both rules. Rules are not compared if they
never apply to the same pod.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from agent.backends.seccomp import regions
from agent.backends.seccomp.document import Answer, Document, Rule
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

# This is BPF_MAXINSNS in linux/bpf_common.h, minus the instructions that runc adds.
_MOST_INSTRUCTIONS: Final = 4096 - 100


def size(document: Document) -> Iterator[Finding]:
    """Reject a profile if its filter may be larger than the kernel allows.

    A runtime would spend seconds of CPU time on such a filter at every start of a container.
    """
    each = sum(
        len(rule.names) * (3 + 6 * len(rule.args) if rule.args else 2) for rule in document.rules
    )
    bound = max(1, len(document.architectures)) * (each + 16)
    if bound > _MOST_INSTRUCTIONS:
        message = (
            f"The filter may need {bound} instructions; the kernel accepts 4096, including the "
            "instructions of runc."
        )
        hint = "Use fewer conditions or fewer architectures."
        yield Finding(
            code=FindingCode.FILTER_TOO_LARGE, location="syscalls", message=message, hint=hint
        )


def findings(document: Document) -> Iterator[Finding]:
    """Return an error for each pair of contradicting rules in a document."""
    by_name: dict[str, list[Rule]] = defaultdict(list)
    for rule in document.rules:
        for name in rule.names:
            by_name[name].append(rule)
    for name, rules in by_name.items():
        if len(rules) > 1:
            plain = [rule for rule in rules if not rule.args]
            conditional = [rule for rule in rules if rule.args]
            yield from _conflicts(name, plain, document.default)
            yield from _hidden(name, plain, conditional, document.default)
            yield from _overlaps(name, conditional)


def _disagree(first: Rule, second: Rule) -> bool:
    """Return whether two rules return different results and can apply to the same pod."""
    return first.answer != second.answer and first.may_meet(second)


def _conflicts(name: str, plain: list[Rule], default: Answer) -> Iterator[Finding]:
    """Reject two different rules for one system call if neither has conditions.

    If one of the rules depends on capabilities, as in Podman's default profile, both rules are
    accepted, because every runtime applies the first of them.
    """
    for position, rule in enumerate(plain):
        if rule.depends_on_capabilities:
            continue
        first = next((r for r in plain[:position] if not r.depends_on_capabilities), rule)
        if not _disagree(first, rule):
            continue
        winner, reason = (
            (rule, f"runtimes ignore {first.where}, which equals the default action")
            if first.answer == default
            else (first, f"runtimes apply only {first.where}")
        )
        yield Finding(
            code=FindingCode.BAD_VALUE,
            location=f"{rule.where}.names",
            message=f"{rule.where} and {first.where} have different actions for {name[:60]}: "
            f"{reason}.",
            hint=f"Remove {name[:60]} from the rule that is wrong; {winner.where} is in effect.",
        )


def _hidden(
    name: str, plain: list[Rule], conditional: list[Rule], default: Answer
) -> Iterator[Finding]:
    """Report rules with conditions that have no effect because of a rule without conditions."""
    for rule in conditional:
        for other in plain:
            if other.answer == default or not _disagree(other, rule):
                continue
            is_stricter = rule.answer.strictness > other.answer.strictness
            yield Finding(
                code=FindingCode.FAILS_OPEN if is_stricter else FindingCode.CONDITION_SURPRISING,
                location=rule.where,
                message=f"{other.where} decides {name[:60]} without a condition, so that this "
                "rule has no effect.",
                hint=f"Remove {name[:60]} from {other.where}, or remove this rule.",
            )
            break


def _overlaps(name: str, conditional: list[Rule]) -> Iterator[Finding]:
    """Reject two rules with conditions if they return different results for the same arguments.

    With runc and crun, libseccomp then applies the rule that allows more. For example, if a rule
    with ERRNO and a rule with LOG match, the kernel runs the system call.
    """
    for position, rule in enumerate(conditional):
        for other in conditional[:position]:
            if not _disagree(other, rule):
                continue
            arguments = regions.example((*other.args, *rule.args))
            if arguments is None:
                continue
            shown = ", ".join(
                f"argument {index} is {value}" for index, value in sorted(arguments.items())
            )
            yield Finding(
                code=FindingCode.FAILS_OPEN,
                location=rule.where,
                message=f"This rule and {other.where} both match {name[:60]} where {shown}, and "
                "have different actions. libseccomp may apply the more permissive rule.",
                hint="Change the conditions so that the rules cannot match the same arguments.",
            )
