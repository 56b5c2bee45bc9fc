"""The values that the modules of the agent exchange: keys, profiles, versions and observations.

Every value is immutable, and this module performs no I/O. Empty, missing and unreadable
sources are represented by different types, so that the code cannot confuse them. For the same
reason, there are different types for a node that cannot be observed and for a node that does not
support a profile kind.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from agent.core.findings import Finding
from agent.core.left_out import LeftOut
from agent.core.vocabulary import Provenance, UnreadableCause

ProfileKind = Literal["apparmor", "seccomp"]
KINDS: Final[tuple[ProfileKind, ...]] = get_args(ProfileKind)

# These security modules are only reported, because the agent installs no profiles for them.
SecurityModule = Literal["selinux"]
SECURITY_MODULES: Final[tuple[SecurityModule, ...]] = get_args(SecurityModule)

# The evidence of a profile is a set of opaque tokens that identify its content. Each backend
# defines its own tokens, for example "bytes:<hex>", the sha256 of a file. Two versions have the
# same content if their evidence has at least one token in common. A token is never derived from a
# profile name or an exit status. If a backend cannot read the content, its token may identify an
# unchanged object on the node instead (ObservedProfile.is_readable).
Evidence = frozenset[str]


def digest(content: bytes) -> str:
    """Return the sha256 digest of some content as 64 lower-case hex digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyId:
    """Identifies a profile, a rejection or a ledger entry."""

    kind: ProfileKind
    profile_set: str
    """For example `dir /etc/profiles` or `configmap kube-system/node-profiles`."""

    key: str
    """The data key, or the path relative to the directory, with forward slashes."""

    def __str__(self) -> str:
        return f'{self.kind} profile "{self.key}" in {self.profile_set}'


# --- desired ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKey:
    """One key of one profile set, with its undecoded content."""

    profile_set: str
    key: str
    content: bytes
    prefix: str = ""
    """The directory in which the key is installed, for kinds that install files."""

    name: str = ""
    """The last part of a key's name, such as `audit.json` for `ns/web/audit.json`."""

    @property
    def path(self) -> str:
        """Return the path of this key in the directory of installed files."""
        return self.prefix + (self.name or self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A profile set that was read completely."""

    profile_set: str
    revision: str
    source_keys: tuple[SourceKey, ...]
    rejected_keys: tuple[tuple[str, Finding], ...] = ()
    """The keys that were rejected before their content was read, with the reasons."""

    created: str = ""
    """The creation time of the ConfigMap (RFC 3339, UTC); empty for files on the node."""

    left_out: tuple[LeftOut, ...] = ()
    """The inputs that are not read as profiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied:
    """A profile set that exists but contains no profile."""

    profile_set: str
    revision: str
    reason: str = "it contains no profile"
    left_out: tuple[LeftOut, ...] = ()
    """The inputs that are not read as profiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A profile set that does not exist."""

    profile_set: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A profile set that may exist, but could not be read completely."""

    profile_set: str
    reason: str
    cause: UnreadableCause = UnreadableCause.UNANSWERED


Snapshot = Read | Emptied | Missing | Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a profile as recorded in the ledger, without its bytes."""

    names: tuple[str, ...]
    """The profile names that pods can reference, including the names of child profiles."""

    source_digest: str
    """The sha256 of the content of the key."""

    body_digest: str
    """The sha256 of the bytes that are installed."""

    context: str = ""
    """A digest of every other input that affects the installed bytes, such as the kernel; empty if
    there is none."""

    modes: Mapping[str, str] = field(default_factory=dict)
    """The mode of each profile name; empty for kinds without modes."""

    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """The evidence of the content of each profile name when this version is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """An accepted key. When the profile is installed, the backend provides the body, which consists
    of the bytes to install.
    """

    id: KeyId
    version: Version
    source: bytes
    body_size: int
    """The number of bytes that are installed."""

    findings: tuple[Finding, ...] = ()
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A rejected key. At least one of its findings is an error."""

    id: KeyId
    findings: tuple[Finding, ...]
    names: tuple[str, ...] = ()
    """The names that the key would provide, as far as they are known. These names are not
    removed from the node.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A key that this node cannot check, because the parser or the kernel support is missing."""

    id: KeyId
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A key that is still being checked in the background."""

    id: KeyId
    source: bytes
    findings: tuple[Finding, ...] = ()
    """The reasons why the check takes longer than usual; normally empty."""

    def may_provide(self, name: str) -> bool:
        """Return whether the text of the key contains the last part of a profile name as a word."""
        last = re.escape(name.rpartition("//")[2].encode("utf-8", "surrogateescape"))
        return re.search(rb"(?<![\w.-])" + last + rb"(?![\w.-])", self.source) is not None


Inspected = Profile | Rejection | Unchecked | Pending


# --- observed -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedProfile:
    """The profile that the node has under one name."""

    evidence: Evidence
    """The evidence of the exact content; empty if the content cannot be compared."""

    equivalent_evidence: Evidence = frozenset()
    """The evidence of every content with the same meaning; empty for kinds without it.

    Another program can write a different content with the same meaning. Therefore, this evidence
    does not prove that the agent installed the profile.
    """

    mode: str = ""
    """The mode of the profile; empty for kinds without modes."""

    is_agent_object: bool | None = None
    """Whether this agent created the object on the node.

    Another program can install the same content after the agent's object was removed. The value
    None means that the backend keeps no record of objects, so that only the evidence decides.
    """

    is_readable: bool = True
    """Whether the node shows the content, or a hash of the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """It is proven that no process uses the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """Processes use the profile; their PIDs belong to the PID namespace of the host."""

    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownUse:
    """It is unknown whether a process uses the profile."""

    reason: str


Use = Unused | InUse | UnknownUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A complete observation of the requested profile names of one kind."""

    profiles: Mapping[str, ObservedProfile]
    """The profile of each requested name.

    A name without an entry in the mapping is absent from the node.
    """

    uses: Mapping[str, Use] = field(default_factory=dict)
    """For each profile name that may be removed, whether a process uses the profile."""

    findings: tuple[Finding, ...] = ()
    """Findings about the whole node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unobservable:
    """The node may have profiles of this kind, but the agent could not observe them completely."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """The node does not support profiles of this kind."""

    finding: Finding


Observed = Observation | Unobservable | Unsupported


# --- the ledger ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """The ledger entry of one key. A staged version, whose installation has not finished, does not
    prove ownership.
    """

    id: KeyId
    provenance: Provenance
    installed: Version | None = None
    staged: Version | None = None
    """The version of an installation that has not been verified and committed.

    After several such installations, the version has the names and the evidence of all of them.
    """

    retired: Mapping[str, Evidence] = field(default_factory=dict)
    """Agent-owned names of previous versions that are still on the node, with their evidence.

    A kernel can keep a child profile loaded when its parent is replaced by a version without it.
    """

    prefix: str = ""
    """The prefix of the source key, which is needed to inspect the stored source again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledSize:
    """The number and the size of the keys in a profile set that have an installed version."""

    key_count: int = 0
    content_bytes: int = 0
    """The size of the names and the installed contents of these keys, in bytes."""
