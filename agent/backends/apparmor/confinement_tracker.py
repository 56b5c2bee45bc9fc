"""Which threads lost the confinement they had, because a profile was removed.

The kernel never confines a thread again: if a profile is removed and loaded again, its earlier
threads stay unconfined (docs/security.md). So the agent reports these threads until they end. The
tracker knows the threads that the last two looks found under agent-owned profiles, because a
removal may fall into the last look. A record in the state directory survives a restart of the
agent; a damaged record, or a record of another boot, is ignored. The tracker does not know threads
that began after the last look, which is at most 10 seconds old.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from agent.backends.apparmor.processes import names_in, parts
from agent.core.findings import Finding
from agent.host.filesystem import Host, HostError

RECORD: Final = "confinement.json"
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")
# The kubelet's cgroup of a pod: systemd's have _ in the uid, a static pod's uid has neither.
_POD: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b")
_SCHEMA: Final = 1
_SHOWN: Final = 5
_START_FIELD: Final = 19  # of proc(5) stat, behind the name of the command
_FILES: Final = ("attr/apparmor/current", "attr/current")
_UNCONFINED: Final = "unconfined"
_READ_BYTES: Final = 4096  # for one read(2); few labels are longer
_LABEL_BYTES: Final = 1 << 20
RECORDED_THREADS: Final = 20_000  # of some 20 bytes each
_RECORD_BYTES: Final = 8 << 20


class Thread(NamedTuple):
    """A thread of the host: IDs are reused, an ID together with its start time is unique."""

    pid: int
    tid: int
    start: int  # clock ticks after boot


class ConfinementTracker:
    """Remembers which threads ran under agent-owned profiles.

    places: returns the kernel's directory of each loaded profile of the given names. A replacement
    keeps the directory; a profile that was removed and loaded again has another one.
    """

    def __init__(
        self,
        host: Host,
        *,
        state_dir: str,
        places: Callable[[Collection[str]], Mapping[str, str]],
    ) -> None:
        self.host = host
        self.state_dir = state_dir
        self._find_places = places
        self._places: dict[str, str] = {}
        self._confined: dict[Thread, str] = {}  # thread -> its label at the last look
        self._before: dict[Thread, str] = {}  # at the look before
        self._lost: dict[Thread, str] = {}  # thread -> the profile that it lost
        self._files: tuple[str, ...] = _FILES
        self._boot = ""
        self._recorded: bytes | None = None
        self._problem: Finding | None = None

    def observe(self, names: Collection[str]) -> None:
        """Record every thread that one of the names confines now; without names, read nothing."""
        self._load()
        wanted = frozenset(names)
        found = self._threads_under(wanted) if wanted else {}
        if found is None:
            return
        self._before, self._confined = self._confined, found
        new = (self.names_in_use() & wanted) - self._places.keys()
        places = {**self._places, **(self._find_places(new) if new else {})}
        self._places = {name: at for name, at in places.items() if name in wanted}
        self._save()

    def record_removals(self, names: Collection[str]) -> None:
        """Find the threads that lost one of these names, or a name that was loaded again since."""
        self._load()
        known = (*self._before.items(), *self._confined.items())
        away = frozenset(names) | self._reloaded()
        for thread, label in known:
            lost = _lost(label, self._current(thread), away) if names_in(label) & away else ""
            if lost:
                self._lost[thread] = lost
        self._save()

    def names_in_use(self) -> frozenset[str]:
        """Return the names under which a thread ran at the last look."""
        return frozenset().union(*(names_in(label) for label in set(self._confined.values())))

    def findings(self) -> tuple[Finding, ...]:
        """Return a problem for each name that living threads lost."""
        self._lost = {one: name for one, name in self._lost.items() if self._lives(one)}
        pids: dict[str, set[int]] = {}
        for thread, name in self._lost.items():
            pids.setdefault(name, set()).add(thread.pid)
        found = tuple(self._lost_problem(name, sorted(pids[name])) for name in sorted(pids))
        return found if self._problem is None else (*found, self._problem)

    def count(self) -> int:
        """Return how many processes have a thread that lost its confinement."""
        return len({thread.pid for thread in self._lost})

    # --- what is decided -------------------------------------------------------------------------

    def _reloaded(self) -> frozenset[str]:
        """Return the names whose profile has another directory than before."""
        now = self._find_places(self._places.keys()) if self._places else {}
        found = frozenset(name for name in now if self._places[name] != now[name])
        self._places |= now
        return found

    def _lost_problem(self, name: str, pids: list[int]) -> Finding:
        shown = ", ".join(f"{pid}{self._owner(pid)}" for pid in pids[:_SHOWN])
        return Finding(
            code="confinement_lost",
            location=name,
            message=f'{len(pids)} process(es) that "{name}" confined run without it since it was '
            f"removed: pid {shown}. A profile that is loaded again does not confine them again.",
            hint="Restart those pods or containers.",
        )

    # --- /proc -----------------------------------------------------------------------------------

    def _threads_under(self, wanted: frozenset[str]) -> dict[Thread, str] | None:
        """Return the threads under one of the names; None: /proc cannot be listed."""
        try:
            pids = [name for name in self.host.names("/proc") if name.isdigit()]
        except HostError:
            return None
        found: dict[Thread, str] = {}
        known = {"": "", _UNCONFINED: ""}  # label as read -> label to note; few labels, many tasks
        for pid in pids:
            for tid in self._tids(pid):
                label = self._label(pid, tid)
                if label not in known:
                    known[label] = label if names_in(label) & wanted else ""
                start = self._start(pid, tid) if known[label] else 0
                if start:
                    found[Thread(int(pid), int(tid), start)] = known[label]
        return found

    def _tids(self, pid: str) -> list[str]:
        try:
            return self.host.names(f"/proc/{pid}/task")
        except HostError:
            return []

    def _current(self, thread: Thread) -> str:
        """Return the label that a thread has now, or nothing if it ended."""
        label = self._label(str(thread.pid), str(thread.tid))
        return label if self._lives(thread) else ""

    def _label(self, pid: str, tid: str) -> str:
        for file in self._files:
            text = self._read(f"/proc/{pid}/task/{tid}/{file}")
            if text:
                self._files = (file, *_FILES)  # the one that this kernel has comes first
                return text.rstrip("\n\0")
        return ""

    def _lives(self, thread: Thread) -> bool:
        return self._start(str(thread.pid), str(thread.tid)) == thread.start

    def _start(self, pid: str, tid: str) -> int:
        """Return a thread's start time, or 0 if it ended."""
        fields = self._read(f"/proc/{pid}/task/{tid}/stat").rpartition(")")[2].split()
        if len(fields) <= _START_FIELD or fields[0] in ("Z", "X"):
            return 0
        return int(fields[_START_FIELD])

    def _owner(self, pid: int) -> str:
        """Return the UID of the pod and the ID of the container of a process, where known."""
        text = self._read(f"/proc/{pid}/cgroup")
        pod, container = _POD.search(text), _CONTAINER.search(text)
        known = [f"pod {pod[1].replace('_', '-')}"] if pod else []
        known += [f"container {container[0][:12]}"] if container else []
        return f" ({', '.join(known)})" if known else ""

    def _read(self, path: str) -> str:
        try:
            content = self.host.read_once(path, size=_READ_BYTES) or b""
            if len(content) == _READ_BYTES:  # the label of a large stack has no limit
                content = self.host.read(path, limit=_LABEL_BYTES)
        except HostError:
            return ""
        return content.decode("utf-8", "surrogateescape")

    # --- the record ------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read the record of an earlier process of the agent in this boot, once."""
        if self._recorded is not None:
            return
        self._recorded = b""
        try:
            boot = self.host.read("/proc/sys/kernel/random/boot_id", limit=64)
            self._boot = boot.decode("ascii", "replace").strip()
            content = self.host.read_regular(self.state_dir, RECORD, limit=_RECORD_BYTES)
        except HostError:
            return
        record = _decoded(content or b"", self._boot)
        if record is not None:
            self._recorded = content
            self._places, self._confined, self._lost = record

    def _save(self) -> None:
        """Write the record if it changed; without fsync, because it is worthless after a reboot."""
        confined = {**self._before, **self._confined}  # a removal may fall into the last look
        content = encoded(self._boot, self._places, confined, self._lost)
        if content == self._recorded or not self._boot or not (self._places or self._recorded):
            return
        try:
            self.host.write_file(self.state_dir, RECORD, content, mode=0o600, durable=False)
        except HostError as error:
            self._problem = Finding(
                code="write_failed",
                location=f"{self.state_dir}/{RECORD}",
                message=f"The record of confined threads cannot be written ({error}). After a "
                "restart "
                "the agent does not know which threads lost their confinement.",
                hint="Make room in the state directory, and check its permissions.",
            )
            return
        self._problem = None
        self._recorded = content


