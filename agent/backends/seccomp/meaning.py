"""The meaning of a profile: how the kernel responds to each system call, exactly.

`Meaning` states it for one machine, one kernel version and one capability set. Every comparison
of rules, and every warning about what a profile allows, is a question to this module. It is pure,
and it does not know what libseccomp compiles wrong: see `faults`, `multiplex` and `anchor`. The
tests compare it with the filters that every available libseccomp builds.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp import multiplex, regions, syscalls
from agent.backends.seccomp.document import Answer, Document, Rule

# ABIs whose arguments have 32 bits. seccomp_data has 64, and libseccomp compares the lower half.
SHORT_ABIS: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ("X86", "X32", "ARM", "MIPS", "MIPSEL", "MIPS64N32", "MIPSEL64N32", "PPC", "S390")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMeaning:
    """How the kernel responds to one system call of one ABI."""

    cases: tuple[Rule, ...]  # the rules with conditions; where two hold, both have one answer
    otherwise: Answer  # the response where no case holds
    decided_by: Rule | None = None  # the rule without conditions, if there is one
    largest: int = regions.LARGEST  # the largest value of an argument

    def answers(self, arguments: Sequence[int]) -> frozenset[Answer]:
        """Return the possible responses: one, unless rules contradict each other."""
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
        """Return all responses that some arguments lead to."""
        possible = {
            rule.answer
            for rule in self.cases
            if regions.example(rule.args, self.largest) is not None
        }
        always = any(regions.implies((), rule.args, self.largest) for rule in self.cases)
        return frozenset(possible if always else possible | {self.otherwise})

    @property
    def is_always_denied(self) -> bool:
        """Whether the kernel runs the call with no arguments at all."""
        return not any(one.is_permissive for one in self.every_answer())

    @property
    def is_always_allowed(self) -> bool:
        """Whether the kernel runs the call with all arguments."""
        return all(one.is_permissive for one in self.every_answer())


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The responses of a filter to all calls of all ABIs that it handles."""

    document: Document  # resolved for the node and one capability set
    abis: tuple[str, ...]  # the native ABI first; the kernel kills calls of all others
    is_known: Callable[[str], bool] = lambda _: True  # runtimes skip names that libseccomp lacks

    @functools.cached_property
    def _rules(self) -> Mapping[str, list[Rule]]:
        found: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.document.effective_rules:
            for name in rule.names:
                if self.is_known(name):
                    found[name].append(rule)
        return found

    def call(self, abi: str, name: str) -> CallMeaning:
        """Return how the kernel responds to a call that the ABI has.

        libseccomp lets a rule without conditions decide for all arguments of its call.
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
        """Return the responses to a call with given arguments: one, for an accepted profile."""
        return self.call(abi, name).answers(arguments)

    def calls(self, abi: str) -> frozenset[str]:
        """Return the names of the calls that the ABI has, and that libseccomp 2.5.4 knows.

        Newer calls are among them if a rule names them.
        """
        usual = syscalls.of(abi)
        return usual | {
            name for name in self._rules if name not in usual and syscalls.number(abi, name) >= 0
        }


def of(document: Document, abis: Sequence[str], capabilities: Collection[str] = ()) -> Meaning:
    """Return the meaning of a document that is resolved for the node.

    abis: the ABIs of the node's kernel, the native one first. The filter handles the native one
    and those that the profile lists.
    """
    rules = tuple(rule for rule in document.rules if rule.applies_with(capabilities))
    handled = (abis[0], *(abi for abi in document.architectures if abi != abis[0]))
    return Meaning(document=replace(document, rules=rules), abis=tuple(dict.fromkeys(handled)))
