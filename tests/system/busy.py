"""How short of CPUs this machine is while something is measured against the clock.

Rule: a bound of the agent is kept as it is while there is a CPU to spare. Where there is none, what
comes late shows what the machine is short of, and the bound is wider.
"""

import os
import re
import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")  # a kernel may lack it
STAT = Path("/proc/stat")
SHORT = 0.6  # the part of the time in which something waited for a CPU
WIDER = 5


def waited():
    """Return a clock of the seconds in which something waited for a CPU.

    Where the kernel does not say it: of those, at least, in which no CPU was idle. A CPU of which a
    hypervisor took a part (steal) was not.
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
    """What passes from the making of this on."""

    def __init__(self):
        self.begin, self.waited = time.monotonic(), waited()

    def seconds(self):
        """Return how many seconds have passed."""
        return time.monotonic() - self.begin

    def short(self):
        """Return the part of the time in which something waited for a CPU."""
        return (waited() - self.waited) / self.seconds()

    def within(self, seconds):
        """Return the seconds to keep by what was measured meanwhile."""
        return within(seconds, self.short())
