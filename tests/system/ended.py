"""Runs the agent so that a rare situation occurs at its end: `python -m` this module.

Python's audit events (PEP 578) show the progress of the agent without a hook in the agent. The
environment variable SWALLOWED contains the name of an event. Once a SIGTERM handler is installed,
the first audit event with that name in the main thread runs a destructor that sends SIGTERM to this
process. Python ignores exceptions that a handler raises in a destructor. Python also ignores
exceptions in callbacks of weak references, and an import creates hundreds of these callbacks
(importlib._bootstrap). If the environment variable TALKING is set, a thread writes log lines
without end.
"""

import logging
import os
import signal
import sys
import threading
import time

from agent.__main__ import main


class Last:
    """An object whose destructor sends SIGTERM to this process."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def talk():
    """Write lines faster than a pipe without a reader takes them, but leave the interpreter to the
    other threads between two lines.
    """
    while True:
        logging.getLogger("agent").warning("x" * 999)
        time.sleep(0.001)


class Moments:
    """The audit hook that causes the rare situations."""

    def __init__(self):
        self.swallowed = os.environ.get("SWALLOWED", "")
        self.talking = os.environ.get("TALKING", "")

    def __call__(self, event, arguments):
        here = threading.current_thread() is threading.main_thread()
        if here and event == self.swallowed and callable(signal.getsignal(signal.SIGTERM)):
            self.swallowed = ""
            Last()
        if self.talking and event == "import" and arguments[0] == "agent.controller":
            self.talking = ""  # The thread starts only after logging has been set up.
            threading.Thread(target=talk, daemon=True).start()


if __name__ == "__main__":
    sys.addaudithook(Moments())
    sys.exit(main())
