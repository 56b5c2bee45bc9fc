"""The results of parser runs that no pass has collected yet.

compile_worker.py runs the parser and holds the lock that protects these results.
"""

from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor.compile_queue import CompileTask
from agent.backends.apparmor.policy_cache import ParserResult

# No parser starts while the results that no pass has collected are larger than this limit in bytes.
MAX_UNCOLLECTED_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """The final result of one profile text, with the key and the context of its submission."""

    key: str
    context: str
    result: ParserResult


class CompileOutcomes:
    """The results of the parser runs that ended since the last collection. Every caller must hold
    the lock of the compile worker.
    """

    def __init__(self) -> None:
        self.finished = 0
        """The number of profile texts that have received a result since the start of the
        process."""

        self.are_new = False
        """Whether a parser run has ended since the last collection, with or without a result."""

        self._results: list[CompileResult] = []

    @property
    def are_too_large(self) -> bool:
        """Whether the uncollected results use so much memory that no other parser run may start."""
        return sum(len(each.result.policy) for each in self._results) > MAX_UNCOLLECTED_BYTES

    def contains(self, key: str) -> bool:
        """Return whether the profile text with this key has a result."""
        return any(each.key == key for each in self._results)

    def record_run(self, task: CompileTask, result: ParserResult | None) -> None:
        """Record the end of a parser run; the result is None if the profile text waits for another
        run.
        """
        self.are_new = True
        if result is not None:
            self.finished += 1
            self._results.append(CompileResult(key=task.key, context=task.context, result=result))

    def collect(self) -> list[CompileResult]:
        """Return the uncollected results, and remove them from memory."""
        results, self._results = self._results, []
        self.are_new = False
        return results
