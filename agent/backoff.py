"""Computes back-off delays, which double after each consecutive failure.

Every part of the program that waits after failures uses this module. The module itself never
sleeps. A random part of each delay prevents many agents from sending their requests at the same
moment.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

# The exponent is limited, because a larger exponent could overflow a float. The delay reaches its
# maximum long before this limit.
_MAX_DOUBLINGS = 60


def delay_seconds(
    failures: int, *, first_seconds: float, longest_seconds: float, jitter: float = 0.0
) -> float:
    """Return the delay after consecutive failures, for callers that count the failures themselves.

    Args:
        failures: the number of failures, 1 or more.
        first_seconds: see the class Backoff.
        longest_seconds: see the class Backoff.
        jitter: see the class Backoff.
    """
    longest = min(longest_seconds, first_seconds * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    return random.SystemRandom().uniform(longest * (1.0 - jitter), longest)


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Counts consecutive failures of one operation. Only one thread may use an instance."""

    first_seconds: float
    """The delay after the first failure."""

    longest_seconds: float
    """The longest delay, which applies after many failures."""

    jitter: float = 0.0
    """The fraction of each delay that is random. With 0.5, a delay of 8 s lasts between 4 s and 8
    s."""

    failures: int = 0
    """The number of consecutive failures."""

    def next_delay(self) -> float:
        """Record another failure, and return the seconds to wait before the next attempt."""
        self.failures += 1
        return delay_seconds(
            self.failures,
            first_seconds=self.first_seconds,
            longest_seconds=self.longest_seconds,
            jitter=self.jitter,
        )

    def reset(self) -> None:
        """Reset the failure count, so that the next delay is the initial delay."""
        self.failures = 0


class RetryTimer:
    """The earliest time at which a failed operation is repeated. Only one thread may use a
    timer.
    """

    def __init__(self, backoff: Backoff, clock: Callable[[], float]) -> None:
        """Create a timer with which the first attempt is due immediately.

        Args:
            backoff: the delays after consecutive failures.
            clock: returns the monotonic time in seconds.
        """
        self.backoff = backoff
        self.clock = clock
        self.due_at = 0.0

    @property
    def seconds_left(self) -> float:
        """The seconds until the operation may be repeated."""
        return max(0.0, self.due_at - self.clock())

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed."""
        return self.backoff.failures > 0

    def record_failure(self, at_least: float = 0.0) -> None:
        """Record a failure, and delay the next attempt by at least the given number of seconds."""
        self.due_at = self.clock() + max(at_least, self.backoff.next_delay())

    def record_success(self) -> None:
        """Record a success, so that the next failure causes the initial delay."""
        self.backoff.reset()

    def postpone(self, due_at: float) -> None:
        """Delay the next attempt until the given time; the delay does not count as a failure."""
        self.due_at = due_at
