"""Reads the labels of threads in /proc for `confinement_tracker`.

The tracker repeats its scan every few seconds, so a single scan is enough each time. The module
`processes`, by contrast, scans twice, because it has to prove that a profile is not in use.
"""

import re
from typing import Final, NamedTuple

from agent.backends.apparmor.processes import names_in
from agent.host.filesystem import Host, HostError

UNCONFINED: Final = "unconfined"
_FILES: Final = ("attr/apparmor/current", "attr/current")
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")
# The kubelet names the cgroup of a pod by its UID. The systemd driver writes `_` instead of `-` in
# the UID. The UID of a static pod contains neither `-` nor `_`.
_POD: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b")
_START_FIELD: Final = 19  # The position of the start time in proc(5) stat, after the command name.
_READ_BYTES: Final = 4096
"""The size of the first read(2) in bytes; few labels are longer."""

_LABEL_BYTES: Final = 1 << 20


class Thread(NamedTuple):
    """A thread on the host. Thread IDs are reused, but a thread ID together with the start time is
    unique.
    """

    pid: int
    tid: int
    start: int
    """Clock ticks between the boot and the start of the thread."""


class ThreadReader:
    """Reads the threads in /proc of one host root."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._files: tuple[str, ...] = _FILES

    def under(self, names: frozenset[str]) -> dict[Thread, str] | None:
        """Return the threads that run under one of the names, with their labels.

        Returns:
            The threads and their labels, or None if /proc cannot be listed.
        """
        try:
            pids = [name for name in self.host.names("/proc") if name.isdigit()]
        except HostError:
            return None
        threads: dict[Thread, str] = {}
        # Each label is examined and stored only once, because many threads have the same label.
        matches = {"": "", UNCONFINED: ""}
        for pid in pids:
            for tid in self._tids(pid):
                label = self._label(pid, tid)
                if label not in matches:
                    matches[label] = label if names_in(label) & names else ""
                start = self._start(pid, tid) if matches[label] else 0
                if start:
                    threads[Thread(int(pid), int(tid), start)] = matches[label]
        return threads

    def current_label(self, thread: Thread) -> str:
        """Return the current label of a thread, or "" if the thread has ended."""
        label = self._label(str(thread.pid), str(thread.tid))
        return label if self.is_alive(thread) else ""

    def is_alive(self, thread: Thread) -> bool:
        """Return whether a thread exists and is not a zombie."""
        return self._start(str(thread.pid), str(thread.tid)) == thread.start

    def owner(self, pid: int) -> str:
        """Return the pod UID and the container ID of a process, if they are known."""
        text = self._read(f"/proc/{pid}/cgroup")
        pod, container = _POD.search(text), _CONTAINER.search(text)
        known = [f"pod {pod[1].replace('_', '-')}"] if pod else []
        known += [f"container {container[0][:12]}"] if container else []
        return f" ({', '.join(known)})" if known else ""

    def _tids(self, pid: str) -> list[str]:
        try:
            return self.host.names(f"/proc/{pid}/task")
        except HostError:
            return []

    def _label(self, pid: str, tid: str) -> str:
        for file in self._files:
            text = self._read(f"/proc/{pid}/task/{tid}/{file}")
            if text:
                # From now on, the method first reads the file that exists on this kernel.
                self._files = (file, *_FILES)
                return text.rstrip("\n\0")
        return ""

    def _start(self, pid: str, tid: str) -> int:
        """Return the start time of a thread, or 0 if the thread has ended."""
        fields = self._read(f"/proc/{pid}/task/{tid}/stat").rpartition(")")[2].split()
        if len(fields) <= _START_FIELD or fields[0] in ("Z", "X"):
            return 0
        return int(fields[_START_FIELD])

    def _read(self, path: str) -> str:
        try:
            content = self.host.read_once(path, size=_READ_BYTES) or b""
            # The label of a thread with many stacked profiles can be longer than the first read.
            if len(content) == _READ_BYTES:
                content = self.host.read(path, limit=_LABEL_BYTES)
        except HostError:
            return ""
        return content.decode("utf-8", "surrogateescape")
