"""Measures how short of CPU time this machine is.

While a CPU is idle, the tests require the time limits that the documents of the agent promise. If
no CPU is idle, the machine may be the reason for a late result, so the tests allow more time.
"""

import os
import re
import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")  # Some kernels do not have this file.
STAT = Path("/proc/stat")
SHORT = 0.6  # the fraction of the time during which a task waited for a CPU
WIDER = 5


def waited():
    """Return for how many seconds a task has waited for a CPU.

    If the kernel does not report this value, return for how many seconds no CPU was idle. A CPU was
    not idle while a hypervisor used its time for other machines (steal).
    """
    if PRESSURE.exists():
        return int(re.search(r"some .*total=(\d+)", PRESSURE.read_text())[1]) / 1e6
    # These values come from proc_stat(5): user, nice, system, idle and iowait, in ticks of all CPUs
    # together.
    fields = STAT.read_text().split("\n", 1)[0].split()
    idle = sum(map(int, fields[4:6])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - idle


def within(seconds, short):
    """Return the time limit for a machine on which tasks waited for a CPU part of the time."""
    return seconds if short < SHORT else seconds * WIDER


class Since:
    """A measurement that begins when the object is created."""

    def __init__(self):
        self.begin, self.waited = time.monotonic(), waited()

    def seconds(self):
        """Return the seconds since the start."""
        return time.monotonic() - self.begin

    def short(self):
        """Return the fraction of the time during which a task waited for a CPU."""
        return (waited() - self.waited) / self.seconds()

    def within(self, seconds):
        """Return the time limit that results from the measurement since the start."""
        return within(seconds, self.short())
