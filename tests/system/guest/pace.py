"""Scales time limits for a busy machine, on the host and inside the virtual machine.

All time limits in tests are given for an idle machine. The module measures a fixed amount of work
when a process sets its first limit, and again whenever a limit is about to expire. If this work
takes four times as long as on an idle machine, each limit becomes four times as long. The module
measures the work by the clock and not by CPU time, because a guest cannot see how busy its host is.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")
_Text = TypeVar("_Text", str, bytes)

IN_GUEST = Path("/vminit").exists()
ROUNDS = 20_000
# The duration of the work on an idle machine with two cores and Python 3.11, on the host and in a
# guest that QEMU emulates (measured in November 2026).
IDLE_SECONDS = 0.014 if IN_GUEST else 0.001
SAMPLE_SECONDS = 0.2
SLOWEST = 20.0  # No limit is multiplied by more than this factor, so that a failing test ends.
# If a step of a wait takes longer than this, the whole machine was probably paused.
STEP_SECONDS = 0.5 if IN_GUEST else 5.0


class Pace:
    """Measures how much slower than an idle machine this machine is.

    Args:
        work: A function that performs a fixed amount of work.
        idle_seconds: The duration of the work on an idle machine.
        clock: A function that returns the time in seconds.
    """

    def __init__(
        self, work: Callable[[], object], idle_seconds: float, clock: Callable[[], float]
    ) -> None:
        self.work, self.idle_seconds, self.clock = work, idle_seconds, clock
        self.slowest = 0.0  # There is no measurement yet.

    def measure(self) -> float:
        """Measure the work, and return the largest factor of all measurements."""
        begin, times = self.clock(), 0
        while self.clock() - begin < SAMPLE_SECONDS:
            self.work()
            times += 1
        slow = (self.clock() - begin) / times / self.idle_seconds
        self.slowest = max(1.0, self.slowest, min(slow, SLOWEST))
        return self.slowest

    def measured(self) -> float:
        """Return the largest measured factor. Before the first call of `measure`, measure
        the work.
        """
        return self.slowest or self.measure()


def _work() -> None:
    total = 0
    for number in range(ROUNDS):
        total += number * number % 7


def _clock() -> float:
    return time.monotonic()


PACE = Pace(_work, IDLE_SECONDS, _clock)


class Limit:
    """A time limit that starts when the object is created. The limit is in seconds of an idle
    machine.
    """

    def __init__(self, seconds: float, pace: Pace = PACE) -> None:
        self.limit, self.pace = seconds, pace
        pace.measured()
        self.spent, self.last = 0.0, pace.clock()

    def seconds(self) -> float:
        """Return the number of seconds since the start. A pause of the whole machine counts as one
        step.
        """
        now = self.pace.clock()
        self.spent += min(now - self.last, STEP_SECONDS)
        self.last = now
        return self.spent

    def expired(self) -> bool:
        """Return whether the limit has expired, after scaling it to the speed of this machine."""
        if self.seconds() <= self.limit * self.pace.measured():
            return False
        return self.spent > self.limit * self.pace.measure()

    def __str__(self) -> str:
        return f"{self.limit:g} s (this machine: {self.pace.slowest:.1f} times slower than idle)"


def scaled(seconds: float) -> float:
    """Scale a time limit for an idle machine to the current speed of this machine."""
    return seconds * PACE.measured()


def in_time(taken: float, seconds: float, pace: Pace = PACE) -> bool:
    """Return whether a duration is within a limit, after scaling the limit to the speed of this
    machine.
    """
    return taken < seconds * pace.measured() or taken < seconds * pace.measure()


def until(
    condition: Callable[[], _Result | None],
    what: str | Callable[[], str],
    seconds: float = 30.0,
    interval: float = 0.02,
) -> _Result:
    """Check a condition repeatedly, and return its first true result.

    Args:
        condition: A function without arguments.
        what: A description of the condition for the error message, or a function that returns this
            description.
        seconds: The limit in seconds, for an idle machine.
        interval: The pause between two checks.
    """
    limit = Limit(seconds)
    while True:
        result = condition()
        if result:
            return result
        if limit.expired():
            raise AssertionError(f"not within {limit}: {what() if callable(what) else what}")
        time.sleep(interval)


def pause(seconds: float) -> None:
    """Wait for a number of seconds, scaled to the speed of this machine."""
    limit = Limit(seconds)
    while not limit.expired():
        time.sleep(0.002)


def ended(process: subprocess.Popen[_Text], seconds: float = 30.0) -> tuple[int, float]:
    """Wait until a process ends. Return its exit status and the number of seconds that the wait
    took.
    """
    limit = Limit(seconds)
    while process.poll() is None:
        if limit.expired():
            raise subprocess.TimeoutExpired(process.args, seconds)
        time.sleep(0.002)
    return process.returncode, limit.seconds()
