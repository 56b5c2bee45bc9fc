"""One pass: read what should be, read what is, decide, act, report.

Rule 1: everything is read once; what was checked is what is installed.
Rule 2: without a trustworthy ledger nothing is touched.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent import executor
from agent.core import actions, desired, model, ownership, plan, ports, report_builder
from agent.core.admission import AdmissionBudget, Size
from agent.core.findings import Finding
from agent.core.model import (
    Inspected,
    KeyId,
    LedgerEntry,
    Observed,
    Profile,
    ProfileKind,
    Rejection,
    SourceKey,
    Unobservable,
    Unreadable,
)
from agent.core.report import ProfileStatus, Report, combined, of_source
from agent.core.vocabulary import ProfileState, Reason
from agent.host.ledger import FileLedger

Progress = Callable[[int, int], None]


class Reconciler:
    """One pass over one host. Nothing happens before `run`."""

    def __init__(
        self,
        *,
        sources: Sequence[ports.Source],
        backends: Mapping[ProfileKind, ports.ProfileBackend],
        ledger: FileLedger,
        options: plan.PlanOptions,
        allow_empty: bool = False,
    ) -> None:
        self.sources = sources
        self.backends = backends
        self.ledger = ledger
        self.options = options
        self.allow_empty = allow_empty
        self.pulse: Callable[[], None] = lambda: None  # called between keys and between actions
        self._room = AdmissionBudget()  # of this pass
        self._inspected: dict[tuple[ProfileKind, SourceKey], Inspected] = {}
        # Profiles without room: nothing but their size stays in memory.
        self._refused: dict[tuple[ProfileKind, SourceKey], tuple[Size, Rejection]] = {}
        self._joined: tuple[Sequence[model.Snapshot], desired.Desired] | None = None
        self._last: tuple[_Seen, Report] | None = None
        self._questions: _Questions | None = None
        self._passes = 0  # that made a report of their own

    def run(self, *, dry_run: bool = False, full: bool = True) -> Report:
        """Run the pass. With dry_run nothing on the host changes.

        Unless full, cheap signs stand for content: what they call unchanged is not read again,
        and a pass over an unchanged node and source gives the very report of the last one.
        """
        if full:
            self._forget()
        for kind in self.backends.values():
            kind.begin_pass()
        seconds: dict[str, float] = {}
        found = self.ledger.entries()
        with _timed(seconds, "read"):
            snapshots = [self._meant(one) for source in self.sources for one in source.read()]
            if not isinstance(found, Finding):
                snapshots += self._absent(found, {one.profile_set for one in snapshots})
        with _timed(seconds, "inspect"):
            wanted = self._wanted(snapshots, found)
        return self._reconcile(wanted, found, seconds, dry_run=dry_run)

    def is_unchanged(self) -> bool:
        """Return whether the host is as the last pass saw or left it, by cheap signs."""
        return (
            all(one.is_unchanged() for one in self.backends.values()) and self.ledger.is_unchanged()
        )

    def _forget(self) -> None:
        self._inspected.clear()
        self._refused.clear()
        self._joined = None
        self._last = None
        self._questions = None
        self.ledger.invalidate()
        for source in self.sources:
            source.invalidate()
        for kind in self.backends.values():
            kind.invalidate()

    def restore(self, *, dry_run: bool = False) -> Report:
        """Put back what the ledger holds, without any source; nothing is removed."""
        for kind in self.backends.values():
            kind.begin_pass()
        found = self.ledger.entries()
        origins = set() if isinstance(found, Finding) else {id_.profile_set for id_ in found}
        snapshots = [
            Unreadable(profile_set=origin, reason="restore reads no source")
            for origin in sorted(origins)
        ]
        wanted = desired.join(snapshots, self._inspect, frozenset(self.backends))
        report = self._reconcile(wanted, found, {}, dry_run=dry_run)
        return Report(
            profiles=tuple(_put_back(row) for row in report.profiles),
            profile_sets=(),
            kind_support=report.kind_support,
            findings=tuple(one for one in report.findings if not of_source(one)),
            pending=report.pending,
            dry_run=dry_run,
            seconds=report.seconds,
            pass_number=report.pass_number,
        )

    def completed(self, run: Callable[[], Report], progress: Progress) -> Report:
        """Run passes until no key is being checked in the background; return what they did.

        Args:
            run: runs one pass.
            progress: see `ports.Kind.wait`.
        """
        report = run()
        while report.pending and self._wait(progress):
            report = combined(report, run())
        return report

    def _wait(self, progress: Progress) -> bool:
        return any(kind.wait(progress) for kind in self.backends.values())

    def _sandboxes(self) -> dict[ProfileKind, ports.Sandbox | None]:
        return {name: kind.sandbox() for name, kind in self.backends.items()}

    def _meant(self, snapshot: model.Snapshot) -> model.Snapshot:
        """Return an emptied set as one that was read, where that is allowed."""
        if not self.allow_empty or not isinstance(snapshot, model.Emptied):
            return snapshot
        return model.Read(
            profile_set=snapshot.profile_set, revision=snapshot.revision, source_keys=()
        )

    def _absent(self, entries: Mapping[KeyId, LedgerEntry], read: set[str]) -> list[model.Snapshot]:
        """Return what the sources say of sets that the ledger knows and no source gave."""
        found: list[model.Snapshot] = []
        for origin in sorted({id_.profile_set for id_ in entries} - read):
            answers = [source.explain_absence(origin) for source in self.sources]
            told = [one for one in answers if one is not None]
            # One source that cannot tell outweighs another that does not have it.
            found += sorted(told, key=lambda one: not isinstance(one, Unreadable))[:1]
        return found

    def _reconcile(
        self,
        wanted: desired.Desired,
        found: Mapping[KeyId, LedgerEntry] | Finding,
        seconds: dict[str, float],
        *,
        dry_run: bool,
    ) -> Report:
        findings = list(self.ledger.findings)
        entries: Mapping[KeyId, LedgerEntry] = {}
        if isinstance(found, Finding):
            findings.append(found)
        else:
            entries = found
        with _timed(seconds, "observe"):
            observed = self._observe(wanted, entries, found)
        now = _Seen(wanted=wanted, entries=found, observed=observed, options=self.options)
        if self._last is not None and self._last[0].same(now):
            return self._last[1]
        actions = plan.plan(wanted, entries, observed, self.options)
        runner = executor.Executor(
            kinds=self.backends, ledger=self.ledger, entries=entries, clock=self._clock
        )
        with _timed(seconds, "act"):
            outcomes = runner.execute(actions, dry_run=dry_run)
        if not dry_run and runner.entries != entries:
            self.ledger.sweep(runner.entries)
        report = report_builder.build_report(
            desired=wanted,
            observed=observed,
            sandboxes=self._sandboxes(),
            outcomes=outcomes,
            findings=findings,
            dry_run=dry_run,
            seconds=seconds,
        )
        self._passes += 1
        report = replace(report, pass_number=self._passes)
        is_final = _settled(actions, report) and not report.pending and not dry_run
        self._last = (now, report) if is_final else None
        return report

    def _wanted(
        self, snapshots: Sequence[model.Snapshot], found: Mapping[KeyId, LedgerEntry] | Finding
    ) -> desired.Desired:
        """Join the snapshots; what was joined or inspected before is not again."""
        if self._joined is not None and self._joined[0] == snapshots:
            return self._joined[1]
        entries = {} if isinstance(found, Finding) else found
        self._room = AdmissionBudget(entries=entries)
        wanted = desired.join(snapshots, self._inspect, frozenset(self.backends), self._room)
        blobs = {
            blob for one in snapshots if isinstance(one, model.Read) for blob in one.source_keys
        }
        self._inspected = {
            key: one
            for key, one in self._inspected.items()
            if key[1] in blobs and not isinstance(one, model.Unchecked | model.Pending)
        }
        self._refused = {key: one for key, one in self._refused.items() if key[1] in blobs}
        self._joined = None if wanted.unchecked or wanted.pending else (snapshots, wanted)
        return wanted

    def _inspect(self, kind: ProfileKind, blob: SourceKey) -> Inspected:
        """Inspect a key within the room that is left, or return the previous result."""
        self.pulse()
        key = (kind, blob)
        refused = self._refused.get(key)
        if refused is not None and not self._room.fits(refused[1].id, refused[0]):
            return refused[1]
        inspected = self._inspected.get(key) or self.backends[kind].inspect(blob)
        admitted = self._room.admitted(inspected)
        if isinstance(inspected, Profile) and isinstance(admitted, Rejection):
            self._refused[key] = (self._room.size(inspected), admitted)
            self._inspected.pop(key, None)
            self.backends[kind].discard(inspected)
        else:
            self._refused.pop(key, None)
            self._inspected[key] = admitted
        return admitted

    def _clock(self) -> float:
        self.pulse()
        return time.monotonic()

    def _observe(
        self,
        wanted: desired.Desired,
        entries: Mapping[KeyId, LedgerEntry],
        found: Mapping[KeyId, LedgerEntry] | Finding,
    ) -> dict[ProfileKind, Observed]:
        if isinstance(found, Finding):
            return {name: Unobservable(finding=found) for name in self.backends}
        last = self._questions
        if last is None or not last.same(wanted, entries, self.options):
            last = self._questions = _Questions.of(wanted, entries, self.options, self.backends)
        return {
            name: kind.observe(last.names[name], last.suspects[name])
            for name, kind in self.backends.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Questions:
    """What is asked of each kind, and what that follows from."""

    wanted: desired.Desired
    entries: Mapping[KeyId, LedgerEntry]
    options: plan.PlanOptions
    names: Mapping[ProfileKind, frozenset[str]]
    suspects: Mapping[ProfileKind, frozenset[str]]

    def same(
        self,
        wanted: desired.Desired,
        entries: Mapping[KeyId, LedgerEntry],
        options: plan.PlanOptions,
    ) -> bool:
        """Return whether it follows from the very same objects."""
        return self.wanted is wanted and self.entries is entries and self.options == options

    @classmethod
    def of(
        cls,
        wanted: desired.Desired,
        entries: Mapping[KeyId, LedgerEntry],
        options: plan.PlanOptions,
        kinds: Iterable[ProfileKind],
    ) -> "_Questions":
        """Ask about every name that a profile provides or an entry owns; doubt what may go."""
        provided: dict[ProfileKind, set[str]] = {kind: set() for kind in kinds}
        owned: dict[ProfileKind, set[str]] = {kind: set() for kind in kinds}
        for id_, profile in wanted.profiles.items():
            provided[id_.kind].update(profile.version.names)
        for entry in entries.values():
            if entry.id.kind in owned:
                owned[entry.id.kind].update(ownership.owned_names(entry))
        doubtful = plan.removal_candidates(wanted, entries, options)
        return cls(
            wanted=wanted,
            entries=entries,
            options=options,
            names={kind: frozenset(names | owned[kind]) for kind, names in provided.items()},
            suspects={kind: frozenset(doubtful & names) for kind, names in owned.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a pass decides upon."""

    wanted: desired.Desired
    entries: Mapping[KeyId, LedgerEntry] | Finding
    observed: Mapping[ProfileKind, Observed]
    options: plan.PlanOptions

    def same(self, other: "_Seen") -> bool:
        """Return whether these are the very same objects: nothing was read anew."""
        return (
            self.wanted is other.wanted
            and self.entries is other.entries
            and self.options == other.options
            and self.observed.keys() == other.observed.keys()
            and all(one is other.observed[kind] for kind, one in self.observed.items())
        )


