"""Measures how long the tasks on this machine wait for a CPU.

While a CPU is idle, the tests enforce the documented time limits of the agent. If no CPU is idle,
the machine itself may cause a late result, so the tests allow more time.
"""

import os
import re
import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")  # This file is missing on some kernels.
STAT = Path("/proc/stat")
SHORT = 0.6  # the fraction of the time during which a task waited for a CPU
WIDER = 5


def waiting_seconds():
    """Return the number of seconds in which at least one task waited for a CPU.

    If the kernel does not report this number, return the number of seconds in which no CPU was
    idle. Time that a hypervisor gave to other machines (steal) does not count as idle.
    """
    if PRESSURE.exists():
        return int(re.search(r"some .*total=(\d+)", PRESSURE.read_text())[1]) / 1e6
    # proc_stat(5) describes these values: user, nice, system, idle and iowait, in ticks, summed
    # over all CPUs.
    fields = STAT.read_text().split("\n", 1)[0].split()
    idle = sum(map(int, fields[4:6])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - idle


def within(seconds, short):
    """Return the time limit for a machine on which tasks waited for a CPU during a fraction of the
    time.
    """
    return seconds if short < SHORT else seconds * WIDER


class Since:
    """A measurement of the waiting time that starts when the object is created."""

    def __init__(self):
        self.begin, self.waited = time.monotonic(), waiting_seconds()

    def seconds(self):
        """Return the number of seconds since the start."""
        return time.monotonic() - self.begin

    def waiting_fraction(self):
        """Return the fraction of the time during which a task waited for a CPU."""
        return (waiting_seconds() - self.waited) / self.seconds()

    def within(self, seconds):
        """Return the time limit that results from the measurement since the start."""
        return within(seconds, self.waiting_fraction())
