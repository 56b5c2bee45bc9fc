"""Runs the agent, and lists its effects on the host or kills it before an effect.

The start of a child process is an effect, and so is the write, rename, link or removal of a file.
The mode `list` writes each effect as a line to standard error. The mode `kill:N` kills the process
with SIGKILL right before effect number N, counted from 0. Python's audit events (PEP 578) show
every effect without a hook in the agent.
"""

import os
import signal
import sys

from agent import app, reconciler  # noqa: F401 - imports are not effects
from agent.__main__ import main
from agent.backends.apparmor import backend as apparmor  # noqa: F401
from agent.backends.seccomp import backend as seccomp  # noqa: F401
from agent.reporting import json_report, logs  # noqa: F401

FILES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
CHILDREN = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "os.exec"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
QUIET = ("/dev/null", "/dev/urandom")


class Watch:
    """Counts effects, and either lists all effects or kills the process before one effect."""

    def __init__(self, mode):
        self.fatal = int(mode.split(":")[1]) if mode.startswith("kill:") else None
        self.count = 0
        self.on = False

    def __call__(self, event, arguments):
        if not self.on or not self.is_effect(event, arguments):
            return
        if self.fatal is None:
            os.write(2, f"effect {self.count} {event} {arguments[0]!r}\n".encode())
        elif self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    @staticmethod
    def is_effect(event, arguments):
        if event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and flags & WRITING
            return bool(writing) and not isinstance(path, int) and str(path) not in QUIET
        return event in FILES or event in CHILDREN


def run(arguments, mode):
    """Run the agent, with an audit hook if a mode is set, and return its exit status."""
    if not mode:
        return main(arguments)
    watch = Watch(mode)
    sys.addaudithook(watch)
    watch.on = True
    try:
        return main(arguments)
    finally:
        watch.on = False
