"""Which processes lost the confinement they had, because somebody removed their profile.

Rule 1: what was unconfined from outside cannot be confined again: a profile that is loaded anew
does not bring its processes back (docs/security.md). It is told until they end. Rule 2: only
what was seen confined in the last two looks is known (a removal may fall into the last one); a
process that began after them, 10 seconds ago at most, is not.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from agent.core.problems import Problem
from agent.doors.host import Host, HostError
from agent.kinds.apparmor.processes import names_in

_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")
# The kubelet's cgroup of a pod: systemd's have _ in the uid, a static pod's uid has neither.
_POD: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b")
_SHOWN: Final = 5
_UNCONFINED: Final = "unconfined"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """A process: its id is used again some day, its start time (clock ticks) with it is not."""

    pid: int
    start: str


class Lost:
    """Remembers who was confined by which of our names.

    anew: gives the names that were removed and are loaded again, so that none was found missing.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.anew: Callable[[], Collection[str]] = frozenset
        self._confined: dict[_Process, frozenset[str]] = {}
        self._before: dict[_Process, frozenset[str]] = {}
        self._lost: dict[_Process, str] = {}

    def look(self, names: Collection[str]) -> None:
        """Note every process that one of names confines now; for no names none is read."""
        wanted = frozenset(names)
        found: dict[_Process, frozenset[str]] = {}
        ours = {"": frozenset[str](), _UNCONFINED: frozenset[str]()}  # of labels: few are many's
        try:
            pids = [one for one in self.host.names("/proc") if one.isdigit()] if wanted else []
        except HostError:
            return
        for pid in pids:
            label = self._label(pid)
            if label not in ours:
                ours[label] = names_in(label) & wanted
            start = self._start(pid) if ours[label] else ""
            if start:
                found[_Process(pid=int(pid), start=start)] = ours[label]
        self._before, self._confined = self._confined, found

    def confining(self) -> frozenset[str]:
        """Return which names confined somebody at the last look."""
        return frozenset().union(*self._confined.values())

    def removed(self, names: Collection[str]) -> None:
        """Names were found missing: whoever they confined, and is unconfined now, lost it."""
        away = frozenset(names).union(self.anew())
        for process, had in (*self._before.items(), *self._confined.items()):
            gone = sorted(had & away)
            if gone and self._lives(process) and self._label(str(process.pid)) == _UNCONFINED:
                self._lost[process] = gone[0]

    def problems(self) -> tuple[Problem, ...]:
        """Return a problem for each name whose processes run unconfined, until they end."""
        self._lost = {one: name for one, name in self._lost.items() if self._lives(one)}
        return tuple(
            self._problem(name, sorted(one.pid for one, had in self._lost.items() if had == name))
            for name in sorted(set(self._lost.values()))
        )

    def count(self) -> int:
        """Return how many processes lost their confinement and live."""
        return len(self._lost)

    def _problem(self, name: str, pids: list[int]) -> Problem:
        shown = ", ".join(f"{pid}{self._owner(pid)}" for pid in pids[:_SHOWN])
        return Problem(
            code="confinement_lost",
            where=name,
            what=f'{len(pids)} process(es) that "{name}" confined run unconfined since somebody '
            f"removed it: pid {shown}. A profile that is loaded again does not confine them again.",
            hint="Restart those pods or containers.",
        )

    def _owner(self, pid: int) -> str:
        """Return the uid of the pod and the container that a process belongs to, as far as told."""
        text = self._read(f"/proc/{pid}/cgroup")
        pod, container = _POD.search(text), _CONTAINER.search(text)
        told = [f"pod {pod[1].replace('_', '-')}"] if pod else []
        told += [f"container {container[0][:12]}"] if container else []
        return f" ({', '.join(told)})" if told else ""

    def _label(self, pid: str) -> str:
        for file in ("attr/apparmor/current", "attr/current"):
            text = self._read(f"/proc/{pid}/{file}")
            if text:
                return text.rstrip("\n\0")
        return ""

    def _lives(self, process: _Process) -> bool:
        return self._start(str(process.pid)) == process.start

    def _start(self, pid: str) -> str:
        """Return a process's start time, or nothing if it ended (proc(5): stat, field 22)."""
        fields = self._read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X") else ""  # noqa: PLR2004 - field 22

    def _read(self, path: str) -> str:
        try:
            return self.host.read(path, limit=1 << 16).decode("utf-8", "surrogateescape")
        except HostError:
            return ""
