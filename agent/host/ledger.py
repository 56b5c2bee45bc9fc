"""Records the profiles that this agent installed, in small files that survive a crash.

STATE/entries/<sha256 of kind, profile set and key>.json contains one entry. STATE/bodies/<sha256>
contains bytes that ledger entries reference. STATE/lock prevents a second agent from running. If an
entry has a newer schema, the agent changes nothing on the node, because it cannot interpret the
entry. A damaged entry counts as absent and is reported, and no profile is removed because of the
entry. A ledger entry proves ownership only if no user except root and the agent's own user can
write it.
"""

import contextlib
import errno
import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from agent.core import common_findings, model
from agent.core.admission import LIMITS
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import Evidence, KeyId, LedgerEntry, ProfileKind, Version
from agent.core.vocabulary import Provenance
from agent.host import temporary_files
from agent.host.file_role import FileRole
from agent.host.filesystem import Host, HostError
from agent.host.installed_keys import InstalledKeys
from agent.host.stat_signature import Signature

SCHEMA = 1
_LIMIT = 16 << 20
# The limit for the total size of all ledger entries. 6,000 profile names need about 8 MiB.
READ_BYTES: Final = 32 << 20
_SUBJECT: Final = "The installed profiles"
READ_ENTRIES: Final = 2 * LIMITS.ledger_entries
_ENTRIES = "entries"
_BODIES = "bodies"
# The agent may remove only digests and the temporary files of interrupted writes.
_REMOVABLE_BODY: Final = re.compile(rf"[0-9a-f]{{64}}|{re.escape(temporary_files.PREFIX)}.*")
# msgspec raises these errors, for example for invalid UTF-8 and for deep nesting.
_DECODING_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
Signatures = dict[str, Signature]


_StoredProvenance = Literal["put", "adopted"]
_PROVENANCES: Final[Mapping[_StoredProvenance, Provenance]] = {
    "put": Provenance.INSTALLED,
    "adopted": Provenance.ADOPTED,
}
_STORED_PROVENANCES: Final = {value: stored for stored, value in _PROVENANCES.items()}


class _StoredVersion(msgspec.Struct, forbid_unknown_fields=True):
    provides: list[str]
    source: str
    body: str
    context: str
    modes: dict[str, str]
    evidence: dict[str, list[str]]


