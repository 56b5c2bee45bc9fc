"""The protocols that backends, sources and the ledger implement, with their result types.

This module contains no logic. An expected failure is returned as a value, such as a finding,
`Unobservable` or `Unreadable`. An exception is raised only because of a bug.
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
    SecurityModule,
    Snapshot,
    SourceKey,
    UnknownUse,
)
from agent.core.vocabulary import ModuleMode

Progress = Callable[[str, int, int], None]
"""Shows a kind of work, the number of its finished parts, and the number of all its parts."""


def no_progress(_work: str, _finished: int, _total: int) -> None:
    """Show no progress, because the caller has no user who waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The result of a verified installation, with the evidence and the mode of each profile
    name.
    """

    evidence: Mapping[str, Evidence]
    modes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The result of an installation or a removal that failed, or that could not be verified."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The result of a successful removal: the names are no longer on the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillInUse:
    """The result of a removal that was not carried out because a profile is or may be in use."""

    uses: Mapping[str, InUse | UnknownUse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """The state of the sandbox, which limits the files that the parser of profile texts can
    open.
    """

    finding: Finding | None = None
    """The finding that the parser has no sandbox; None if the sandbox is active."""


class InstalledForm(StrEnum):
    """The form in which a backend installs profiles."""

    FILE = "file"
    POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The properties of a profile kind that affect decisions and reports."""

    removal_unconfines: bool
    """Whether the processes of a removed profile stay unconfined, even if it is installed again.

    If the value is true, a removal requires proof that no process uses the profile.
    """

    installed_form: InstalledForm
    """Which digest identifies the installed version in reports: the file digest or the policy
    digest.
    """


class ProfileBackend(Protocol):
    """Inspects, observes, installs, verifies and removes the profiles of one kind."""

    @property
    def name(self) -> ProfileKind:
        """Return the kind of profile that this backend handles."""

    @property
    def capabilities(self) -> Capabilities:
        """Return the properties in which this profile kind differs from others. They never
        change.
        """

    def begin_pass(self) -> None:
        """Begin a pass, and collect the results of checks that ran in the background."""

    def wait(self, progress: Callable[[int, int], None], /) -> bool:
        """Wait until no background check is running.

        Args:
            progress: called at least once a second, with the number of finished checks and the
                number of all checks.

        Returns:
            Whether new results are available for the next pass.
        """

    def inspect(self, source_key: SourceKey) -> Inspected:
        """Check one key without changing the node; the result depends only on the key."""

    def body(self, profile: Profile) -> bytes | None:
        """Return the bytes to install, whose digest is `profile.version.body_digest`.

        If the backend no longer has these bytes, the result is None, and `inspect` produces the
        bytes again.
        """

    def discard(self, profile: Profile) -> None:
        """Free the memory of an inspected profile. A later call to `inspect` recreates the
        result.
        """

    def accepts_context(self, context: str) -> bool:
        """Return whether the bytes of a version with this `Version.context` may be installed on
        this node now.
        """

    def sandbox(self) -> Sandbox | None:
        """Return the state of the sandbox; None if the backend runs no program."""

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Observe profiles on the node.

        Args:
            names: the names to observe.
            removal_candidates: the names for which use is observed as well.
        """

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Install the body of a profile, and verify the installation.

        Args:
            profile: the profile to install.
            body: the bytes to install.
            replaceable: names whose content on the node may be replaced. If the node has a profile
                under a name that is not replaceable, nothing is replaced, and the result is Failed
                with `foreign_name`.
            foreign: replaceable names that another program installed with this content. The backend
                does not record these profiles as created by this agent.
        """

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove profiles after another check of the node.

        If a profile no longer has the content that its evidence identifies, the result is Failed
        with `foreign_name`. With `require_unused`, the backend removes nothing if a process may use
        one of the names.
        """

    def is_unchanged(self) -> bool:
        """Return whether the node is unchanged since the last observation or action.

        The check may rely on signatures and revisions. The result is False if the check is
        inconclusive.
        """

    def invalidate(self) -> None:
        """Make the next observation read all content, even if signatures are unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleState:
    """The state of a security module for which the agent installs nothing."""

    mode: ModuleMode
    finding: Finding | None = None
    """The finding that the mode is unknown; None if the mode is known."""


ModuleStates = Mapping[SecurityModule, ModuleState]


class ConfinementTracker(Protocol):
    """Finds processes that lost their confinement when their profile was removed."""

    def observe(self, names: Collection[str]) -> None:
        """Record every thread that currently runs under one of the named profiles."""

    def names_in_use(self) -> frozenset[str]:
        """Return the profiles that had at least one thread at the last observation."""

    def record_removals(self, names: Collection[str]) -> None:
        """Find threads that became unconfined because these profiles were removed."""

    def findings(self) -> tuple[Finding, ...]:
        """Return a finding for each profile whose processes lost their confinement."""

    def count(self) -> int:
        """Return how many running processes have lost their confinement."""


class Source(Protocol):
    """Provides profile sets from one origin, for example from a directory."""

    @property
    def watched_path(self) -> Path | None:
        """Return the directory or file to watch for changes of the source, or None."""

    def read(self) -> tuple[Snapshot, ...]:
        """Read every profile set once.

        The source does not read a profile set again while the signature of the set is unchanged.
        """

    def invalidate(self) -> None:
        """Make the next `read` read all content, even if signatures are unchanged."""

    def explain_absence(self, profile_set: str, /) -> Snapshot | None:
        """Return the snapshot of a profile set that is in the ledger but was not returned by
        `read`.

        The result is None if the set does not belong to this source. The profiles of such a set
        stay on the node.
        """


class Ledger(Protocol):
    """Records the profiles that this agent installed on the node."""

    def entries(self) -> Mapping[KeyId, LedgerEntry] | Finding:
        """Return all ledger entries, or a finding if the ledger is unreadable or has a newer
        schema.
        """

    def write(self, entry: LedgerEntry) -> Finding | None:
        """Store a ledger entry durably (fsync), and replace its previous version atomically."""

    def delete(self, id_: KeyId) -> Finding | None:
        """Delete the ledger entry of a key."""

    def store_content(self, content: bytes) -> Finding | None:
        """Store bytes durably under their sha256 digest, unless intact bytes are already stored."""

    def has_content(self, digest: str) -> bool:
        """Return whether bytes with this sha256 digest are stored, without reading them."""

    def content(self, digest: str) -> bytes | None:
        """Return the bytes with this sha256 digest, or None if they are missing or damaged."""
