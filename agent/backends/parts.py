"""The interface between a backend package and the rest of the program.

Each package in agent.backends has the name of its profile kind, and a module `factory` with two
functions: `build` returns BackendParts, and `build_checker` returns CheckerParts. The module
agent.backend_loader finds the functions by the name of the kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.core.model import Inspected, SourceKey
from agent.core.ports import ConfinementTracker, ProfileBackend, Sandbox
from agent.host.filesystem import Host


class Watcher(Protocol):
    """Detects changes in a separate thread."""

    def start(self) -> None:
        """Start the thread, and return immediately."""


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
class CheckTarget:
    """The node for which the command `check` checks profiles."""

    arch: str
    """The machine; empty for this machine."""

    kernel: str
    """The kernel version; empty for the running kernel."""


class Checker(Protocol):
    """Checks the profiles of one kind without a node. Each ProfileBackend is also a Checker."""

    def begin_pass(self) -> None:
        """See ProfileBackend."""

    def wait(self, progress: Callable[[int, int], None], /) -> bool:
        """See ProfileBackend."""

    def inspect(self, source_key: SourceKey, /) -> Inspected:
        """See ProfileBackend."""

    def sandbox(self) -> Sandbox | None:
        """See ProfileBackend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckerParts:
    """A checker, with the objects that only some kinds provide."""

    checker: Checker

    features_file: Callable[[], str] | None = None
    """Returns the file with the kernel features for which the texts were compiled; None if the kind
    compiles no texts.
    """


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
