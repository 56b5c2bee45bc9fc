"""Seconds in an emulated machine, without those in which all of it stood still."""

import subprocess
import time

MOST = 0.5  # of one step: a longer one is the machine's


class Patience:
    """Counts the seconds from the making of this on."""

    def __init__(self):
        self.spent, self.last = 0.0, time.monotonic()

    def seconds(self):
        """Return the seconds until now."""
        now = time.monotonic()
        self.spent += min(now - self.last, MOST)
        self.last = now
        return self.spent

    def step(self):
        """Wait for a moment; return the seconds until now."""
        time.sleep(0.002)
        return self.seconds()


def passed(seconds):
    """Return after so many seconds."""
    patience = Patience()
    while patience.step() < seconds:
        pass


def ended(process, seconds=30.0):
    """Wait for the end of a process; return its exit status and how many seconds that took."""
    patience = Patience()
    while process.poll() is None:
        if patience.step() > seconds:
            raise subprocess.TimeoutExpired(process.args, seconds)
    return process.returncode, patience.seconds()
