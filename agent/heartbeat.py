"""The sign of life of the main loop.

The main thread beats between the keys and the actions of a pass, and whenever it starts to wait.
Liveness depends on these beats alone, never on the API server. Each process has one heartbeat.
"""

from collections.abc import Callable


class Heartbeat:
    """Remembers when the main loop last showed that it runs. Any thread may read it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Count the construction as the first beat.

        Args:
            clock: returns monotonic seconds.
        """
        self.clock = clock
        self.last_beat = clock()
        """When the loop last showed that it runs, in monotonic seconds."""

    def beat(self) -> float:
        """Record that the loop runs, and return the current time."""
        self.last_beat = self.clock()
        return self.last_beat

    def silent_seconds(self) -> float:
        """Return how long the loop has shown no sign of life."""
        return self.clock() - self.last_beat
