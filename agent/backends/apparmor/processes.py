"""Reads the profiles of all threads on the host, to prove that a profile is not in use.

The module reads every thread on the host in two complete scans. Each scan lists processes and
threads again until no new process or thread appears. If a running thread cannot be read, or if
threads start faster than the scan can read them, the result is UnknownUse. A thread in a hat or
child also uses the parents of that profile. A thread with a stacked label uses every profile in the
label. The module `policy_references` finds references that /proc does not show.
"""

import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.core.model import InUse, UnknownUse, Unused, Use
from agent.host.filesystem import Host, HostError

_ENDED_ERRNOS: Final = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)
_INITIAL_PID = "pid:[4026531836]"  # linux/proc_ns.h: PROC_PID_INIT_INO
_INITIAL_USER = "user:[4026531837]"  # PROC_USER_INIT_INO
_KERNEL_THREAD = 0x00200000  # linux/sched.h: PF_KTHREAD
_MODE = re.compile(r" \([a-z]+\)$")
_START_FIELD: Final = 19  # The position of the start time in proc(5) stat, after the command name.
_UNCONFINED: Final = "unconfined"
_SCANS: Final = 2
LISTINGS: Final = 100
"""A scan fails after it has listed /proc, or the threads of one process, this many times."""


class UnprovenError(Exception):
    """Raised if a scan reaches its limit before it has read every thread."""


def parts(label: str) -> list[str]:
    """Return the stacked profiles in a label, without the mode."""
    return _MODE.sub("", label).split("//&")


def names_in(label: str) -> frozenset[str]:
    """Return every profile in a label, and every parent of a hat or child profile in the label."""
    names: set[str] = set()
    for part in [label, *parts(label)]:
        for name in (part, _MODE.sub("", part)):
            names |= {name, *compiled_policy.ancestors(name)}
    return frozenset(names)


