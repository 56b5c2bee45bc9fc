"""The shortage of CPU time on this machine during a measurement.

A time limit of the agent is unchanged while a CPU is idle. Without an idle CPU, a late result shows
the shortage of the machine, and the limit is longer.
"""

import os
import re
import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")  # missing in some kernels
STAT = Path("/proc/stat")
SHORT = 0.6  # the fraction of the time in which a task waited for a CPU
WIDER = 5


def waited():
    """Return the seconds in which a task waited for a CPU.

    Without that information of the kernel, return the seconds in which no CPU was idle. A CPU whose
    time a hypervisor used for other machines (steal) was not idle.
    """
    if PRESSURE.exists():
        return int(re.search(r"some .*total=(\d+)", PRESSURE.read_text())[1]) / 1e6
    # proc_stat(5): user, nice, system, idle, iowait, in ticks of all CPUs together.
    fields = STAT.read_text().split("\n", 1)[0].split()
    idle = sum(map(int, fields[4:6])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - idle


def within(seconds, short):
    """Return the seconds to keep on a machine that was short of CPUs for a part of the time."""
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
        """Return the seconds to keep by what was measured meanwhile."""
        return within(seconds, self.short())
