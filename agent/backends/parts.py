"""The interface between a backend package and the rest of the program.

Each package in agent.backends has a module `factory`, whose function `build` returns BackendParts.
agent.app finds `build` by the name of the package, and uses no other part of the package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.core.ports import ConfinementTracker, ProfileBackend
from agent.host.filesystem import Host


class Watcher(Protocol):
    """Detects changes in a separate thread."""

    def start(self) -> None:
        """Start the thread, and return at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendContext:
    """The objects and functions that agent.app passes to each backend. A backend may call the
    functions from other threads.
    """

    host: Host

    may_write_state: bool
    """Whether the backend may write to the state directory."""

    check_completed: Callable[[], None] | None
    """Called after each check that runs in the background; None if the caller waits for all
    checks."""

    policy_changed: Callable[[], None]
    """Called when another program may have changed installed profiles."""

    program_ran: Callable[[float], None]
    """Called with the duration of each program that a backend ran, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendParts:
    """A backend, together with further objects that only some backends provide."""

    backend: ProfileBackend

    confinement_tracker: ConfinementTracker | None = None
    """Finds processes that lost their confinement; None if the removal of a profile does not affect
    processes.
    """

    watchers: tuple[Watcher, ...] = ()
    """The watchers that detect changes of installed profiles. The daemon starts these watchers."""

    watched_paths: tuple[Path, ...] = ()
    """The directories that contain installed profiles. The daemon watches these directories."""
