"""Records what the last pass did not install, for the command `status`.

The record contains the profiles that were rejected or could not be installed, and the inputs that
were skipped. The ledger contains only installed profiles, and `status` reads no source.
STATE/problems.json is written only when its content changes, and is removed when there is nothing
to record. The file has no influence on a pass: if it is missing or damaged, `status` shows only the
ledger.
"""

import contextlib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.core.finding_codes import FindingCode, Severity
from agent.core.findings import Finding
from agent.core.left_out import LeftOut
from agent.core.model import ProfileKind
from agent.core.printable import printable
from agent.core.report import ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import (
    ActionName,
    LeftOutReason,
    ProfileSetState,
    ProfileState,
    Reason,
)
from agent.host.file_role import FileRole
from agent.host.filesystem import Host, HostError

FILE: Final = "problems.json"
MOST_ROWS: Final = 200
MOST_FINDINGS: Final = 5  # per profile
MOST_SETS: Final = 200  # with skipped inputs
MOST_BYTES: Final = 4 << 20
STATES: Final = frozenset(
    {ProfileState.REJECTED, ProfileState.OUTDATED, ProfileState.FOREIGN, ProfileState.FAILED}
)
_CODES: Final = {code.value: code for code in FindingCode}


class _StoredFinding(msgspec.Struct):
    code: str
    location: str
    message: str
    hint: str


class _StoredRow(msgspec.Struct):
    kind: ProfileKind
    origin: str
    key: str
    name: str
    state: str
    findings: list[_StoredFinding]


class _StoredInputs(msgspec.Struct):
    reason: LeftOutReason
    count: int
    names: list[str]
    hint: str


class _StoredSet(msgspec.Struct):
    origin: str
    state: ProfileSetState
    keys: int
    inputs: list[_StoredInputs]


class _Stored(msgspec.Struct):
    rows: list[_StoredRow]
    omitted: int
    at: float = 0.0
    skipped: list[_StoredSet] = []
    omitted_sets: int = 0


_EMPTY: Final = _Stored(rows=[], omitted=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """The recorded problems of the last pass."""

    rows: tuple[ProfileStatus, ...] = ()
    omitted: int = 0
    """The number of rejected or failed profiles that are not recorded, because the record is full.
    """

    skipped: tuple[ProfileSetStatus, ...] = ()
    """The profile sets with inputs that were not read as profiles."""

    omitted_sets: int = 0
    """The number of further profile sets with skipped inputs, which are not recorded."""

    at: float = 0.0
    """The time at which the record was written, in Unix seconds."""


class ProblemRecord:
    """The record of problems in a state directory on the host. Implements agent.control's
    ReportSink.
    """

    def __init__(self, host: Host, directory: str) -> None:
        self._host = host
        self._directory = directory
        self._last: _Stored | None = None

    def on_report(self, report: Report, at: float, *, passed: bool) -> None:
        """Write the record if it differs from the record on disk."""
        if not passed or report.dry_run:
            return
        stored = _stored(report)
        if self._last is None:
            self._last = self._read()
        if self._last is not None and stored == _without_time(self._last):
            return
        # Other findings report a full disk or a read-only file system.
        with contextlib.suppress(HostError):
            if stored.rows or stored.skipped:
                content = msgspec.json.encode(msgspec.structs.replace(stored, at=at))
                self._host.write_file(self._directory, FILE, content, role=FileRole.TRANSIENT)
            else:
                self._host.remove_file(self._directory, FILE)
            self._last = stored

    def read(self) -> Problems:
        """Return the recorded problems; none if the record is missing or damaged."""
        stored = self._read() or _EMPTY
        return Problems(
            rows=tuple(map(_row, stored.rows)),
            omitted=stored.omitted,
            skipped=tuple(map(_profile_set, stored.skipped)),
            omitted_sets=stored.omitted_sets,
            at=stored.at,
        )

    def _read(self) -> _Stored | None:
        """Return the content of the record; None if it is damaged or cannot be read."""
        try:
            content = self._host.read(f"{self._directory}/{FILE}", limit=MOST_BYTES)
            return msgspec.json.decode(content, type=_Stored)
        except HostError as error:
            return _EMPTY if error.errno == errno.ENOENT else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


def _without_time(stored: _Stored) -> _Stored:
    return msgspec.structs.replace(stored, at=0.0)


def _stored(report: Report) -> _Stored:
    rows = [row for row in report.profiles if row.state in STATES]
    skipped = [item for item in report.profile_sets if item.left_out]
    return _Stored(
        skipped=[_stored_set(item) for item in skipped[:MOST_SETS]],
        omitted_sets=len(skipped[MOST_SETS:]),
        rows=[
            _StoredRow(
                kind=row.kind,
                origin=printable(row.profile_set),
                key=printable(row.key),
                name=printable(row.name),
                state=row.state.value,
                findings=_stored_findings(row.findings),
            )
            for row in rows[:MOST_ROWS]
        ],
        omitted=len(rows[MOST_ROWS:]),
    )


def _stored_set(status: ProfileSetStatus) -> _StoredSet:
    return _StoredSet(
        origin=printable(status.profile_set),
        state=status.state,
        keys=status.keys,
        inputs=[
            _StoredInputs(
                reason=item.reason, count=item.count, names=list(item.names), hint=item.hint
            )
            for item in status.left_out
        ],
    )


def _profile_set(stored: _StoredSet) -> ProfileSetStatus:
    return ProfileSetStatus(
        profile_set=stored.origin,
        state=stored.state,
        keys=stored.keys,
        left_out=tuple(
            LeftOut(reason=item.reason, count=item.count, names=tuple(item.names), hint=item.hint)
            for item in stored.inputs
        ),
    )


def _stored_findings(findings: Iterable[Finding]) -> list[_StoredFinding]:
    errors = [item for item in findings if item.severity == Severity.ERROR]
    return [
        _StoredFinding(
            code=item.code.value,
            location=printable(item.location),
            message=printable(item.message),
            hint=printable(item.hint),
        )
        for item in errors[:MOST_FINDINGS]
    ]


def _row(stored: _StoredRow) -> ProfileStatus:
    state = ProfileState(stored.state) if stored.state in STATES else ProfileState.FAILED
    return ProfileStatus(
        kind=stored.kind,
        profile_set=stored.origin,
        key=stored.key,
        name=stored.name,
        localhost_profile=stored.name,
        state=state,
        action=ActionName.REJECT if state == ProfileState.REJECTED else ActionName.HOLD,
        reason=Reason.NONE,
        findings=_findings(stored.findings),
    )


def _findings(stored: Iterable[_StoredFinding]) -> tuple[Finding, ...]:
    """Return the recorded findings whose code this version of the agent knows."""
    return tuple(
        Finding(
            code=_CODES[item.code], location=item.location, message=item.message, hint=item.hint
        )
        for item in stored
        if item.code in _CODES
    )
