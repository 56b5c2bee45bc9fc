"""The protocol for the clock of the controller and its parts.

The standard module `time` implements this protocol. Tests control the time by passing their own
clock.
"""

from typing import Protocol


class Clock(Protocol):
    """Provides the current time. Monotonic seconds are for measuring durations; Unix seconds are
    for timestamps.
    """

    def monotonic(self) -> float:
        """Return the time in monotonic seconds."""

    def time(self) -> float:
        """Return the time in Unix seconds."""
