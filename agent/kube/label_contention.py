"""Detects that another client repeatedly removes the agent's labels.

The agent restores the labels each time, but with increasing delays, so that the two conflicting
clients do not flood the API server.
"""

from collections.abc import Callable, Mapping
from typing import Final

from agent.backoff import delay_seconds

# If labels were restored this many times within the window, there is contention.
CONTENTION_RESTORES: Final = 5
WINDOW_SECONDS: Final = 600.0
FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0


class LabelContention:
    """Counts how often the same labels are restored. Only one thread may use this object."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._applied: Mapping[str, str] = {}
        self._restored_at: list[float] = []
        self.next_restore_at = 0.0
        """The agent does not restore the same labels before this time of the clock."""

    @property
    def is_contended(self) -> bool:
        """Return whether the labels have been restored too often."""
        return len(self._restored_at) >= CONTENTION_RESTORES

    def record_applied(self, labels: Mapping[str, str]) -> None:
        """Record the labels of the last successful apply."""
        self._applied = labels

    def must_wait(self, observed: Mapping[str, str], desired: Mapping[str, str]) -> bool:
        """Record an attempt to set labels, and return whether to wait until `next_restore_at`.

        Only labels that were passed to `record_applied` have to wait. Other labels are set
        immediately.
        """
        now = self._clock()
        self._restored_at = [at for at in self._restored_at if now - at < WINDOW_SECONDS]
        if desired != self._applied or observed == desired:
            return False
        if now < self.next_restore_at:
            return True
        self._restored_at.append(now)
        excess = len(self._restored_at) - CONTENTION_RESTORES + 1
        if excess > 0:
            self.next_restore_at = now + delay_seconds(
                excess, first_seconds=FIRST_SECONDS, longest_seconds=LONGEST_SECONDS, jitter=0.5
            )
        return False