class _StoredEntry(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    kind: ProfileKind
    origin: str
    key: str
    how: _StoredProvenance
    prefix: str
    installed: _StoredVersion | None
    staged: _StoredVersion | None
    retired: dict[str, list[str]]


class _Schema(msgspec.Struct):
    schema: int


class FileLedger:
    """The ledger in a state directory on the host. Implements agent.core.ports.Ledger."""

    def __init__(self, host: Host, directory: str) -> None:
        self.host = host
        self.directory = directory
        self.findings: list[Finding] = []
        self.installed_keys = InstalledKeys(host, f"{directory}/{_BODIES}")
        self.revision = 0
        """The number of reads of the entries. Equal revisions mean equal ledger entries."""

        # The stat signatures of the files at the last read or write.
        self._last_signatures: Signatures | None = None
        self._cached: tuple[Signatures, Mapping[KeyId, LedgerEntry]] | None = None
        # The digests of the stored bytes; None until the directory is listed.
        self._bodies: set[str] | None = None

    def entries(self) -> Mapping[KeyId, LedgerEntry] | Finding:
        """Return all complete entries, or the reason why the ledger cannot be used.

        After the call, `findings` contains the damaged entries. The files are read only if the
        signature of the directory or of a file has changed.
        """
        base = f"{self.directory}/{_ENTRIES}"
        signatures = self._last_signatures = self._read_signatures()
        if self._cached is not None and self._cached[0] == signatures:
            return self._cached[1]
        self.revision += 1
        self._cached = None
        self.findings = []
        entries: dict[KeyId, LedgerEntry] = {}
        reason = self._refusal_reason(base, signatures)
        if reason is not None:
            return reason
        try:
            names = self.host.names(base) if self.host.exists(base) else []
            for name in names:
                if not name.endswith(".json") or name.startswith("."):
                    continue
                entry = self._entry(base, name)
                if isinstance(entry, Finding):
                    return entry
                if entry is not None:
                    entries[entry.id] = entry
        except HostError as error:
            return common_findings.kind_unobservable(
                location=error.path,
                subject=_SUBJECT,
                reason=f"the ledger cannot be read ({error})",
                hint="Make the state directory readable, or pass another one with --state-dir.",
            )
        self.installed_keys.replace(entries.values())
        if signatures is not None:
            self._cached = (signatures, entries)
        return entries

    def _refusal_reason(self, base: str, signatures: Signatures | None) -> Finding | None:
        """Return a finding if the ledger entries must not be read, or None."""
        for directory in (self.directory, base):
            if self.host.is_owned_by_others(directory):
                return _not_private(directory)
        is_too_large = signatures is not None and _is_too_large(signatures)
        return _too_large(base) if is_too_large else None

    def make_private(self) -> tuple[str, ...]:
        """Make the directories private to the agent's user, and return the changed directories.

        An emptyDir volume, for example, has mode 0777. Entries that other users could write before
        this change still count as damaged.
        """
        directories = (self.directory, f"{self.directory}/{_ENTRIES}")
        changed = []
        for directory in directories:
            # If the file system is read-only, each write reports the error.
            with contextlib.suppress(HostError):
                if self.host.make_private(directory):
                    changed.append(directory)
        return tuple(changed)

    def is_unchanged(self) -> bool:
        """Return whether no other process changed a ledger entry since the last read or write."""
        return self._read_signatures() == self._last_signatures

    def _read_signatures(self) -> Signatures | None:
        """Return the signature of the directory (under the name "") and of each file in it."""
        return self.host.signatures(f"{self.directory}/{_ENTRIES}")

    def _record_write(self, name: str) -> None:
        """Record the signatures only of files that this process wrote."""
        base = f"{self.directory}/{_ENTRIES}"
        signatures = dict(self._last_signatures or {})
        for key, path in ((name, f"{base}/{name}"), ("", base)):
            signature = self.host.signature(path)
            if signature is not None:
                signatures[key] = signature
            else:
                signatures.pop(key, None)
        self._last_signatures = signatures

    def invalidate(self) -> None:
        """Discard all signatures, so that the next read processes every ledger entry."""
        self._cached = self._bodies = None

    def _entry(self, base: str, name: str) -> LedgerEntry | Finding | None:
        """Read one ledger entry. An entry that other users may write counts as damaged."""
        try:
            content = self.host.read_regular(base, name, limit=_LIMIT, private=True)
        except HostError as error:
            if error.errno != errno.EPERM:
                raise
            content = b""
        return self._read(name, content or b"")

    def _read(self, name: str, content: bytes) -> LedgerEntry | Finding | None:
        path = f"{self.directory}/{_ENTRIES}/{name}"
        stored = _decoded(content)
        schema = stored.schema if stored is not None else _schema(content)
        if schema > SCHEMA:
            return Finding(
                code=FindingCode.LEDGER_NEWER,
                location=path,
                message=f"The entry has schema {schema}; this version knows up to {SCHEMA}. "
                "Nothing is changed.",
                hint="Run the newer version of profile-loader that wrote it.",
            )
        entry = _from_stored(stored) if stored is not None else None
        if entry is None or _file_name(entry.id) != name:
            self.findings.append(
                Finding(
                    code=FindingCode.LEDGER_DAMAGED,
                    location=path,
                    message="The entry is incomplete, or users other than root may write to it. "
                    "The entry counts as absent, and none of its profiles are removed.",
                    hint="Delete the file once its profile is installed or no longer desired.",
                )
            )
            return None
        return entry

    def write(self, entry: LedgerEntry) -> Finding | None:
        """Store a ledger entry durably."""
        content = msgspec.json.format(msgspec.json.encode(_to_stored(entry)), indent=1)
        finding = self._write(_ENTRIES, _file_name(entry.id), content)
        if finding is None:
            self.installed_keys.record(entry)
        self._record_write(_file_name(entry.id))
        return finding

    def delete(self, id_: KeyId) -> Finding | None:
        """Remove an entry."""
        try:
            self.host.remove_file(f"{self.directory}/{_ENTRIES}", _file_name(id_))
        except HostError as error:
            return _write_failed(error)
        self.installed_keys.remove(id_)
        self._record_write(_file_name(id_))
        return None

    def store_content(self, content: bytes) -> Finding | None:
        """Store bytes under their sha256 digest, unless the complete bytes are already stored."""
        digest = model.digest(content)
        if self.content(digest) is not None:
            return None
        self._bodies = None
        return self._write(_BODIES, digest, content)

    def has_content(self, digest: str) -> bool:
        """Return whether these bytes are stored; True if the directory cannot be read."""
        if self._bodies is None:
            base = f"{self.directory}/{_BODIES}"
            try:
                self._bodies = set(self.host.names(base) if self.host.exists(base) else ())
            except HostError:
                return True
        return digest in self._bodies

    def content(self, digest: str) -> bytes | None:
        """Return the bytes with a sha256 digest, or None if they cannot be read or are damaged."""
        try:
            content = self.host.read_regular(f"{self.directory}/{_BODIES}", digest, limit=_LIMIT)
        except HostError:
            return None
        return content if content is not None and model.digest(content) == digest else None

    def sweep(self, entries: Mapping[KeyId, LedgerEntry]) -> None:
        """Remove stored bytes that no entry references. A failure only wastes disk space."""
        used = {
            digest
            for entry in entries.values()
            for version in (entry.installed, entry.staged)
            if version is not None
            for digest in (version.source_digest, version.body_digest)
        }
        base = f"{self.directory}/{_BODIES}"
        try:
            for name in self.host.names(base) if self.host.exists(base) else []:
                if name not in used and _REMOVABLE_BODY.fullmatch(name):
                    self.host.remove_file(base, name)
        except HostError:
            return

    def _write(self, folder: str, name: str, content: bytes) -> Finding | None:
        try:
            self.host.write_file(f"{self.directory}/{folder}", name, content, role=FileRole.RECORD)
        except HostError as error:
            return _write_failed(error)
        return None


def _is_too_large(signatures: Signatures) -> bool:
    """Return whether all ledger entries together would need more memory than the agent has."""
    sizes = [signature[2] for name, signature in signatures.items() if name.endswith(".json")]
    return len(sizes) > READ_ENTRIES or sum(sizes) > READ_BYTES


def _too_large(directory: str) -> Finding:
    return common_findings.limit_exceeded(
        location=directory,
        message=f"The ledger has more than {READ_ENTRIES} entries or {READ_BYTES} bytes. It is not "
        "read, and nothing is changed.",
        hint="Remove the profiles that deleted profile sets left on the node; the runbook "
        "describes how (limit_exceeded).",
    )


def _not_private(directory: str) -> Finding:
    """Report a ledger that may contain forged entries.

    A forged entry could make the agent remove foreign files.
    """
    return common_findings.kind_unobservable(
        location=directory,
        subject=_SUBJECT,
        reason="the directory of the ledger belongs to a user other than root and the agent's own, "
        "so its entries prove nothing",
        hint=f"Check its content, then: chown -R root: {directory} && chmod -R go-w {directory}",
    )


def _decoded(content: bytes) -> _StoredEntry | None:
    try:
        return msgspec.json.decode(content, type=_StoredEntry)
    except _DECODING_ERRORS:
        return None


def _schema(content: bytes) -> int:
    """Return the newer schema of a ledger entry, or 0 if the entry is damaged."""
    try:
        return msgspec.json.decode(content, type=_Schema).schema
    except _DECODING_ERRORS:
        return 0


def _file_name(id_: KeyId) -> str:
    return model.digest(f"{id_.kind}\0{id_.profile_set}\0{id_.key}".encode()) + ".json"


def _write_failed(error: HostError) -> Finding:
    return common_findings.write_failed(
        error.path, "The ledger", str(error), "The profile was not installed."
    )


def _to_stored(entry: LedgerEntry) -> _StoredEntry:
    return _StoredEntry(
        schema=SCHEMA,
        kind=entry.id.kind,
        origin=entry.id.profile_set,
        key=entry.id.key,
        how=_STORED_PROVENANCES[entry.provenance],
        prefix=entry.prefix,
        installed=_version_to_stored(entry.installed),
        staged=_version_to_stored(entry.staged),
        retired=_sorted(entry.retired),
    )


def _from_stored(stored: _StoredEntry) -> LedgerEntry:
    return LedgerEntry(
        id=KeyId(kind=stored.kind, profile_set=stored.origin, key=stored.key),
        provenance=_PROVENANCES[stored.how],
        prefix=stored.prefix,
        installed=_version_from_stored(stored.installed),
        staged=_version_from_stored(stored.staged),
        retired={name: frozenset(items) for name, items in stored.retired.items()},
    )


def _version_to_stored(version: Version | None) -> _StoredVersion | None:
    if version is None:
        return None
    return _StoredVersion(
        provides=list(version.names),
        source=version.source_digest,
        body=version.body_digest,
        context=version.context,
        modes=dict(version.modes),
        evidence=_sorted(version.evidence),
    )


def _version_from_stored(stored: _StoredVersion | None) -> Version | None:
    if stored is None:
        return None
    return Version(
        names=tuple(stored.provides),
        source_digest=stored.source,
        body_digest=stored.body,
        context=stored.context,
        modes=stored.modes,
        evidence={name: frozenset(items) for name, items in stored.evidence.items()},
    )


def _sorted(evidence: Mapping[str, Evidence]) -> dict[str, list[str]]:
    return {name: sorted(items) for name, items in evidence.items()}
