"""What the core asks of the world: the protocols that kinds, sources and the ledger fulfil.

Rule 1: nothing here decides. Rule 2: a foreseen failure is a value (a Problem, a Unobservable, an
Unreadable); only a bug is an exception.
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
    """A put that was verified on the node: what the node shows per name, and the modes."""

    evidence: Mapping[str, Evidence]
    modes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A put or a removal that did not happen, or could not be verified."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The names are gone from the node (or were not there)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillInUse:
    """Nothing was removed: per name, who uses it or why that cannot be told."""

    uses: Mapping[str, InUse | UnknownUse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Whether the program that reads a kind's texts is kept from opening other files."""

    finding: Finding | None = None
    """Why it is not; None where the sandbox is active."""


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
    """One kind of profile: recognises nothing, decides nothing; checks, looks, writes, verifies."""

    @property
    def name(self) -> ProfileKind:
        """Return the kind."""

    @property
    def capabilities(self) -> Capabilities:
        """Return how this kind differs from others. The value never changes."""

    def begin_pass(self) -> None:
        """Begin a pass: use what background checks have found since the last one."""

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until no background check is running.

        Args:
            progress: called at least once a second, with how many checks have finished, and how
                many there are.

        Returns:
            Whether the next pass has new results.
        """

    def inspect(self, source_key: SourceKey) -> Inspected:
        """Check one key without touching the node. The same blob gives the same answer."""

    def body(self, profile: Profile) -> bytes | None:
        """Return the bytes to install, whose digest is `profile.version.body_digest`.

        None: the backend does not have them any more. Another `inspect` makes them again.
        """

    def discard(self, profile: Profile) -> None:
        """Remove from memory what `inspect` keeps of a profile; it may be inspected again."""

    def accepts_context(self, context: str) -> bool:
        """Return whether a body made in that Version.context may be put on this node now."""

    def sandbox(self) -> Sandbox | None:
        """Return the state of the sandbox; None for a kind that starts no program."""

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Look at the node: facts for every one of names that is there; uses for suspects."""

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Install the body of a profile, and verify it.

        foreign: names in ours that another program installed with this content; the backend does
        not record them as this agent's own.
        Names not in ours are written so that a profile of somebody else that appeared meanwhile
        is never replaced; it gives Failed with foreign_name instead.
        """

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove names, after a last look at the node.

        They must still hold what evidence says per name (other content is foreign_name) and, with
        prove, nobody may use them.
        """

    def is_unchanged(self) -> bool:
        """Return whether the node is as this kind saw or left it last, by cheap signs.

        The policy revision; stat signatures of files. False where that is not known.
        """

    def invalidate(self) -> None:
        """Trust no cheap sign at the next look."""


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
    """One place that profiles come from."""

    @property
    def watched_path(self) -> Path | None:
        """Return the directory or file of this machine whose changes concern the source, if any."""

    def read(self) -> tuple[Snapshot, ...]:
        """Read every set of this source once; cheap signs may stand for content."""

    def invalidate(self) -> None:
        """Trust no cheap sign at the next read."""

    def explain_absence(self, profile_set: str) -> Snapshot | None:
        """Return what is known of a set of the ledger that `read` did not give.

        None: it is no set of this source, and so nothing of it is touched.
        """


class Ledger(Protocol):
    """The memory of what this agent put on the node."""

    def entries(self) -> Mapping[KeyId, LedgerEntry] | Finding:
        """Return every entry, or why they cannot be trusted (newer schema, unreadable)."""

    def write(self, entry: LedgerEntry) -> Finding | None:
        """Store the entry durably (fsync), replacing the former one atomically."""

    def delete(self, id_: KeyId) -> Finding | None:
        """Forget the entry."""

    def store_content(self, content: bytes) -> Finding | None:
        """Store bytes under their sha256, durably; a no-op if they are there and whole."""

    def has_content(self, digest: str) -> bool:
        """Return whether bytes of that sha256 are kept, as far as a cheap look tells."""

    def content(self, digest: str) -> bytes | None:
        """Return the bytes of that sha256, or None if absent or damaged."""