def _lost(before: str, now: str, away: frozenset[str]) -> str:
    """Return the removed profile that a label had and no longer has, or nothing.

    A thread that moved on to another profile, as its policy allows, lost nothing. After a loss, the
    label has only parts that it had before, and `unconfined`.
    """
    left = frozenset(parts(now)) - {_UNCONFINED}
    if not now or not left <= frozenset(parts(before)):
        return ""
    return min((names_in(before) & away) - names_in(now), default="")


def encoded(
    boot: str,
    places: Mapping[str, str],
    confined: Mapping[Thread, str],
    lost: Mapping[Thread, str],
) -> bytes:
    """Return a record of at most RECORDED_THREADS threads, first those that lost confinement."""
    first = sorted(lost.items())[:RECORDED_THREADS]
    then = sorted(confined.items())[: RECORDED_THREADS - len(first)]
    record = {
        "schema": _SCHEMA,
        "boot": boot,
        "places": dict(sorted(places.items())),
        "confined": _grouped(then),
        "lost": _grouped(first),
    }
    return json.dumps(record, separators=(",", ":")).encode()


def _grouped(threads: Iterable[tuple[Thread, str]]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for thread, text in threads:
        found.setdefault(text, []).append(list(thread))
    return found


def _decoded(
    content: bytes, boot: str
) -> tuple[dict[str, str], dict[Thread, str], dict[Thread, str]] | None:
    """Return the content of a record; None if it is damaged, missing or of another boot."""
    try:
        record = json.loads(content)
        if record["schema"] != _SCHEMA or record["boot"] != boot or not boot:
            return None
        places = {str(name): str(at) for name, at in record["places"].items()}
        return places, _ungrouped(record["confined"]), _ungrouped(record["lost"])
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _ungrouped(groups: Mapping[str, Iterable[Iterable[int]]]) -> dict[Thread, str]:
    return {
        Thread(*map(int, thread)): str(text)
        for text, threads in groups.items()
        for thread in threads
    }
