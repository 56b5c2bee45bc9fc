"""Which profiles the host's threads run under, as a proof for removals.

"Not in use" is a proof: two complete looks read every thread of the host, and each look lists
processes and threads until no new one appears. A thread that lives and cannot be read makes the
result UnknownUse. So does a host where threads start faster than they can be read. A hat or child
counts for its parents, a stacked label for each part. references.py covers what the kernel does not
show here (a pending exec on Linux 6.1).
"""

import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from agent.backends.apparmor import compiled_policy, pending_exec
from agent.core.model import InUse, UnknownUse, Unused, Use
from agent.host.filesystem import Host, HostError

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)
_INITIAL_PID = "pid:[4026531836]"  # linux/proc_ns.h: PROC_PID_INIT_INO
_INITIAL_USER = "user:[4026531837]"  # PROC_USER_INIT_INO
_KERNEL_THREAD = 0x00200000  # linux/sched.h: PF_KTHREAD
_MODE = re.compile(r" \([a-z]+\)$")
_START: Final = 19  # index among the fields after the command's name
_UNCONFINED: Final = "unconfined"
_LOOKS: Final = 2
LISTINGS: Final = 100  # of /proc in one look, or of the threads of one process


class UnprovenError(Exception):
    """A look reached its limit before every thread had been read."""


def parts(label: str) -> list[str]:
    """Return the profiles that a label stacks, without the mode."""
    return _MODE.sub("", label).split("//&")


def names_in(label: str) -> frozenset[str]:
    """Return every profile that a label confines by: stacked ones, and the parents of hats."""
    found: set[str] = set()
    for part in [label, *parts(label)]:
        for name in (part, _MODE.sub("", part)):
            found |= {name, *compiled_policy.ancestors(name)}
    return frozenset(found)


class Processes:
    """The processes in one host root's /proc.

    own: the agent's own directory in /proc. shows_pending_exec: whether another thread's attr/exec
    can be read on this kernel; called at most once.
    """

    def __init__(
        self,
        host: Host,
        *,
        own: Path = Path("/proc/self"),
        shows_pending_exec: Callable[[Host], bool] = pending_exec.is_shown,
    ) -> None:
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
        """Return for each name which processes run under it.

        Unused does not cover a pending exec where `shows_pending_exec` is False.
        """
        if not names:
            return {}
        users: dict[str, set[int]] = {name: set() for name in names}
        why = ""
        try:
            why = self._obstacle()
            if not why:
                self._collect(users)
        except UnprovenError as error:
            why = str(error)
        except (HostError, OSError, ValueError, IndexError) as error:
            why, users = f"the host's processes cannot be read ({error})", {}
        unused = UnknownUse(reason=why) if why else Unused()
        return {
            name: InUse(pids=tuple(sorted(users[name]))) if users.get(name) else unused
            for name in names
        }

    def _obstacle(self) -> str:
        """Return why the agent cannot see every process of the host, or nothing."""
        if not self.host.exists("/proc/1/stat"):
            return "no procfs below the host root"
        if str((self.own / "ns/user").readlink()) != _INITIAL_USER:
            return "the agent runs in a user namespace"
        try:
            initial = self.host.link("/proc/1/ns/pid") == _INITIAL_PID
        except HostError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            # Kernel threads are only seen from the initial PID namespace, and cannot be forged.
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
        """Add to each name the processes that run under it."""
        for _ in range(_LOOKS):
            for pid, label in self._labels():
                for name in names_in(label) & users.keys():
                    users[name].add(int(pid))

    def _labels(self) -> Iterator[tuple[str, str]]:
        """Yield each process ID with the process's labels, until a listing shows no new process.

        A process may fork after /proc was listed, and end or leave its profile before it is read.
        Only its child still runs under the profile then, and the child may do the same. So /proc is
        listed again until every listed process has been read. New PIDs grow along such a chain, so
        the newest process is read first. PIDs are reused, so the start times are compared at the
        end.
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
        """Return the labels of a process; list its threads until a listing shows no new thread.

        After a thread ended, the leader is read again, because a thread that calls execve(2) takes
        over the leader's ID and start time.
        """
        labels: frozenset[str] = frozenset()
        read: set[str] = set()
        ended: set[str] = set()
        for _ in range(LISTINGS):
            try:
                threads = self.host.names(f"/proc/{pid}/task")
            except HostError as error:
                if error.errno in _GONE:
                    return labels
                raise
            new = [thread for thread in threads if thread not in read]
            if not new:
                return labels
            before = len(ended)
            for thread in new:
                found = self._thread(f"/proc/{pid}/task/{thread}")
                if found is None:
                    ended.add(thread)
                else:
                    labels |= found
            read.update(threads)
            if len(ended) > before:
                read.discard(pid)
        raise UnprovenError(f"the threads of process {pid} start faster than they can be read")

    def _thread(self, thread: str) -> frozenset[str] | None:
        """Return the labels of a thread, its pending one among them; None if it ended."""
        current = self._attribute(thread, "current")
        if current is None:
            return None
        pending = self._attribute(thread, "exec") if self.shows_pending_exec() else ""
        labels = {current, pending or ""} - {"", _UNCONFINED}
        # A zombie still shows its label, but does not run any more.
        return frozenset(labels) if not labels or self._lives(thread) else None

    def _attribute(self, thread: str, file: str) -> str | None:
        """Return one label of a thread, or None if the thread ended."""
        for path in (f"{thread}/attr/apparmor/{file}", f"{thread}/attr/{file}"):
            try:
                content = self.host.read(path, limit=1 << 20)
            except HostError as error:
                if error.errno in _GONE:
                    continue
                if file == "exec" and error.errno == errno.EINVAL:
                    return ""  # the kernel returns EINVAL if no pending exec is set
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
        """Return the start time of a process, or nothing if it ended (proc(5): stat, field 22)."""
        stat = self._stat(f"/proc/{pid}")
        return stat[_START] if stat else b""

    def _stat(self, place: str) -> list[bytes]:
        """Return the fields of a stat file after the command's name; none if the task ended."""
        try:
            return self.host.read(f"{place}/stat", limit=4096).rpartition(b")")[2].split()
        except HostError as error:
            if error.errno in _GONE:
                return []
            raise
