"""Computes back-off delays, which double after each consecutive failure.

All parts of the program use this module. It only computes delays: it never sleeps and does not read
a clock, so the caller adds the delay to its own time. A random part of each delay prevents many
agents from sending their requests at the same moment.
"""

import random
from dataclasses import dataclass

# A larger exponent could overflow a float. The delay reaches its maximum long before that.
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
    """The delay after many failures."""

    jitter: float = 0.0
    """The fraction of each delay that is random: 0.5 makes a delay of 8 s last 4 s to 8 s."""

    failures: int = 0
    """The number of consecutive failures."""

    def next_delay(self) -> float:
        """Record one more failure, and return how many seconds to wait before the next attempt."""
        self.failures += 1
        return delay_seconds(
            self.failures,
            first_seconds=self.first_seconds,
            longest_seconds=self.longest_seconds,
            jitter=self.jitter,
        )

    def reset(self) -> None:
        """Reset the count of failures, so that the next delay is the initial delay."""
        self.failures = 0
