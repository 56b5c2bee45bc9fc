"""One pass: read what should be, read what is, decide, act, report.

Rule 1: everything is read once; what was checked is what is installed.
Rule 2: without a trustworthy ledger nothing is touched.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from agent.core import account, desired, model, plan, ports, reconcile
from agent.core.model import Blind, Blob, Entry, Id, Inspected, KindName, Observed, Unreadable
from agent.core.problems import Problem
from agent.core.report import Report, of_source
from agent.doors.ledger import FileLedger


class Pass:
    """One pass over one host. Nothing happens before `run`."""

    def __init__(
        self,
        *,
        sources: Sequence[ports.Source],
        kinds: Mapping[KindName, ports.Kind],
        ledger: FileLedger,
        options: plan.Options,
    ) -> None:
        self.sources = sources
        self.kinds = kinds
        self.ledger = ledger
        self.options = options
        self.pulse: Callable[[], None] = lambda: None  # called between keys and between actions

    def run(self, *, dry_run: bool = False) -> Report:
        """Run the pass. With dry_run nothing on the host changes."""
        seconds: dict[str, float] = {}
        found = self.ledger.entries()
        with _timed(seconds, "read"):
            snapshots = [one for source in self.sources for one in source.read()]
            if not isinstance(found, Problem):
                snapshots += self._absent(found, {one.origin for one in snapshots})
        return self._reconcile(snapshots, found, seconds, dry_run=dry_run)

    def restore(self, *, dry_run: bool = False) -> Report:
        """Put back what the ledger holds, without any source; nothing is removed."""
        found = self.ledger.entries()
        origins = set() if isinstance(found, Problem) else {id_.origin for id_ in found}
        snapshots = [
            Unreadable(origin=origin, why="restore reads no source") for origin in sorted(origins)
        ]
        report = self._reconcile(snapshots, found, {}, dry_run=dry_run)
        return Report(
            rows=report.rows,
            sets=(),
            supports=report.supports,
            problems=tuple(one for one in report.problems if not of_source(one)),
            dry_run=dry_run,
            seconds=report.seconds,
        )

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
        snapshots: Sequence[model.Snapshot],
        found: Mapping[Id, Entry] | Problem,
        seconds: dict[str, float],
        *,
        dry_run: bool,
    ) -> Report:
        with _timed(seconds, "inspect"):
            wanted = desired.join(snapshots, self._inspect, frozenset(self.kinds))
        problems = list(self.ledger.damaged)
        entries: Mapping[Id, Entry] = {}
        if isinstance(found, Problem):
            problems.append(found)
        else:
            entries = found
        with _timed(seconds, "observe"):
            observed = self._observe(wanted, entries, found)
        actions = plan.plan(wanted, entries, observed, self.options)
        runner = reconcile.Reconciler(
            kinds=self.kinds, ledger=self.ledger, entries=entries, clock=self._clock
        )
        with _timed(seconds, "act"):
            outcomes = runner.run(actions, dry_run=dry_run)
        if not dry_run and runner.entries != entries:
            self.ledger.sweep(runner.entries)
        return account.account(
            desired=wanted,
            observed=observed,
            outcomes=outcomes,
            problems=problems,
            dry_run=dry_run,
            seconds=seconds,
        )

    def _inspect(self, kind: KindName, blob: Blob) -> Inspected:
        self.pulse()
        return self.kinds[kind].inspect(blob)

    def _clock(self) -> float:
        self.pulse()
        return time.monotonic()

    def _observe(
        self,
        wanted: desired.Desired,
        entries: Mapping[Id, Entry],
        found: Mapping[Id, Entry] | Problem,
    ) -> dict[KindName, Observed]:
        observed: dict[KindName, Observed] = {}
        for name, kind in self.kinds.items():
            if isinstance(found, Problem):
                observed[name] = Blind(problem=found)
                continue
            names = {
                provided
                for id_, profile in wanted.profiles.items()
                if id_.kind == name
                for provided in profile.version.provides
            }
            mine = {
                owned
                for entry in entries.values()
                if entry.id.kind == name
                for owned in plan.owned(entry)
            }
            doubtful = plan.suspects(wanted, entries, self.options) & mine
            observed[name] = kind.observe(names | mine, doubtful)
        return observed


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes under its name."""
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin
