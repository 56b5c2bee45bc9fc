"""Runs the agent, and kills it with SIGKILL right before one step.

The environment variable KILLED contains the name of the step. If the environment variable ARMED
contains the path of a file, only steps while this file exists count. Audit events of Python (PEP
578) show each step, so that the agent itself needs no hook. If an event contains the descriptor of
a directory, the module reads the path of the directory from /proc.
"""

import os
import signal
import sys
from pathlib import Path

from agent.__main__ import command_line

WRITING = os.O_WRONLY | os.O_RDWR


def _place(path, descriptor):
    """Return the path of a name that is relative to the descriptor of a directory."""
    if isinstance(path, int):
        return ""
    base = Path(f"/proc/self/fd/{descriptor}").readlink() if descriptor >= 0 else Path.cwd()
    return str(base / os.fsdecode(path))


def _written(arguments):  # os.rename and os.link: the source, the target, and their descriptors
    return _place(arguments[1], arguments[3])


def _removed(arguments):
    return _place(arguments[0], arguments[1])


def _opened(arguments):
    path, _, flags = arguments
    return str(path) if isinstance(flags, int) and flags & WRITING else ""


def _sent(arguments):
    head = bytes(arguments[1][:60]) if isinstance(arguments[1], bytes) else b""
    return head.decode("latin-1")


# name -> (audit event, function for its subject, part of the subject, number of earlier matches)
POINTS = {
    "before_its_bytes_are_kept": ("os.rename", _written, "/bodies/", 0),
    "before_it_is_staged": ("os.rename", _written, "/entries/", 0),
    "before_a_new_file_is_put": ("os.link", _written, "/seccomp/", 0),
    "before_a_file_is_replaced": ("os.rename", _written, "/seccomp/", 0),
    "before_it_is_committed": ("os.rename", _written, "/entries/", 1),
    "before_a_policy_is_loaded": ("open", _opened, "/apparmor/.load", 0),
    "before_a_load_is_recorded": ("open", _opened, "objects.jsonl", 1),
    "before_a_policy_is_replaced": ("open", _opened, "/apparmor/.replace", 0),
    "before_a_policy_is_removed": ("open", _opened, "/apparmor/.remove", 0),
    "before_a_file_is_removed": ("os.remove", _removed, "/seccomp/", 0),
    "before_its_entry_is_dropped": ("os.remove", _removed, "/entries/", 0),
    "before_its_bytes_are_swept": ("os.remove", _removed, "/bodies/", 0),
    "before_the_node_is_labelled": ("http.client.send", _sent, "PATCH /api/v1/nodes/", 0),
    "before_an_event_is_sent": ("http.client.send", _sent, "POST /apis/events", 0),
}


class Killer:
    """An audit hook that kills the process before a step."""

    def __init__(self, name):
        self.event, self.about, self.part, self.left = POINTS[name]
        self.armed = os.environ.get("ARMED", "")

    def __call__(self, event, arguments):
        if event != self.event or (self.armed and not os.access(self.armed, os.F_OK)):
            return
        place = self.about(arguments)
        if self.part not in place or Path(place).name.startswith(".profile-loader."):
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


if __name__ == "__main__":
    if os.environ.get("KILLED"):
        sys.addaudithook(Killer(os.environ["KILLED"]))
    sys.exit(command_line())
