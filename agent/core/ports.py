"""The protocols that backends, sources and the ledger implement, with their result types.

Nothing in this module decides. An expected failure is a value, such as a finding, `Unobservable`
or `Unreadable`; only a bug raises an exception.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from agent.core.findings import Finding
from agent.core.model import (
    Evidence,
    Inspected,
    InUse,
    KeyId,
    LedgerEntry,
    Observed,
    Profile,
    ProfileKind,
    Snapshot,
    SourceKey,
    UnknownUse,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A verified installation, with the evidence and the mode of each name on the node."""

    evidence: Mapping[str, Evidence]
    modes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An installation or a removal that failed, or that could not be verified."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The names are no longer on the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillInUse:
    """Nothing was removed, because these names are in use, or their use is not known."""

    uses: Mapping[str, InUse | UnknownUse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Whether a sandbox keeps the program that reads profile texts from opening other files."""

    finding: Finding | None = None
    """Why there is no sandbox; None if the sandbox is active."""


class InstalledForm(StrEnum):
    """What a backend installs for a profile."""

    FILE = "file"
    POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """How profile kinds differ, as far as decisions and reports depend on it."""

    removal_unconfines: bool
    """Whether removing a profile ends the confinement of its processes for good.

    The removal of such a profile needs proof that no process uses it.
    """

    installed_form: InstalledForm
    """Which digest of a report identifies the installed version: of the file or of the policy."""


class ProfileBackend(Protocol):
    """Inspects, observes, installs, verifies and removes the profiles of one kind."""

    @property
    def name(self) -> ProfileKind:
        """Return the kind."""

    @property
    def capabilities(self) -> Capabilities:
        """Return how this kind differs from others. The value never changes."""

    def begin_pass(self) -> None:
        """Begin a pass, and collect the results of background checks."""

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until no background check is running.

        Args:
            progress: called at least once a second, with how many checks have finished, and how
                many there are.

        Returns:
            Whether the next pass has new results.
        """

    def inspect(self, source_key: SourceKey) -> Inspected:
        """Check one key without a change of the node. The same key gives the same result."""

    def body(self, profile: Profile) -> bytes | None:
        """Return the bytes to install, whose digest is `profile.version.body_digest`.

        None: the backend no longer has these bytes. Another `inspect` produces them again.
        """

    def discard(self, profile: Profile) -> None:
        """Free the memory that `inspect` uses for a profile. It may be inspected again later."""

    def accepts_context(self, context: str) -> bool:
        """Return whether a body with this `Version.context` may be installed on this node now."""

    def sandbox(self) -> Sandbox | None:
        """Return the state of the sandbox; None for a kind that starts no program."""

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Observe the names on the node, and the use of the names that may be removed."""

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Install the body of a profile, and verify it.

        Args:
            profile: the profile to install.
            body: the bytes to install.
            replaceable: names whose content on the node may be replaced. If any other name is on
                the node, nothing is replaced, and the result is Failed with `foreign_name`.
            foreign: replaceable names that another program installed with this content. The
                backend does not record them as created by this agent.
        """

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove names after another check of the node.

        Each name must still have the content of its evidence; other content is `foreign_name`.
        With `require_unused`, no process may use any of the names.
        """

    def is_unchanged(self) -> bool:
        """Return whether the node is unchanged since the last observation or action.

        Signatures and revisions are enough; False if they cannot tell.
        """

    def invalidate(self) -> None:
        """Read the content itself at the next observation."""


class ConfinementTracker(Protocol):
    """Finds processes that lost their confinement, because their profile was removed."""

    def observe(self, names: Collection[str]) -> None:
        """Record every thread that runs under one of these profiles now."""

    def names_in_use(self) -> frozenset[str]:
        """Return the profiles under which a thread ran at the last observation."""

    def record_removals(self, names: Collection[str]) -> None:
        """Find the threads that ran under one of these profiles, and are unconfined now."""

    def findings(self) -> tuple[Finding, ...]:
        """Return a finding for each profile whose processes lost their confinement."""

    def count(self) -> int:
        """Return how many running processes have lost their confinement."""


class Source(Protocol):
    """A place that profiles come from."""

    @property
    def watched_path(self) -> Path | None:
        """Return the directory or file to watch for changes of the source, or None."""

    def read(self) -> tuple[Snapshot, ...]:
        """Read every profile set once. A set with an unchanged signature is not read again."""

    def invalidate(self) -> None:
        """Read the content itself at the next `read`."""

    def explain_absence(self, profile_set: str) -> Snapshot | None:
        """Return the snapshot of a profile set of the ledger that `read` did not return.

        None: the set does not belong to this source, so its profiles are left alone.
        """


class Ledger(Protocol):
    """The record of the profiles that this agent installed on the node."""

    def entries(self) -> Mapping[KeyId, LedgerEntry] | Finding:
        """Return every entry, or why they cannot be trusted (newer schema, unreadable)."""

    def write(self, entry: LedgerEntry) -> Finding | None:
        """Store an entry durably (fsync), and replace its previous version atomically."""

    def delete(self, id_: KeyId) -> Finding | None:
        """Delete an entry."""

    def store_content(self, content: bytes) -> Finding | None:
        """Store bytes under their sha256, durably; a no-op if they are there and whole."""

    def has_content(self, digest: str) -> bool:
        """Return whether bytes with this sha256 are stored. Their content is not read."""

    def content(self, digest: str) -> bytes | None:
        """Return the bytes of that sha256, or None if absent or damaged."""
