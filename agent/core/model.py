"""The values that flow through the agent.

Rule 1: every value is frozen; nothing here reads, writes, logs or knows the time.
Rule 2: empty, missing, unreadable and unsupported are four answers, each a type of its own.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from agent.core.findings import Finding
from agent.core.vocabulary import Provenance, UnreadableCause

ProfileKind = Literal["apparmor", "seccomp"]
KINDS: Final[tuple[ProfileKind, ...]] = get_args(ProfileKind)

# What proves content: opaque tokens such as "raw:sha256:<hex>" (the kernel's hash of the loaded
# blob), "own:sha256:<hex>" (its hash of one profile), "bytes:<hex>" (a file's sha256),
# "canonical:<hex>" (sha256 of a file's canonical form). Two contents are the same when their
# evidence shares a token. No token is ever made from a name or an exit status. Where a backend can
# read no content, a token may identify one unchanged object on the node instead
# (ObservedProfile.is_readable).
Evidence = frozenset[str]


def digest(content: bytes) -> str:
    """Return the lower-case hex sha256 of content (64 characters)."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyId:
    """Which key of which set: the identity of a profile, a rejection and a ledger entry.

    origin is for people and for comparison, e.g. `dir /etc/profiles` or
    `configmap kube-system/node-profiles`. key is the key's name, or the path relative to a
    directory, with forward slashes.
    """

    kind: ProfileKind
    profile_set: str
    key: str

    def __str__(self) -> str:
        return f'{self.kind} profile "{self.key}" in {self.profile_set}'


# --- what should be -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKey:
    """One key of one set, undecoded.

    prefix is prepended to the path of a seccomp profile. name is the key's own name where key is
    qualified to tell it from others of its set (`kube-system/web/audit.json` of a manifest).
    """

    profile_set: str
    key: str
    content: bytes
    prefix: str = ""
    name: str = ""

    @property
    def path(self) -> str:
        """Return the path that a seccomp profile of this key has below the seccomp directory."""
        return self.prefix + (self.name or self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A set that was read completely, once.

    refused: keys that were rejected before their content was read, and why. created: when the API
    server created the set, as RFC 3339 in UTC; empty for files of the node.
    """

    profile_set: str
    revision: str
    source_keys: tuple[SourceKey, ...]
    rejected_keys: tuple[tuple[str, Finding], ...] = ()
    created: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied:
    """A set that exists and holds no profile at all."""

    profile_set: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A set that does not exist."""

    profile_set: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A set that may exist, but could not be read completely.

    cause: no answer came, or the answer is known and is refused: the set is invalid, or it is
    larger than a limit allows.
    """

    profile_set: str
    reason: str
    cause: UnreadableCause = UnreadableCause.UNANSWERED


Snapshot = Read | Emptied | Missing | Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of one profile: what the ledger remembers, without the bytes.

    provides: names that pods refer to (AppArmor profile names with hats and children, or the one
    seccomp localhostProfile path). source, body: sha256 of the key's bytes and of what is put on
    the node (canonical JSON; the compiled policy). context: what body was made for (a digest of
    kernel features, parser and includes; empty where it depends on nothing). modes: AppArmor mode
    per name. evidence: per name, what the node shows when it holds this version.
    """

    names: tuple[str, ...]
    source_digest: str
    body_digest: str
    context: str = ""
    modes: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One accepted key. The backend provides its body when the profile is installed."""

    id: KeyId
    version: Version
    source: bytes
    body_size: int
    """Bytes of what is installed; `version.body_digest` is their digest."""

    findings: tuple[Finding, ...] = ()
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One refused key, with at least one problem of severity error.

    provides: the names that it would provide, where that is known: they are still wanted.
    """

    id: KeyId
    findings: tuple[Finding, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """One key that this node has no means to check (no parser, no kernel support)."""

    id: KeyId
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """One key whose check goes on in the background.

    problems: why the check has taken longer than usual, if it has.
    """

    id: KeyId
    source: bytes
    findings: tuple[Finding, ...] = ()

    def may_provide(self, name: str) -> bool:
        """Return whether the key's text mentions the last part of a name as a word."""
        last = re.escape(name.rpartition("//")[2].encode("utf-8", "surrogateescape"))
        return re.search(rb"(?<![\w.-])" + last + rb"(?![\w.-])", self.source) is not None


Inspected = Profile | Rejection | Unchecked | Pending


# --- what is ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedProfile:
    """What the node has under one name.

    evidence: empty if the content cannot be compared with any other.
    mode: the mode of an AppArmor profile; empty for other kinds.
    is_own: whether this agent created the object that has the name now. The same content may have
        been installed by another program after this agent's object was gone. None: the backend
        keeps no record of objects, and the evidence alone decides.
    is_readable: whether the node shows the content, or a hash of it.
    """

    evidence: Evidence
    mode: str = ""
    is_agent_object: bool | None = None
    is_readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Proof that no process uses the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """Processes that use the name, by process id in the host's PID namespace."""

    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownUse:
    """Neither proof nor counter-proof, and why."""

    reason: str


Use = Unused | InUse | UnknownUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A complete look: every name asked about that is not in facts is absent.

    remarks: findings about the whole node.
    """

    profiles: Mapping[str, ObservedProfile]
    uses: Mapping[str, Use] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unobservable:
    """The node may hold profiles of this kind, but they could not be looked at completely."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """This node cannot have profiles of this kind."""

    finding: Finding


Observed = Observation | Unobservable | Unsupported


# --- what was done before: the ledger ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One ledger entry. A staged version that was never installed is not ownership.

    retired: names that a former version provided, that are still ours to remove, with what the
    node shows for them (AppArmor keeps a child loaded when its parent is replaced without it).
    prefix: the seccomp prefix of its set, needed to check the source again.
    """

    id: KeyId
    provenance: Provenance
    installed: Version | None = None
    staged: Version | None = None
    retired: Mapping[str, Evidence] = field(default_factory=dict)
    prefix: str = ""
