"""Run the agent so that a rare moment of its end comes for certain: `python -m` this module.

Python's audit events see where it is without any hook in the agent (PEP 578). SWALLOWED names one:
at the first such event in the main thread, once SIGTERM has a handler, the signal comes where
Python ignores what the handler raises: while an object ends. The callbacks of weak references, of
which importing makes hundreds (importlib._bootstrap), are the same. TALKING lets a thread log for
ever.
"""

import logging
import os
import signal
import sys
import threading

from agent.__main__ import main


class Last:
    """Ends with a signal."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def talk():
    while True:
        logging.getLogger("agent").warning("x" * 99)


class Moments:
    """Hears of audit events."""

    def __init__(self):
        self.swallowed = os.environ.get("SWALLOWED", "")
        self.talking = os.environ.get("TALKING", "")

    def __call__(self, event, arguments):
        here = threading.current_thread() is threading.main_thread()
        if here and event == self.swallowed and callable(signal.getsignal(signal.SIGTERM)):
            self.swallowed = ""
            Last()
        if self.talking and event == "import" and arguments[0] == "agent.controller":
            self.talking = ""  # after logging was set up
            threading.Thread(target=talk, daemon=True).start()


if __name__ == "__main__":
    sys.addaudithook(Moments())
    sys.exit(main())
