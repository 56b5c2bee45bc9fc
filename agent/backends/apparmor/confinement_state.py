"""The threads that ran under agent-owned profiles, and the threads that lost their confinement.

This module only keeps the state in memory. `confinement_tracker` reads the threads and decides
which of them lost their confinement. `confinement_record` stores the state for the next process of
the agent.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from agent.backends.apparmor.processes import names_in
from agent.backends.apparmor.thread_reader import Thread


@dataclass(slots=True, kw_only=True)
class ConfinementState:
    """The threads and the profiles that the tracker has recorded."""

    directories: Mapping[str, str] = field(default_factory=dict)
    """Maps the name of a profile to the directory in which the kernel shows the profile."""

    confined: dict[Thread, str] = field(default_factory=dict)
    """Maps a thread to its label at the last observation."""

    previous: dict[Thread, str] = field(default_factory=dict)
    """Maps a thread to its label at the second-to-last observation."""

    lost: dict[Thread, str] = field(default_factory=dict)
    """Maps a thread to the profile whose confinement the thread lost."""

    def names_in_use(self) -> frozenset[str]:
        """Return the names of the profiles that had at least one thread at the last observation."""
        labels = set(self.confined.values())
        return frozenset().union(*(names_in(label) for label in labels))

    def threads_under(self, names: Collection[str]) -> list[tuple[Thread, str]]:
        """Return the threads of the last two observations whose label contains the given profile
        name.

        A thread occurs once for each observation, with its label at that time.
        """
        known = (*self.previous.items(), *self.confined.items())
        return [(thread, label) for thread, label in known if not names_in(label).isdisjoint(names)]

    def record_observation(self, confined: Mapping[Thread, str]) -> None:
        """Record the threads of a new observation with their labels."""
        self.previous, self.confined = self.confined, dict(confined)

    def record_directories(self, directories: Mapping[str, str]) -> None:
        """Record the directories of all tracked profiles."""
        self.directories = directories

    def refresh(
        self,
        names: Collection[str],
        confined: Mapping[Thread, str],
        current_label: Callable[[Thread], str | None],
    ) -> None:
        """Replace every recorded label that contains one of the names with the current label of its
        thread.

        Args:
            names: the names of profiles.
            confined: the threads that now run under one of the names, with their labels.
            current_label: returns the label of another thread; None if the thread has ended or is
                unconfined.
        """
        for known in (self.previous, self.confined):
            left = [
                thread
                for thread, label in known.items()
                if thread not in confined and not names_in(label).isdisjoint(names)
            ]
            for thread in left:
                label = current_label(thread)
                if label is None:
                    del known[thread]
                else:
                    known[thread] = label
        self.confined |= confined

    def record_loss(self, thread: Thread, profile: str) -> None:
        """Record that a thread lost the confinement of a profile."""
        self.lost[thread] = profile

    def forget_ended(self, is_alive: Callable[[Thread], bool]) -> None:
        """Forget the unconfined threads that have ended."""
        self.lost = {thread: name for thread, name in self.lost.items() if is_alive(thread)}