def _settled(taken: Sequence[actions.Action], report: Report) -> bool:
    """Return whether a pass changed nothing and waits for nothing."""
    return all(isinstance(action, actions.Keep | actions.Hold) for action in taken) and all(
        row.state not in (ProfileState.FAILED, ProfileState.UNOBSERVABLE) and row.desired
        for row in report.profiles
    )


def removed_names(rows: Iterable[ProfileStatus]) -> list[str]:
    """Return the AppArmor names that a pass found missing, or removed itself."""
    return [
        row.name
        for row in rows
        if row.kind == "apparmor"
        and row.name
        and (
            row.reason in (Reason.WENT_MISSING, Reason.ABSENT) or row.state == ProfileState.REMOVED
        )
    ]


def tracked_names(rows: Iterable[ProfileStatus]) -> list[str]:
    """Return the AppArmor names that are on the node after a pass as far as its rows say."""
    return [
        row.name
        for row in rows
        if row.kind == "apparmor" and row.name and (row.desired or row.state == ProfileState.HELD)
    ]


def _put_back(row: ProfileStatus) -> ProfileStatus:
    """Return a row as restore tells it: no source was meant to be read, so none is gone."""
    if row.state != ProfileState.HELD or not row.desired or row.reason == Reason.SOURCE_UNREADABLE:
        return row
    reason = Reason.NONE if row.reason == Reason.SOURCE_UNAVAILABLE else row.reason
    return replace(row, state=ProfileState.INSTALLED, reason=reason)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes under its name."""
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin
