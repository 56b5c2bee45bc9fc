"""Records the heartbeat of the main loop.

The main thread records a beat after each key and each action of a pass, and whenever it starts to
wait. The liveness probe depends only on the time of the last beat, and never on the API server.
Each process has one object of this class.
"""

from collections.abc import Callable


class Heartbeat:
    """Stores the time of the last beat of the main loop. Any thread may read this object."""

    def __init__(
        self,
        clock: Callable[[], float],
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        """Create a heartbeat, and record the first beat.

        Args:
            clock: returns monotonic seconds.
            progress: shows the user of a command the kind of work, the number of its finished parts
                and the total number of parts.
        """
        self.clock = clock
        self.progress = progress
        self.last_beat = clock()
        """The time of the last beat, in monotonic seconds."""

    def beat(self) -> float:
        """Record a beat, and return the current time."""
        self.last_beat = self.clock()
        return self.last_beat

    def silent_seconds(self) -> float:
        """Return the seconds since the last beat."""
        return self.clock() - self.last_beat
