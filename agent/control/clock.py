"""The clock that the controller and its parts read.

The module `time` implements the protocol. The controller reads the time only through this protocol,
so that tests can control the time.
"""

from typing import Protocol


class Clock(Protocol):
    """Returns times. Monotonic seconds measure durations; Unix seconds are for people."""

    def monotonic(self) -> float:
        """Return monotonic seconds."""

    def time(self) -> float:
        """Return Unix seconds."""