class Processes:
    """Reads the processes in /proc of one host root."""

    def __init__(
        self,
        host: Host,
        *,
        own: Path,
        shows_pending_exec: Callable[[Host], bool],
    ) -> None:
        """Create a view of /proc.

        Args:
            host: the host root.
            own: the directory of this process in /proc.
            shows_pending_exec: returns whether this kernel shows the pending exec of another
                thread; it is called at most once.
        """
        self.host = host
        self.own = own
        self._test_pending_exec = shows_pending_exec
        self._shows_pending_exec: bool | None = None

    def shows_pending_exec(self) -> bool:
        """Return whether the kernel shows the pending exec of another thread."""
        if self._shows_pending_exec is None:
            self._shows_pending_exec = self._test_pending_exec(self.host)
        return self._shows_pending_exec

    def uses(self, names: Collection[str]) -> dict[str, Use]:
        """Return whether processes run under each of the profile names.

        If `shows_pending_exec` returns False, a thread may have a pending exec under a profile
        although the result for it is Unused.
        """
        if not names:
            return {}
        users: dict[str, set[int]] = {name: set() for name in names}
        reason = ""
        try:
            reason = self._obstacle()
            if not reason:
                self._collect(users)
        except UnprovenError as error:
            reason = str(error)
        except (HostError, OSError, ValueError, IndexError) as error:
            reason, users = f"the host's processes cannot be read ({error})", {}
        unused = UnknownUse(reason=reason) if reason else Unused()
        return {
            name: InUse(pids=tuple(sorted(users[name]))) if users.get(name) else unused
            for name in names
        }

    def _obstacle(self) -> str:
        """Return the reason why the agent does not see all processes of the host, or "" if it
        does.
        """
        if not self.host.exists("/proc/1/stat"):
            return "procfs is missing below the host root"
        if str((self.own / "ns/user").readlink()) != _INITIAL_USER:
            return "the agent runs in a user namespace"
        try:
            initial = self.host.link("/proc/1/ns/pid") == _INITIAL_PID
        except HostError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            # The initial PID namespace is recognised by its kernel threads, which no other
            # namespace shows and which no process can imitate.
            stat = self.host.read("/proc/2/stat", limit=4096).rpartition(b")")[2].split()
            initial = bool(int(stat[6]) & _KERNEL_THREAD)
        if not initial:
            return "the agent does not see the host's PID namespace (hostPID)"
        device = self.host.path("/proc").stat().st_dev
        for line in (self.own / "mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            fields = line.split()
            major, _, minor = fields[2].partition(":")
            if device == os.makedev(int(major), int(minor)) and re.search(
                r"hidepid=(?!0\b|off\b)", line
            ):
                return "procfs hides processes (hidepid)"
        return ""

    def _collect(self, users: dict[str, set[int]]) -> None:
        """Add to each profile name the processes that run under this profile."""
        for _ in range(_SCANS):
            for pid, label in self._labels():
                for name in names_in(label) & users.keys():
                    users[name].add(int(pid))

    def _labels(self) -> Iterator[tuple[str, str]]:
        """Yield each PID with each label of its process, until /proc lists no new process.

        After /proc was listed, and before the scan reads a process, this process may fork and then
        end or leave its profile. Then only the child runs under the profile, and the child may also
        fork and leave the profile. Therefore, the scan lists /proc again until every listed process
        has been read. PIDs usually increase along a chain of forks, so the newest process is read
        first. PIDs are reused, so the scan compares the start times at its end.
        """
        seen: dict[str, bytes] = {}
        for _ in range(LISTINGS):
            listed = [name for name in self.host.names("/proc") if name.isdigit()]
            new = sorted((pid for pid in listed if pid not in seen), key=int, reverse=True)
            for pid in new:
                seen[pid] = self._start(pid)
                yield from ((pid, label) for label in self._process(pid))
            if not new:
                reused = [pid for pid in listed if self._start(pid) != seen[pid]]
                if not reused:
                    return
                for pid in reused:
                    del seen[pid]
        raise UnprovenError("processes start faster than they can be read")

    def _process(self, pid: str) -> frozenset[str]:
        """Return the labels of a process. The scan lists the threads of the process until no new
        thread appears.

        After a thread has ended, the leader is read again, because a thread that calls execve(2)
        takes over the leader's ID and start time.
        """
        labels: frozenset[str] = frozenset()
        read: set[str] = set()
        ended: set[str] = set()
        for _ in range(LISTINGS):
            try:
                threads = self.host.names(f"/proc/{pid}/task")
            except HostError as error:
                if error.errno in _ENDED_ERRNOS:
                    return labels
                raise
            new = [thread for thread in threads if thread not in read]
            if not new:
                return labels
            before = len(ended)
            for thread in new:
                labels_of_thread = self._thread(f"/proc/{pid}/task/{thread}")
                if labels_of_thread is None:
                    ended.add(thread)
                else:
                    labels |= labels_of_thread
            read.update(threads)
            if len(ended) > before:
                read.discard(pid)
        raise UnprovenError(f"the threads of process {pid} start faster than they can be read")

    def _thread(self, thread: str) -> frozenset[str] | None:
        """Return the current and the pending label of a thread, or None if the thread has ended."""
        current = self._attribute(thread, "current")
        if current is None:
            return None
        pending = self._attribute(thread, "exec") if self.shows_pending_exec() else ""
        labels = {current, pending or ""} - {"", _UNCONFINED}
        # A zombie still shows its label, but runs no code.
        return frozenset(labels) if not labels or self._lives(thread) else None

    def _attribute(self, thread: str, file: str) -> str | None:
        """Return one label of a thread, or None if the thread has ended."""
        for path in (f"{thread}/attr/apparmor/{file}", f"{thread}/attr/{file}"):
            try:
                content = self.host.read(path, limit=1 << 20)
            except HostError as error:
                if error.errno in _ENDED_ERRNOS:
                    continue
                if file == "exec" and error.errno == errno.EINVAL:
                    return ""  # The kernel returns EINVAL if no pending exec is set.
                raise
            return content.rstrip(b"\n\0").decode("utf-8", "surrogateescape")
        if file == "current" and self._lives(thread):
            raise OSError(errno.ENOENT, f"{thread} has no attr/current")
        return None

    def _lives(self, thread: str) -> bool:
        """Return whether a thread exists and is not a zombie."""
        stat = self._stat(thread)
        return bool(stat) and stat[0] not in (b"Z", b"X")

    def _start(self, pid: str) -> bytes:
        """Return the start time of a process (proc(5) stat, field 22), or "" if it has ended."""
        stat = self._stat(f"/proc/{pid}")
        return stat[_START_FIELD] if stat else b""

    def _stat(self, directory: str) -> list[bytes]:
        """Return the fields of a stat file that follow the command name, or [] if the task has
        ended.
        """
        try:
            return self.host.read(f"{directory}/stat", limit=4096).rpartition(b")")[2].split()
        except HostError as error:
            if error.errno in _ENDED_ERRNOS:
                return []
            raise
