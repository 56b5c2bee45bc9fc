"""Finds the threads that lost their confinement because their profile was removed.

After a profile is removed and loaded again, the kernel does not re-confine the threads that ran
under it (docs/security.md). The tracker reports these unconfined threads until they end. The
tracker remembers the threads of the last two observations, because a profile may be removed during
the last observation. `confinement_record` preserves this information when the agent restarts. The
tracker misses threads that began after the last observation, which is at most 10 seconds old.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from agent.backends.apparmor.confinement_record import ConfinementRecord
from agent.backends.apparmor.confinement_state import ConfinementState
from agent.backends.apparmor.processes import names_in, parts
from agent.backends.apparmor.thread_reader import UNCONFINED, Thread, ThreadReader
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.host.filesystem import Host

_LISTED_PIDS: Final = 5


class ConfinementTracker:
    """Remembers which threads ran under agent-owned profiles. Only the main thread uses the
    tracker.
    """

    def __init__(
        self,
        host: Host,
        *,
        state_dir: str,
        find_directories: Callable[[Collection[str]], Mapping[str, str]],
        may_write: bool = True,
    ) -> None:
        """Create a tracker.

        Args:
            host: the host root.
            state_dir: the directory of the record.
            find_directories: returns the directory in which the kernel shows each loaded profile
                with a given name. A replaced profile keeps its directory; a profile that was
                removed and loaded again has a different directory.
            may_write: whether the record may be written.
        """
        self._find_directories = find_directories
        self._threads = ThreadReader(host)
        self._record = ConfinementRecord(host, state_dir, may_write=may_write)
        self._loaded_state: ConfinementState | None = None

    @property
    def _state(self) -> ConfinementState:
        """The current state, which is read from the record at the first access."""
        if self._loaded_state is None:
            self._loaded_state = self._record.load()
        return self._loaded_state

    def observe(self, names: Collection[str]) -> None:
        """Record every thread that runs under one of the named profiles; without names, read
        nothing.
        """
        state = self._state
        tracked = frozenset(names)
        confined = self._threads.under(tracked) if tracked else {}
        if confined is None:
            return
        state.record_observation(confined)
        new = (state.names_in_use() & tracked) - state.directories.keys()
        directories = {**state.directories, **(self._find_directories(new) if new else {})}
        state.record_directories(
            {name: path for name, path in directories.items() if name in tracked}
        )
        self._record.save(state)

    def observe_before_removal(self, names: Collection[str]) -> None:
        """Observe the threads of profiles that the agent is about to remove.

        If a thread changed its profile itself, as its policy allows, the removal does not affect
        it. Without this observation, the tracker would miss threads that began after the last
        observation and that the removal unconfines.
        """
        if not names:
            return
        self._find_lost(self._reloaded())
        removed = frozenset(names)
        confined = self._threads.under(removed)
        if confined is None:
            return
        state = self._state
        state.refresh(removed, confined, self._confined_label)
        self._record.save(state)

    def record_removals(self, names: Collection[str]) -> None:
        """Find the threads that lost a removed profile, even if the profile was loaded again."""
        self._find_lost(frozenset(names) | self._reloaded())
        self._record.save(self._state)

    def names_in_use(self) -> frozenset[str]:
        """Return the names of the profiles that had at least one thread at the last observation."""
        return self._state.names_in_use()

    def findings(self) -> tuple[Finding, ...]:
        """Return a finding for each profile whose removal unconfined threads that still run."""
        state = self._state
        state.forget_ended(self._threads.is_alive)
        pids: dict[str, set[int]] = {}
        for thread, name in state.lost.items():
            pids.setdefault(name, set()).add(thread.pid)
        findings = tuple(self._confinement_lost(name, sorted(pids[name])) for name in sorted(pids))
        problem = self._record.problem
        return findings if problem is None else (*findings, problem)

    def count(self) -> int:
        """Return how many processes have a thread that lost its confinement."""
        return len({thread.pid for thread in self._state.lost})

    def _confined_label(self, thread: Thread) -> str | None:
        """Return the label of a thread; None if the thread has ended or is unconfined."""
        label = self._threads.current_label(thread)
        return None if label in ("", UNCONFINED) else label

    def _find_lost(self, removed: frozenset[str]) -> None:
        """Record the threads that lost the confinement of a removed profile."""
        state = self._state
        for thread, label in state.threads_under(removed):
            profile = _lost_profile(label, self._threads.current_label(thread), removed)
            if profile:
                state.record_loss(thread, profile)

    def _reloaded(self) -> frozenset[str]:
        """Return the names of the profiles that are now in a different directory than before."""
        before = self._state.directories
        now = self._find_directories(before.keys()) if before else {}
        self._state.record_directories({**before, **now})
        return frozenset(name for name in now if before[name] != now[name])

    def _confinement_lost(self, name: str, pids: list[int]) -> Finding:
        listed = ", ".join(f"{pid}{self._threads.owner(pid)}" for pid in pids[:_LISTED_PIDS])
        return Finding(
            code=FindingCode.CONFINEMENT_LOST,
            location=name,
            message=f'{len(pids)} process(es) that ran under "{name}" have been running without '
            f"this profile since it was removed: pid {listed}. A profile that is loaded "
            "again does not confine them again.",
            hint="Restart the affected pods or containers.",
        )


def _lost_profile(before: str, now: str, removed: frozenset[str]) -> str:
    """Return the removed profile that only the previous label contains, or "" if there is none.

    A thread that changed to another profile, as its policy allows, has not lost its confinement.
    The label of a thread that lost its confinement contains only `unconfined` and profiles from its
    previous label.
    """
    left = frozenset(parts(now)) - {UNCONFINED}
    if not now or not left <= frozenset(parts(before)):
        return ""
    return min((names_in(before) & removed) - names_in(now), default="")
