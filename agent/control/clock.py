"""The protocol for the clock of the controller and its parts.

The module `time` implements this protocol. Tests pass their own clock to control the time.
"""

from typing import Protocol


class Clock(Protocol):
    """Returns the current time. Monotonic seconds are for measuring durations; Unix seconds are for
    timestamps.
    """

    def monotonic(self) -> float:
        """Return the time in monotonic seconds."""

    def time(self) -> float:
        """Return the time in Unix seconds."""
