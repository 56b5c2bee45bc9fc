"""The limits on all keys together, which limit the memory that the agent needs.

The limits on single keys do not limit the total, and the content of the sources is not trusted.
Keys are admitted in a fixed order. Keys with an installed version come first, and then keys of
older profile sets; keys of the same age are sorted by name. If a key exceeds a limit, it is
rejected with the code `limit_exceeded`, and its last good version stays. The module
`agent.inspector` then frees the memory of the key.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from agent.core import classify, common_findings
from agent.core.finding_codes import Severity
from agent.core.findings import Finding
from agent.core.model import (
    Inspected,
    KeyId,
    LedgerEntry,
    Profile,
    ProfileKind,
    Read,
    Rejection,
    Snapshot,
    SourceKey,
)
from agent.core.ownership import owned_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The total limits for all profile sets, which docs/operations.md explains."""

    keys: int
    """The number of inspected keys."""

    names: int
    """The number of profile names that all accepted profiles provide."""

    policy_bytes: int
    """The number of bytes that are installed for all accepted profiles together."""

    findings: int
    """The number of findings about keys, apart from the first finding about each key."""

    ledger_entries: int
    ledger_names: int
    """The number of profile names that all ledger entries own."""

    listed: int
    """Keys over a limit that are reported one by one.

    The report only counts all other keys over a limit.
    """


