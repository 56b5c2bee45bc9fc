"""Defines the exact meaning of a profile: the kernel's response to each system call.

A `Meaning` is valid for one machine, one kernel version and one capability set. Other modules use
this meaning to compare profiles and to warn about allowed system calls. The module performs no I/O.
A `Meaning` ignores the faults of libseccomp, which the modules `conditions`, `multiplex` and
`anchor` handle. The tests compare each `Meaning` with the filters that every available version of
libseccomp builds.
"""

import functools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp import multiplex, regions, syscalls
from agent.backends.seccomp.document import Answer, Document, Rule

# The system calls of these ABIs have arguments of 32 bits. The arguments in seccomp_data have 64
# bits, and libseccomp compares the lower half.
SHORT_ABIS: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "X32", "ARM", "MIPS", "MIPSEL", "MIPS64N32", "MIPSEL64N32", "PPC", "S390")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMeaning:
    """The kernel's responses to one system call of one ABI."""

    cases: tuple[Rule, ...]  # The rules with conditions. Overlapping rules have the same action.
    otherwise: Answer  # The response if no rule in `cases` applies.
    decided_by: Rule | None = None  # The rule without conditions, if there is one.
    largest: int = regions.LARGEST  # The largest value that an argument can have.

    def answers(self, arguments: Sequence[int]) -> frozenset[Answer]:
        """Return the possible responses. The result contains several responses only if rules
        contradict each other.
        """
        holding = {
            rule.answer
            for rule in self.cases
            if all(
                arguments[condition.index] & self.largest in regions.words(condition)
                for condition in rule.args
            )
        }
        return frozenset(holding or {self.otherwise})

    def every_answer(self) -> frozenset[Answer]:
        """Return every response that some arguments cause."""
        possible = {
            rule.answer
            for rule in self.cases
            if regions.example(rule.args, self.largest) is not None
        }
        always = any(regions.implies((), rule.args, self.largest) for rule in self.cases)
        return frozenset(possible if always else possible | {self.otherwise})

    @property
    def is_always_denied(self) -> bool:
        """Whether the kernel denies the system call with all arguments."""
        return not any(answer.is_permissive for answer in self.every_answer())

    @property
    def is_always_allowed(self) -> bool:
        """Whether the kernel allows the system call with all arguments."""
        return all(answer.is_permissive for answer in self.every_answer())


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The responses of a filter to all system calls of the ABIs that it handles."""

    # The profile after its conditions were resolved for the node and one capability set.
    document: Document
    # The native ABI is the first one; the kernel kills threads that use other ABIs.
    abis: tuple[str, ...]

    @functools.cached_property
    def _rules(self) -> Mapping[str, list[Rule]]:
        by_name: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.document.effective_rules:
            for name in rule.names:
                by_name[name].append(rule)
        return by_name

    def call(self, abi: str, name: str) -> CallMeaning:
        """Return the kernel's responses to a system call that the ABI has.

        If a rule without conditions exists for the system call, libseccomp applies this rule to all
        arguments.
        """
        largest = regions.SHORT if abi in SHORT_ABIS else regions.LARGEST
        rules = [*self._rules.get(name, ())]
        plain = next((rule for rule in rules if not rule.args), None)
        if plain is not None:
            return CallMeaning(cases=(), otherwise=plain.answer, decided_by=plain, largest=largest)
        if abi in multiplex.ABIS and name in multiplex.OPERATIONS:
            rules = multiplex.merged(self.document, name)
        return CallMeaning(cases=tuple(rules), otherwise=self.document.default, largest=largest)

    def answers(self, abi: str, name: str, arguments: Sequence[int]) -> frozenset[Answer]:
        """Return the responses to a system call with these arguments. For an accepted profile, the
        result contains only one response.
        """
        return self.call(abi, name).answers(arguments)

    def calls(self, abi: str) -> frozenset[str]:
        """Return the names of the ABI's system calls that libseccomp 2.5.4 knows or that a rule
        contains.
        """
        usual = syscalls.of(abi)
        return usual | {
            name for name in self._rules if name not in usual and syscalls.number(abi, name) >= 0
        }


def of(document: Document, abis: Sequence[str], capabilities: Collection[str] = ()) -> Meaning:
    """Return the meaning of a document whose conditions were resolved for the node.

    The filter handles the native ABI and all ABIs that the profile lists.

    Args:
        document: the profile without conditions on the node.
        abis: the ABIs of the node's kernel, with the native ABI first.
        capabilities: the capabilities of the pod.
    """
    rules = tuple(rule for rule in document.rules if rule.applies_with(capabilities))
    handled = (abis[0], *(abi for abi in document.architectures if abi != abis[0]))
    return Meaning(document=replace(document, rules=rules), abis=tuple(dict.fromkeys(handled)))
