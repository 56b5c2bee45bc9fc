"""Measures the shortage of CPU time on this machine.

While a CPU is idle, the tests check the time limits of the agent as documented. When no CPU is
idle, a late result may be caused by the machine, so the tests allow more time.
"""

import os
import re
import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")  # Some kernels do not have this file.
STAT = Path("/proc/stat")
SHORT = 0.6  # the fraction of the time in which a task waited for a CPU
WIDER = 5


def waited():
    """Return the seconds in which a task waited for a CPU.

    If the kernel does not provide this value, return the seconds in which no CPU was idle. A CPU
    whose time a hypervisor used for other machines (steal) was not idle.
    """
    if PRESSURE.exists():
        return int(re.search(r"some .*total=(\d+)", PRESSURE.read_text())[1]) / 1e6
    # proc_stat(5): user, nice, system, idle, iowait, in ticks of all CPUs together.
    fields = STAT.read_text().split("\n", 1)[0].split()
    idle = sum(map(int, fields[4:6])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - idle


def within(seconds, short):
    """Return the time limit for a machine on which tasks waited for a CPU part of the time."""
    return seconds if short < SHORT else seconds * WIDER


class Since:
    """A measurement that starts when the object is created."""

    def __init__(self):
        self.begin, self.waited = time.monotonic(), waited()

    def seconds(self):
        """Return the seconds since the start."""
        return time.monotonic() - self.begin

    def short(self):
        """Return the fraction of the time in which a task waited for a CPU."""
        return (waited() - self.waited) / self.seconds()

    def within(self, seconds):
        """Return the time limit that follows from the measurement since the start."""
        return within(seconds, self.short())
