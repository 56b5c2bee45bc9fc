"""Who uses a profile: a proof from every thread's label, or the reason why there is none.

Rule 1: "unused" is only said when every thread of the host could be read, twice. Rule 2: a
process that ended meanwhile proves nothing and disturbs nothing; one that lives and cannot be read
makes the answer CannotTell. Rule 3: a hat or child counts for its parents, a stack for each part.
"""

import errno
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from agent.core.model import CannotTell, InUse, Unused, Use
from agent.doors.host import Host, HostError
from agent.kinds.apparmor import policy

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)
_INITIAL_PID = "pid:[4026531836]"  # linux/proc_ns.h: PROC_PID_INIT_INO
_INITIAL_USER = "user:[4026531837]"  # PROC_USER_INIT_INO
_KERNEL_THREAD = 0x00200000  # linux/sched.h: PF_KTHREAD
_MODE = re.compile(r" \([a-z]+\)$")
_LOOKS = 2


def names_in(label: str) -> frozenset[str]:
    """Return every profile that a label confines by: stacked ones, and the parents of hats."""
    found: set[str] = set()
    for part in [label, *_parts(label)]:
        for name in (part, _MODE.sub("", part)):
            found |= {name, *policy.ancestors(name)}
    return frozenset(found)


def _parts(label: str) -> list[str]:
    return _MODE.sub("", label).split("//&")


class Processes:
    """The processes below one host root's /proc."""

    def __init__(self, host: Host, *, own: Path = Path("/proc/self")) -> None:
        self.host = host
        self.own = own

    def uses(self, names: Collection[str]) -> dict[str, Use]:
        """Return for each name who uses it."""
        if not names:
            return {}
        try:
            why = self._view()
            users = {} if why else self._users(frozenset(names))
        except (HostError, OSError, ValueError, IndexError) as error:
            why, users = f"the host's processes cannot be read ({error})", {}
        if why:
            return {name: CannotTell(why=why) for name in names}
        return {
            name: InUse(pids=tuple(sorted(users[name]))) if users.get(name) else Unused()
            for name in names
        }

    def _view(self) -> str:
        """Return why not every process of the host can be seen from here, or nothing."""
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

    def _users(self, names: frozenset[str]) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for _ in range(_LOOKS):
            for pid, label in self._labels():
                for name in names_in(label) & names:
                    found.setdefault(name, set()).add(pid)
        return found

    def _labels(self) -> Iterator[tuple[int, str]]:
        for pid in self.host.names("/proc"):
            if not pid.isdigit():
                continue
            try:
                threads = self.host.names(f"/proc/{pid}/task")
            except HostError as error:
                if error.errno in _GONE:
                    continue
                raise
            for thread in threads:
                for file in ("current", "exec"):
                    label = self._attribute(f"/proc/{pid}/task/{thread}", file)
                    if label and label != "unconfined":
                        yield int(pid), label

    def _attribute(self, thread: str, file: str) -> str:
        """Return a thread's label, or nothing if it ended. exec: the one it takes at exec."""
        for path in (f"{thread}/attr/apparmor/{file}", f"{thread}/attr/{file}"):
            try:
                content = self.host.read(path, limit=1 << 20)
            except HostError as error:
                if error.errno in _GONE:
                    continue
                if file == "exec" and error.errno == errno.EINVAL:
                    return ""  # the kernel's answer where none is set
                raise
            return content.rstrip(b"\n\0").decode("utf-8", "surrogateescape")
        if self.host.exists(f"{thread}/stat") and file == "current" and self._lives(thread):
            raise OSError(errno.ENOENT, f"{thread} has no attr/current")
        return ""

    def _lives(self, thread: str) -> bool:
        """Return whether a thread is still there and no zombie, whose attributes are gone."""
        try:
            stat = self.host.read(f"{thread}/stat", limit=4096).rpartition(b")")[2].split()
        except HostError as error:
            if error.errno in _GONE:
                return False
            raise
        return stat[0] not in (b"Z", b"X")
