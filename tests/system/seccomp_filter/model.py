"""Returns the results of the agent's model of a profile, through the interface of the reference.

The reference and the model were written independently of each other, and both must permit every
result of a built filter.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from agent.backends.seccomp import meaning, syntax
from agent.backends.seccomp.document import Answer
from tests.system.seccomp_filter.libraries import Library
from tests.system.seccomp_filter.reference import Reference
from tests.system.seccomp_filter.runtimes import (
    ENOSYS,
    NUMBERED_ACTIONS,
    Profile,
    Runtime,
    action_value,
)


class Model(Reference):
    """A reference that takes its results from agent.backends.seccomp.meaning."""

    def __init__(
        self, library: Library, profile: Profile, runtime: Runtime, native: str, body: str
    ) -> None:
        super().__init__(library, profile, runtime, native)
        document, findings = syntax.read(body.encode())
        if document is None:
            raise ValueError(f"The model cannot read the profile: {findings}")
        self._calls: dict[tuple[str, str], meaning.CallMeaning] = {}
        # Runtimes skip names that libseccomp does not know.
        rules = [
            replace(rule, names=tuple(name for name in rule.names if library.resolves(name) != -1))
            for rule in document.rules
        ]
        self._meaning = meaning.Meaning(
            document=replace(document, rules=tuple(rules)), abis=self.architectures
        )

    def answers(self, architecture: str, number: int, arguments: Sequence[int]) -> Collection[int]:
        """Return the results that the model permits."""
        newest = self.newest.get(architecture)
        if newest is not None and number > newest:
            return (NUMBERED_ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS,)
        name = self.tables[architecture].get(number, "")
        call = self._calls.get((architecture, name))
        if call is None:
            call = self._calls[architecture, name] = self._meaning.call(architecture, name)
        return {_number(item) for item in call.answers(arguments)}


def _number(answer: Answer) -> int:
    return action_value(answer.action, answer.errno)
