"""Runs the agent, and creates a rare situation while the agent exits.

Audit events of Python (PEP 578) show the progress of the agent, so that the agent itself needs no
hook. The environment variable SWALLOWED contains the name of an audit event. After the agent has
installed its SIGTERM handler, the first audit event with this name in the main thread runs a
destructor. The destructor sends SIGTERM to this process. Python ignores an exception that a signal
handler raises during a destructor. Python also ignores exceptions in the callbacks of weak
references, and each import creates hundreds of these callbacks (importlib._bootstrap). If the
environment variable TALKING is set, a thread writes log lines without end.
"""

import logging
import os
import signal
import sys
import threading
import time

from agent.__main__ import command_line


class SignalOnDelete:
    """An object whose destructor sends SIGTERM to this process."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def log_endlessly():
    """Fill a pipe without a reader. The sleep lets the other threads run between two lines."""
    while True:
        logging.getLogger("agent").warning("x" * 999)
        time.sleep(0.001)


class FaultHook:
    """An audit hook that sends the signal or starts the logging thread at the right time."""

    def __init__(self):
        self.swallowed = os.environ.get("SWALLOWED", "")
        self.talking = os.environ.get("TALKING", "")

    def __call__(self, event, arguments):
        here = threading.current_thread() is threading.main_thread()
        if here and event == self.swallowed and callable(signal.getsignal(signal.SIGTERM)):
            self.swallowed = ""
            SignalOnDelete()
        if self.talking and event == "import" and arguments[0] == "agent.controller":
            self.talking = ""  # The thread must not start before logging has been configured.
            threading.Thread(target=log_endlessly, daemon=True).start()


if __name__ == "__main__":
    sys.addaudithook(FaultHook())
    sys.exit(command_line())