LIMITS: Final = Limits(
    keys=3000,
    names=3000,
    policy_bytes=20 << 20,
    findings=3000,
    ledger_entries=6000,
    ledger_names=6000,
    listed=500,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The amounts that one profile adds to the total counts."""

    names: int
    policy_bytes: int
    ledger_names: int = 0
    """The number of profile names that the key's ledger entry does not own yet."""


SMALLEST: Final = Size(names=1, policy_bytes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One key of a profile kind that the agent handles."""

    kind: ProfileKind
    source_key: SourceKey

    @property
    def id(self) -> KeyId:
        """Return the identifier of the key."""
        return KeyId(
            kind=self.kind, profile_set=self.source_key.profile_set, key=self.source_key.key
        )


def in_admission_order(
    snapshots: Iterable[Snapshot],
    kinds: Collection[ProfileKind],
    entries: Mapping[KeyId, LedgerEntry],
) -> list[Candidate]:
    """Return the keys of all profile sets that were read, in the order of their admission."""
    ranked = [
        ((not _is_installed(entries.get(candidate.id)), snapshot.created), candidate)
        for snapshot in snapshots
        if isinstance(snapshot, Read)
        for key in snapshot.source_keys
        if (kind := classify.classify(key.key, key.content)) is not None and kind in kinds
        for candidate in (Candidate(kind=kind, source_key=key),)
    ]
    ranked.sort(key=lambda item: (*item[0], item[1].source_key.profile_set, item[1].source_key.key))
    return [candidate for _, candidate in ranked]


def _is_installed(entry: LedgerEntry | None) -> bool:
    return entry is not None and entry.installed is not None


@dataclass(slots=True, kw_only=True)
class AdmissionBudget:
    """Tracks how much of each limit remains for the other keys of one pass.

    Only the main thread uses this class.
    """

    limits: Limits
    entries: Mapping[KeyId, LedgerEntry] = field(default_factory=dict)
    has_rejected: bool = False
    """Whether a key was rejected, because it exceeds a limit."""

    _keys: int = 0
    _names: int = 0
    _policy_bytes: int = 0
    _findings: int = 0
    _new_entries: int = 0
    _ledger_names: int = 0
    _owned: set[tuple[ProfileKind, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Count the names that the ledger entries own."""
        for entry in self.entries.values():
            names = owned_names(entry)
            self._ledger_names += len(names)
            self._owned.update((entry.id.kind, name) for name in names)

    def rejection(self, id_: KeyId) -> Rejection | None:
        """Count one key before its inspection, and return a rejection if the key exceeds a
        limit.
        """
        self._keys += 1
        if self._keys > self.limits.keys:
            self.has_rejected = True
            return _rejection(
                id_, f"all profile sets together have more than {self.limits.keys} keys"
            )
        obstacle = self._obstacle(id_, SMALLEST)
        if obstacle is None:
            return None
        self.has_rejected = True
        return _rejection(id_, *obstacle)

    def size(self, profile: Profile) -> Size:
        """Return the amounts that a profile adds to the total counts."""
        entry = self.entries.get(profile.id)
        owned = owned_names(entry) if entry is not None else {}
        return Size(
            names=len(profile.version.names),
            policy_bytes=profile.body_size,
            ledger_names=sum(name not in owned for name in profile.version.names),
        )

    def fits(self, id_: KeyId, size: Size) -> bool:
        """Return whether a profile of this size is within the limits."""
        is_within = self._obstacle(id_, size) is None
        self.has_rejected = self.has_rejected or not is_within
        return is_within

    def admitted(self, inspected: Inspected) -> Inspected:
        """Count the result of an inspection, and return a rejection if the result exceeds a limit.

        If there are more findings than allowed, only one finding about each key remains. This
        finding is an error if the key has any errors.
        """
        if isinstance(inspected, Rejection):
            return replace(inspected, findings=self._trimmed(inspected.findings))
        if not isinstance(inspected, Profile):
            return inspected
        size = self.size(inspected)
        obstacle = self._obstacle(inspected.id, size)
        if obstacle is not None:
            self.has_rejected = True
            # The rejected key still claims the names in its ledger entry, so that the agent does
            # not remove them from the node.
            names = inspected.version.names
            claimed = tuple(name for name in names if (inspected.id.kind, name) in self._owned)
            return replace(_rejection(inspected.id, *obstacle), names=claimed)
        self._names += size.names
        self._policy_bytes += size.policy_bytes
        self._new_entries += inspected.id not in self.entries
        self._ledger_names += size.ledger_names
        return replace(inspected, findings=self._trimmed(inspected.findings))

    def _obstacle(self, id_: KeyId, size: Size) -> tuple[str, str] | None:
        """Return the description of the limit that a profile would exceed, with a hint; None if it
        exceeds no limit.
        """
        limits = self.limits
        if self._names + size.names > limits.names:
            return f"all profile sets together have more than {limits.names} names", _FEWER
        if self._policy_bytes + size.policy_bytes > limits.policy_bytes:
            size_text = f"{limits.policy_bytes} bytes of installed profiles"
            return f"all profile sets together have more than {size_text}", _FEWER
        is_new = id_ not in self.entries
        if is_new and len(self.entries) + self._new_entries >= limits.ledger_entries:
            return f"the ledger has {limits.ledger_entries} entries", _LEDGER
        if size.ledger_names and self._ledger_names + size.ledger_names > limits.ledger_names:
            return f"the ledger entries own more than {limits.ledger_names} names", _LEDGER
        return None

    def _trimmed(self, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
        remaining = max(0, self.limits.findings - self._findings)
        if len(findings) > 1 + remaining:
            ranked = sorted(findings, key=lambda finding: finding.severity != Severity.ERROR)
            findings = tuple(ranked[: 1 + remaining])
        self._findings += max(0, len(findings) - 1)
        return findings


_FEWER: Final = (
    "Remove keys that no pod uses. Installed keys come first, then keys of older profile sets."
)
_LEDGER: Final = (
    "Remove the profiles of deleted profile sets; the runbook describes how (limit_exceeded)."
)


def _rejection(id_: KeyId, reason: str, hint: str = _FEWER) -> Rejection:
    finding = common_findings.limit_exceeded(
        location=id_.key,
        message=f"The key is not installed, because {reason}. "
        "The last good version of the key stays, if there is one.",
        hint=hint,
    )
    return Rejection(id=id_, findings=(finding,))


def unlisted_keys(origin: str, count: int) -> Finding:
    """Return the finding about those keys of a profile set that the report does not list
    individually.
    """
    return common_findings.limit_exceeded(
        location=origin,
        message=f"{count} more keys are not installed, because all profile sets together exceed a "
        "limit. The last good versions stay installed.",
        hint=_FEWER,
    )
