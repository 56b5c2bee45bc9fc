"""The interface between a backend package and the rest of the program.

Each package in agent.backends has a module `factory` with one function, `build`, that returns
BackendParts. agent.app calls it by the name of the package and knows nothing else about a kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.core.ports import ConfinementTracker, ProfileBackend
from agent.host.filesystem import Host


class Watcher(Protocol):
    """Notices changes in a thread of its own."""

    def start(self) -> None:
        """Start the thread, and return at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendContext:
    """Objects and functions for each backend. Other threads call the functions."""

    host: Host

    may_write_state: bool
    """Whether the backend may write to the state directory."""

    check_completed: Callable[[], None] | None
    """Called after each background check; None: the caller waits for all checks."""

    policy_changed: Callable[[], None]
    """Called when another program may have changed installed profiles."""

    program_ran: Callable[[float], None]
    """Called with the duration of each program that a backend ran, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendParts:
    """One backend, and the objects that only some backends have."""

    backend: ProfileBackend

    confinement_tracker: ConfinementTracker | None = None
    """Finds processes that lost their confinement; None: removing a profile changes no process."""

    watchers: tuple[Watcher, ...] = ()
    """Notice changes of installed profiles. The daemon starts them."""

    watched_paths: tuple[Path, ...] = ()
    """Directories of installed profiles. The daemon watches them."""
