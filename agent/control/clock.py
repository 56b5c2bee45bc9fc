"""The clock that the controller and its parts read.

The module `time` fulfils the protocol. Nothing else in the controller asks the system for the time,
so a test decides how time passes.
"""

from typing import Protocol


class Clock(Protocol):
    """Returns times. Monotonic seconds measure durations; Unix seconds are for people."""

    def monotonic(self) -> float:
        """Return monotonic seconds."""

    def time(self) -> float:
        """Return Unix seconds."""
