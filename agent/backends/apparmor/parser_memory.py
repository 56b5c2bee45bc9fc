"""Divides the free memory of the container among the running parsers.

memory_budget.py reads the limits and the use of memory.
"""

from collections.abc import Callable

from agent.backends.apparmor.memory_budget import MIN_PARSER_BYTES


class ParserMemory:
    """The memory that running parsers may use. Every caller must hold the lock of the compile
    worker.
    """

    def __init__(self, free_memory: Callable[[], int]) -> None:
        """Create a budget while no parser is running.

        Args:
            free_memory: returns the memory that new parsers may use now, without the memory that
                running parsers already use.
        """
        self._free_memory = free_memory
        self._reserved: dict[int, int] = {}
        """Maps the number of each running task to the bytes that are reserved for it."""

        self._idle_memory = 0
        """The free memory when a parser last started while no other parser was running."""

    @property
    def is_free(self) -> bool:
        """Whether no parser is running."""
        return not self._reserved

    def is_exhausted(self) -> bool:
        """Return whether the container has no memory left. The caller does not need the lock."""
        return not self._free_memory()

    def left(self) -> int:
        """Return how many bytes one more parser may use, or 0 if it must wait for a running parser.

        Each running parser may use all of the memory that is reserved for it. Running parsers
        already use some of their reserved memory. The reservations are therefore subtracted from
        the free memory that was measured while no parser ran. A parser may get less than the
        minimum only if no other parser runs.
        """
        free = self._free_memory()
        if not self._reserved:
            self._idle_memory = free
            return free
        left = min(free, self._idle_memory - sum(self._reserved.values()))
        return left if left >= MIN_PARSER_BYTES else 0

    def reserve(self, number: int, memory: int, *, may_share: bool) -> int:
        """Reserve memory for a task, and return the memory that the task may use.

        Args:
            number: the number of the task.
            memory: how many bytes are left.
            may_share: whether to leave the minimum for a second parser, if there is enough memory.
        """
        if may_share and not self._reserved and memory >= 2 * MIN_PARSER_BYTES:
            memory -= MIN_PARSER_BYTES
        self._reserved[number] = memory
        return memory

    def release(self, number: int) -> None:
        """Release the memory of a task that has ended."""
        del self._reserved[number]
