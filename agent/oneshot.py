"""One pass: read what should be, read what is, decide, act, report.

Rule 1: everything is read once; what was checked is what is installed.
Rule 2: without a trustworthy ledger nothing is touched.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.core import account, action, desired, model, ownership, plan, ports, reconcile
from agent.core.admission import Room, Size
from agent.core.model import (
    Blind,
    Blob,
    Entry,
    Id,
    Inspected,
    KindName,
    Observed,
    Profile,
    Rejection,
    Unreadable,
)
from agent.core.problems import Problem
from agent.core.report import UNKNOWN_WISH, Report, Row, combined, of_source
from agent.doors.ledger import FileLedger

Progress = Callable[[int, int], None]


class Pass:
    """One pass over one host. Nothing happens before `run`."""

    def __init__(
        self,
        *,
        sources: Sequence[ports.Source],
        kinds: Mapping[KindName, ports.Kind],
        ledger: FileLedger,
        options: plan.Options,
        allow_empty: bool = False,
    ) -> None:
        self.sources = sources
        self.kinds = kinds
        self.ledger = ledger
        self.options = options
        self.allow_empty = allow_empty
        self.pulse: Callable[[], None] = lambda: None  # called between keys and between actions
        self._room = Room()  # of this pass
        self._inspected: dict[tuple[KindName, Blob], Inspected] = {}
        # Profiles without room: nothing but their size stays in memory.
        self._refused: dict[tuple[KindName, Blob], tuple[Size, Rejection]] = {}
        self._joined: tuple[Sequence[model.Snapshot], desired.Desired] | None = None
        self._last: tuple[_Seen, Report] | None = None
        self._questions: _Questions | None = None

    def run(self, *, dry_run: bool = False, full: bool = True) -> Report:
        """Run the pass. With dry_run nothing on the host changes.

        Unless full, cheap signs stand for content: what they call unchanged is not read again,
        and a pass over an unchanged node and source gives the very report of the last one.
        """
        if full:
            self._forget()
        for kind in self.kinds.values():
            kind.begin()
        seconds: dict[str, float] = {}
        found = self.ledger.entries()
        with _timed(seconds, "read"):
            snapshots = [self._meant(one) for source in self.sources for one in source.read()]
            if not isinstance(found, Problem):
                snapshots += self._absent(found, {one.origin for one in snapshots})
        with _timed(seconds, "inspect"):
            wanted = self._wanted(snapshots, found)
        return self._reconcile(wanted, found, seconds, dry_run=dry_run)

    def untouched(self) -> bool:
        """Return whether the host is as the last pass saw or left it, by cheap signs."""
        return all(one.untouched() for one in self.kinds.values()) and self.ledger.untouched()

    def _forget(self) -> None:
        self._inspected.clear()
        self._refused.clear()
        self._joined = None
        self._last = None
        self._questions = None
        self.ledger.forget()
        for source in self.sources:
            source.forget()
        for kind in self.kinds.values():
            kind.forget()

    def restore(self, *, dry_run: bool = False) -> Report:
        """Put back what the ledger holds, without any source; nothing is removed."""
        for kind in self.kinds.values():
            kind.begin()
        found = self.ledger.entries()
        origins = set() if isinstance(found, Problem) else {id_.origin for id_ in found}
        snapshots = [
            Unreadable(origin=origin, why="restore reads no source") for origin in sorted(origins)
        ]
        wanted = desired.join(snapshots, self._inspect, frozenset(self.kinds))
        report = self._reconcile(wanted, found, {}, dry_run=dry_run)
        return Report(
            rows=tuple(_put_back(row) for row in report.rows),
            sets=(),
            supports=report.supports,
            problems=tuple(one for one in report.problems if not of_source(one)),
            pending=report.pending,
            dry_run=dry_run,
            seconds=report.seconds,
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
        return any(kind.wait(progress) for kind in self.kinds.values())

    def _sandboxes(self) -> dict[KindName, ports.Sandbox | None]:
        return {name: kind.sandbox() for name, kind in self.kinds.items()}

    def _meant(self, snapshot: model.Snapshot) -> model.Snapshot:
        """Return an emptied set as one that was read, where that is allowed."""
        if not self.allow_empty or not isinstance(snapshot, model.Emptied):
            return snapshot
        return model.Read(origin=snapshot.origin, revision=snapshot.revision, blobs=())

    def _absent(self, entries: Mapping[Id, Entry], read: set[str]) -> list[model.Snapshot]:
        """Return what the sources say of sets that the ledger knows and no source gave."""
        found: list[model.Snapshot] = []
        for origin in sorted({id_.origin for id_ in entries} - read):
            answers = [source.absent(origin) for source in self.sources]
            told = [one for one in answers if one is not None]
            # One source that cannot tell outweighs another that does not have it.
            found += sorted(told, key=lambda one: not isinstance(one, Unreadable))[:1]
        return found

    def _reconcile(
        self,
        wanted: desired.Desired,
        found: Mapping[Id, Entry] | Problem,
        seconds: dict[str, float],
        *,
        dry_run: bool,
    ) -> Report:
        problems = list(self.ledger.damaged)
        entries: Mapping[Id, Entry] = {}
        if isinstance(found, Problem):
            problems.append(found)
        else:
            entries = found
        with _timed(seconds, "observe"):
            observed = self._observe(wanted, entries, found)
        now = _Seen(wanted=wanted, entries=found, observed=observed, options=self.options)
        if self._last is not None and self._last[0].same(now):
            return self._last[1]
        actions = plan.plan(wanted, entries, observed, self.options)
        runner = reconcile.Reconciler(
            kinds=self.kinds, ledger=self.ledger, entries=entries, clock=self._clock
        )
        with _timed(seconds, "act"):
            outcomes = runner.run(actions, dry_run=dry_run)
        if not dry_run and runner.entries != entries:
            self.ledger.sweep(runner.entries)
        report = account.account(
            desired=wanted,
            observed=observed,
            sandboxes=self._sandboxes(),
            outcomes=outcomes,
            problems=problems,
            dry_run=dry_run,
            seconds=seconds,
        )
        is_final = _settled(actions, report) and not report.pending and not dry_run
        self._last = (now, report) if is_final else None
        return report

    def _wanted(
        self, snapshots: Sequence[model.Snapshot], found: Mapping[Id, Entry] | Problem
    ) -> desired.Desired:
        """Join the snapshots; what was joined or inspected before is not again."""
        if self._joined is not None and self._joined[0] == snapshots:
            return self._joined[1]
        entries = {} if isinstance(found, Problem) else found
        self._room = Room(entries=entries)
        wanted = desired.join(snapshots, self._inspect, frozenset(self.kinds), self._room)
        blobs = {blob for one in snapshots if isinstance(one, model.Read) for blob in one.blobs}
        self._inspected = {
            key: one
            for key, one in self._inspected.items()
            if key[1] in blobs and not isinstance(one, model.Unchecked | model.Pending)
        }
        self._refused = {key: one for key, one in self._refused.items() if key[1] in blobs}
        self._joined = None if wanted.unchecked or wanted.pending else (snapshots, wanted)
        return wanted

    def _inspect(self, kind: KindName, blob: Blob) -> Inspected:
        """Inspect a key within the room that is left, or return the previous result."""
        self.pulse()
        key = (kind, blob)
        refused = self._refused.get(key)
        if refused is not None and not self._room.fits(refused[1].id, refused[0]):
            return refused[1]
        inspected = self._inspected.get(key) or self.kinds[kind].inspect(blob)
        admitted = self._room.admitted(inspected)
        if isinstance(inspected, Profile) and isinstance(admitted, Rejection):
            self._refused[key] = (self._room.size(inspected), admitted)
            self._inspected.pop(key, None)
            self.kinds[kind].discard(inspected)
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
        entries: Mapping[Id, Entry],
        found: Mapping[Id, Entry] | Problem,
    ) -> dict[KindName, Observed]:
        if isinstance(found, Problem):
            return {name: Blind(problem=found) for name in self.kinds}
        last = self._questions
        if last is None or not last.same(wanted, entries, self.options):
            last = self._questions = _Questions.of(wanted, entries, self.options, self.kinds)
        return {
            name: kind.observe(last.names[name], last.suspects[name])
            for name, kind in self.kinds.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Questions:
    """What is asked of each kind, and what that follows from."""

    wanted: desired.Desired
    entries: Mapping[Id, Entry]
    options: plan.Options
    names: Mapping[KindName, frozenset[str]]
    suspects: Mapping[KindName, frozenset[str]]

    def same(
        self, wanted: desired.Desired, entries: Mapping[Id, Entry], options: plan.Options
    ) -> bool:
        """Return whether it follows from the very same objects."""
        return self.wanted is wanted and self.entries is entries and self.options == options

    @classmethod
    def of(
        cls,
        wanted: desired.Desired,
        entries: Mapping[Id, Entry],
        options: plan.Options,
        kinds: Iterable[KindName],
    ) -> "_Questions":
        """Ask about every name that a profile provides or an entry owns; doubt what may go."""
        provided: dict[KindName, set[str]] = {kind: set() for kind in kinds}
        owned: dict[KindName, set[str]] = {kind: set() for kind in kinds}
        for id_, profile in wanted.profiles.items():
            provided[id_.kind].update(profile.version.provides)
        for entry in entries.values():
            if entry.id.kind in owned:
                owned[entry.id.kind].update(ownership.owned(entry))
        doubtful = plan.suspects(wanted, entries, options)
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
    entries: Mapping[Id, Entry] | Problem
    observed: Mapping[KindName, Observed]
    options: plan.Options

    def same(self, other: "_Seen") -> bool:
        """Return whether these are the very same objects: nothing was read anew."""
        return (
            self.wanted is other.wanted
            and self.entries is other.entries
            and self.options == other.options
            and self.observed.keys() == other.observed.keys()
            and all(one is other.observed[kind] for kind, one in self.observed.items())
        )


def _settled(actions: Sequence[action.Action], report: Report) -> bool:
    """Return whether a pass changed nothing and waits for nothing."""
    return all(isinstance(one, action.Keep | action.Hold) for one in actions) and all(
        row.state not in ("failed", "unobservable") and row.desired for row in report.rows
    )


def removed_names(rows: Iterable[Row]) -> list[str]:
    """Return the AppArmor names that a pass found missing, or removed itself."""
    return [
        row.name
        for row in rows
        if row.kind == "apparmor"
        and row.name
        and (row.why in ("missing", "absent") or row.state == "removed")
    ]


def tracked_names(rows: Iterable[Row]) -> list[str]:
    """Return the AppArmor names that are on the node after a pass as far as its rows say."""
    return [
        row.name
        for row in rows
        if row.kind == "apparmor" and row.name and (row.desired or row.state == "held")
    ]


def _put_back(row: Row) -> Row:
    """Return a row as restore tells it: no source was meant to be read, so none is gone."""
    if row.state != "held" or not row.desired or row.why == UNKNOWN_WISH:
        return row
    return replace(row, state="installed", why="" if row.why == "source gone" else row.why)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes under its name."""
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin
